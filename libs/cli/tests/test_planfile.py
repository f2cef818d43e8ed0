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
training: {optimizer: adamw, precision: bf16, recompute: full}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "spec.yaml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        planfile.read(written(folder, text)).spec()
    assert caught.value.exit_code == 2
    return caught.value.message


def test_a_whole_spec_is_read_with_its_types(tmp_path: Path):
    spec = planfile.read(written(tmp_path, GOOD)).spec()
    assert spec.transformer is not None
    assert spec.transformer.kv_heads == 8
    assert spec.topology is not None
    assert spec.topology.world_size == 32
    assert spec.topology.levels[1].latency_s == 0.0
    assert (spec.global_batch, spec.recompute, spec.training.precision) == (512, "full", "bf16")


def test_unknown_missing_and_wrong_fields_are_all_named_with_their_lines(tmp_path: Path):
    text = (
        GOOD.replace("hidden: 4096, ", "hiden: 4096, ")
        .replace("nodes: 4", "nodes: 0")
        .replace("  gpus_per_node: 8\n", "")
        .replace("3350}", "fast}")
        .replace("recompute: full", "recompute: some")
        .replace("{global: 512}", "{globl: 512}")
    )
    said = refused(tmp_path, text)
    assert "8 problems" in said
    for expected in (
        "line 2: model.transformer.hiden is no field: did you mean hidden?",
        "line 2: model.transformer.hidden is missing",
        "line 3: cluster.gpus_per_node is missing",
        "line 4: cluster.nodes must be a whole number above 0, not 0",
        "line 5: cluster.gpu.memory_gb_per_s must be a number above 0, not 'fast'",
        "line 10: batch.globl is no field: did you mean global?",
        "line 10: batch.global is missing",
        "line 11: training.recompute must be one of none, selective, full, auto, not 'some'",
    ):
        assert expected in said, said


def test_what_the_control_plane_knows_stands_above_the_file(tmp_path: Path):
    read = planfile.read(written(tmp_path, GOOD))
    assert read.spec(live={"nodes": 1, "gpus_per_node": 2}).topology.world_size == 2
    without = GOOD[: GOOD.index("cluster:")] + GOOD[GOOD.index("batch:") :]
    assert "line 1: cluster is missing" in refused(tmp_path, without)
    live = {"nodes": 1, "gpus_per_node": 2, "gpu": "h100"}
    assert planfile.read(written(tmp_path, without)).spec(live=live).topology.device.name == "H100"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a spec is a mapping"),
        ("- a\n", "a spec is a mapping"),
        ("model: [\n", "is no YAML"),
        ("model: " + "[" * 5000, "is no YAML"),
        ("batch: {global: 2026-13-45}\n", "is no YAML"),
        ("batch: {global: .inf}\n", "batch.global must be a whole number"),
        ("batch: {global: true}\n", "batch.global must be a whole number"),
        ("batch: {global: 8}\nbatch: {global: 9}\n", "line 2: batch is given twice"),
        ("batch: &a {global: *a}\nmodel: *a\n", "batch.global must be a whole number"),
        (GOOD.replace("gpu: {tflops", "gpu: h1000 #"), "line 6: cluster.gpu: no GPU named 'h1000' is known"),
        (GOOD.replace("heads: 32, kv", "heads: !!python/object/apply:os.system ['true'], kv"), "is no YAML"),
    ],
)
def test_whatever_is_no_spec_is_refused(tmp_path: Path, text: str, why: str):
    assert why in refused(tmp_path, text)
