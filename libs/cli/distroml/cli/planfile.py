"""Specs for `distroml plan`: a model, a cluster, a batch and how to train, read strictly from YAML.

model: {transformer: {hidden: 8192, layers: 80, heads: 64, kv_heads: 8, ffn: 28672, vocab: 128256, seq: 8192}}
cluster: {nodes: 64, gpus_per_node: 8, gpu: h100, intra_gb_per_s: 450, inter_gb_per_s: 50}
batch: {global: 1024}
training: {optimizer: adamw, precision: bf16, recompute: auto}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from distroml.cli import strict_yaml
from distroml.cli.strict_yaml import Document, Field


def _count(*, required: bool = False) -> Field:
    return Field("whole number", above=0, required=required)


def _amount(*, required: bool = False) -> Field:
    return Field("number", above=0, required=required)


_TRANSFORMER: Mapping[str, Field] = {
    "hidden": _count(required=True),
    "layers": _count(required=True),
    "heads": _count(required=True),
    "kv_heads": _count(),
    "ffn": _count(),
    "vocab": _count(required=True),
    "seq": _count(required=True),
    "params_dtype": Field("text"),
}
_GPU: Mapping[str, Field] = {
    "tflops": _amount(required=True),
    "memory_gib": _amount(required=True),
    "memory_gb_per_s": _amount(required=True),
}
SCHEMA: Mapping[str, Field] = {
    "model": Field(
        "mapping",
        {
            "entry": Field("text"),
            "sample": Field("anything"),
            "loss": Field("text"),
            "transformer": Field("mapping", _TRANSFORMER),
        },
        required=True,
    ),
    "cluster": Field(
        "mapping",
        {
            "nodes": _count(),
            "gpus_per_node": _count(),
            "gpu": Field("text or mapping", _GPU),
            "intra_gb_per_s": _amount(),
            "inter_gb_per_s": _amount(),
            "intra_latency_us": Field("number", above=-1e-9),
            "inter_latency_us": Field("number", above=-1e-9),
        },
    ),
    "batch": Field("mapping", {"global": _count(required=True)}, required=True),
    "training": Field(
        "mapping",
        {
            "optimizer": Field("text"),
            "precision": Field("text"),
            "recompute": Field("text", one_of=("none", "selective", "full", "auto")),
        },
    ),
}


@dataclass(frozen=True, slots=True)
class PlanFile:
    """A spec's values; absent fields are absent. Exactly one of `model.entry` and `model.transformer` is there."""

    document: Document
    path: Path

    @property
    def values(self) -> Mapping[str, Any]:
        """The fields, typed as `SCHEMA` says."""
        return self.document.values


def read(path: Path, *, live: bool = False) -> PlanFile:
    """Read a spec. With `live`, the control plane says how many machines there are.

    Raises:
        UsageError: no such file, no YAML, or fields that are unknown, missing or ill-typed: all of them, each with
            its line.
    """
    document = strict_yaml.read(path, SCHEMA, what="plan's spec", such_as="batch: {global: 512}")
    _check_model(document)
    _check_cluster(document, live=live)
    document.problems.check()
    return PlanFile(document, path)


def _check_model(document: Document) -> None:
    given = document.values.get("model")
    if not isinstance(given, dict):
        return
    model = cast("dict[str, object]", given)
    line = document.line("model")
    if ("entry" in model) == ("transformer" in model):
        text = "`model` takes either `entry: module:factory` with `sample`, or `transformer` with its numbers"
        document.problems.add(line, text + (", not both" if "entry" in model else ""))
    for name in ("entry", "loss"):
        value = model.get(name)
        if isinstance(value, str) and not all(part.strip() for part in value.partition(":")):
            document.problems.add(
                document.line(f"model.{name}"), f"`model.{name}` is `module:name`, such as train:build_model"
            )
    if "entry" in model and "sample" not in model:
        document.problems.add(line, "`model.sample` is missing: `module:function` that returns one microbatch")
    for name in ("sample", "loss"):
        if "transformer" in model and name in model:
            document.problems.add(document.line(f"model.{name}"), f"`model.{name}` goes with `model.entry`")


def _check_cluster(document: Document, *, live: bool) -> None:
    cluster: object = document.values.get("cluster")
    if cluster is None and not live and "cluster" not in document.lines:
        document.problems.add(
            1, "`cluster` is missing: it takes a mapping; --live plans for the control plane's machines"
        )
    if live or not isinstance(cluster, dict):
        return
    given = cast("dict[str, object]", cluster)
    needed = {
        "nodes": "a whole number",
        "gpus_per_node": "a whole number",
        "gpu": "the name of a GPU, or {tflops, memory_gib, memory_gb_per_s}",
    }
    # A link that joins only one thing needs no rate.
    for links, count in (("intra_gb_per_s", "gpus_per_node"), ("inter_gb_per_s", "nodes")):
        if given.get(count, 2) != 1:
            needed[links] = "gigabytes per second, of each GPU and in each direction"
    for name, what in needed.items():
        if name not in given:
            document.problems.add(document.line("cluster"), f"`cluster.{name}` is missing: it takes {what}")
