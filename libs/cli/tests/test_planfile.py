"""Specs of `distroml plan`: every mistake is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from distroml.cli import planfile
from distroml.cli.errors import UsageError

GOOD = """\
model:
  transformer: {hidden: 4096, layers: 32, heads: 32, kv_heads: 8, ffn: 14336, vocab: 128256, seq: 8192}
cluster:
  nodes: 4
  gpus_per_node: 8
  gpu: {tflops: 989, memory_gib: 80, memory_gb_per_s: 3350}
  intra_gb_per_s: 450
  inter_gb_per_s: 5e1
  intra_latency_us: 3
  inter_latency_us: 0
batch: {global: 512}
training: {optimizer: adamw, precision: bf16, recompute: auto}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "spec.yaml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str, **more: bool) -> str:
    with pytest.raises(UsageError) as caught:
        planfile.read(written(folder, text), **more)
    return caught.value.message


def test_a_whole_spec_is_read_with_its_types(tmp_path: Path):
    values = planfile.read(written(tmp_path, GOOD)).values
    assert values["model"]["transformer"]["kv_heads"] == 8
    assert values["cluster"]["gpu"] == {"tflops": 989.0, "memory_gib": 80.0, "memory_gb_per_s": 3350.0}
    assert values["cluster"]["inter_gb_per_s"] == 50.0
    assert values["batch"] == {"global": 512}
    assert values["training"]["recompute"] == "auto"


def test_unknown_missing_and_wrong_fields_are_all_named_with_their_lines(tmp_path: Path):
    text = (
        GOOD.replace("hidden: 4096, ", "hiden: 4096, ")
        .replace("nodes: 4", "nodes: 0")
        .replace("  gpus_per_node: 8\n", "")
        .replace("3350}", "fast}")
        .replace("recompute: auto", "recompute: some")
        .replace("{global: 512}", "{globl: 512}")
    )
    said = refused(tmp_path, text)
    assert "8 problems" in said
    assert "line 2: unknown field `model.transformer.hiden`; did you mean `model.transformer.hidden`?" in said
    assert "line 2: `model.transformer.hidden` is missing: it takes a whole number" in said
    assert "line 4: `cluster.nodes` must be above 0, got 0" in said
    assert "line 3: `cluster.gpus_per_node` is missing" in said
    assert "line 5: `cluster.gpu.memory_gb_per_s` takes a number, not 'fast'" in said
    assert "line 10: unknown field `batch.globl`; did you mean `batch.global`?" in said
    assert "line 10: `batch.global` is missing" in said
    assert "line 11: `training.recompute` is one of none, selective, full, auto, not 'some'" in said


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("{}", "either `entry: module:factory` with `sample`, or `transformer`"),
        ("{entry: 'a:b', transformer: {hidden: 8}}", "not both"),
        ("{entry: 'a:b'}", "`model.sample` is missing"),
        ("{entry: a, sample: 'a:s'}", "`model.entry` is `module:name`"),
        ("{transformer: {hidden: 8}, sample: 'a:s'}", "`model.sample` goes with `model.entry`"),
        ("gpt", "`model` takes a mapping"),
    ],
)
def test_a_model_is_one_of_two_things(tmp_path: Path, model: str, why: str):
    assert why in refused(
        tmp_path, f"model: {model}\ncluster: {{nodes: 1, gpus_per_node: 1, gpu: h100}}\nbatch: {{global: 8}}\n"
    )


def test_the_clusters_size_comes_from_the_file_or_from_the_control_plane(tmp_path: Path):
    text = GOOD.replace("  nodes: 4\n  gpus_per_node: 8\n", "")
    assert "`cluster.nodes` is missing" in refused(tmp_path, text)
    assert "nodes" not in planfile.read(written(tmp_path, text), live=True).values["cluster"]
    without = "model:\n  transformer: {hidden: 8, layers: 1, heads: 1, vocab: 8, seq: 8}\nbatch: {global: 8}\n"
    assert "--live plans for the control plane's machines" in refused(tmp_path, without)
    assert "cluster" not in planfile.read(written(tmp_path, without), live=True).values


@pytest.mark.parametrize("text", ["", "- a\n", "model: [\n", "batch: {global: .inf}\n", "batch: {global: true}\n"])
def test_whatever_is_no_spec_is_refused(tmp_path: Path, text: str):
    assert refused(tmp_path, text)


def test_a_sample_may_be_a_description(tmp_path: Path):
    text = GOOD.replace(
        GOOD.splitlines()[1], "  entry: train:build\n  sample: {input_ids: {shape: [2, 128], dtype: int64}}"
    )
    sample = planfile.read(written(tmp_path, text)).values["model"]["sample"]
    assert sample == {"input_ids": {"shape": [2, 128], "dtype": "int64"}}
    evil = text.replace("{shape: [2, 128], dtype: int64}", "!!python/object/apply:os.system ['true']")
    assert "`model.sample` cannot be read" in refused(tmp_path, evil)
