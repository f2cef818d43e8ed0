"""A spec for planning on paper or from a model's code, as nested dicts: read strictly, all mistakes told at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from distroml.planner.compressing import NO_COMPRESSION, NONE, SHARD_SCHEMES, Compressing, Tried, compressing
from distroml.planner.compression import AUTO, UnknownScheme, parse_spec, read_wish
from distroml.planner.gpus import custom_gpu, gpu
from distroml.planner.plan import RECOMPUTE, PlanRefused, Recompute
from distroml.planner.topology import Device, Topology, described
from distroml.planner.training import OPTIMIZERS, PRECISIONS, Optimizer, Precision, Training
from distroml.planner.transformer import Transformer

# Without figures, links are taken as the GPU's usual ones: NVLink inside a node, one network port per GPU between.
_USUAL_LINKS_GB_PER_S = {
    "V100": (150, 12.5),
    "A100": (300, 25),
    "H100": (450, 50),
    "H200": (450, 50),
    "B200": (900, 50),
}
_OTHER_LINKS_GB_PER_S = (25, 12.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a spec says.

    Attributes:
        transformer: the model in numbers, or None where it comes from code:
        entry: "module:factory", "" where the model is given in numbers.
        sample: "module:function" that makes one sample batch, or what the spec has there.
        topology: the cluster; None where the spec has none (a live cluster is then asked).
        global_batch: samples of one step.
        training: optimizer and precision.
        recompute: wanted, or None to choose.
    """

    transformer: Transformer | None
    entry: str
    sample: object
    topology: Topology | None
    global_batch: int
    training: Training
    recompute: Recompute | None


class _Reader:
    """Takes fields out of one mapping and remembers everything that is wrong with it."""

    def __init__(self, value: object, place: str, problems: list[str]) -> None:
        self.problems = problems
        self.place = place
        self.known: list[str] = []
        self.fields: dict[str, object] = {}
        if isinstance(value, Mapping):
            self.fields = {str(key): item for key, item in cast("Mapping[object, object]", value).items()}
        else:
            problems.append(f"{place or 'the spec'} must be a mapping of fields, not {value!r}")

    def name(self, field: str) -> str:
        return f"{self.place}.{field}" if self.place else field

    def has(self, field: str) -> bool:
        return self.fields.get(field) is not None

    def any(self, field: str) -> object:
        self.known.append(field)
        return self.fields.get(field)

    def number(self, field: str, *, whole: bool = False, required: bool = False, least: float | None = None) -> Any:
        value = self.any(field)
        words = "a whole number" if whole else "a number"
        if value is None:
            return self._missing(field, words) if required else None
        good = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not good or not (cast("float", value) > 0 if least is None else cast("float", value) >= least):
            bound = "above 0" if least is None else f"of at least {least:g}"
            self.problems.append(f"{self.name(field)} must be {words} {bound}, not {value!r}")
            return None
        return value

    def choice(self, field: str, known: tuple[str, ...]) -> Any:
        value = self.any(field)
        if value is not None and value not in known:
            near = difflib.get_close_matches(str(value), known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            self.problems.append(f"{self.name(field)} must be one of {', '.join(known)}, not {value!r}{hint}")
            return None
        return value

    def flag(self, field: str) -> bool | None:
        value = self.any(field)
        if value is None or isinstance(value, bool):
            return value
        self.problems.append(f"{self.name(field)} must be true or false, not {value!r}")
        return None

    def _missing(self, field: str, words: str) -> None:
        self.problems.append(f"{self.name(field)} is missing: it takes {words}")

    def close(self) -> None:
        for field in self.fields:
            if field not in self.known:
                near = difflib.get_close_matches(field, self.known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(self.known)}"
                self.problems.append(f"{self.name(field)} is no field: {hint}")


def read_spec(spec: object, *, live: bool = False) -> Spec:
    """The spec in `spec`, as a YAML or JSON reader returns it. With `live`, `cluster` may be absent.

    Raises:
        PlanRefused: fields are unknown, missing or ill-typed; the message names each, one a line.
    """
    problems: list[str] = []
    root = _Reader(spec, "", problems)
    parts = {part: root.any(part) for part in ("model", "cluster", "batch", "training")}
    for part in ("model", "batch") if live else ("model", "cluster", "batch"):
        if parts[part] is None:
            problems.append(f"{part} is missing: it takes a mapping of fields")
    root.close()
    batch = _Reader(parts["batch"] or {}, "batch", problems)
    global_batch = batch.number("global", whole=True, required=parts["batch"] is not None)
    batch.close()
    transformer, entry, sample = _model(parts["model"], problems)
    topology = None if parts["cluster"] is None else _cluster(parts["cluster"], problems)
    if transformer and topology and transformer.attention is None and topology.device.flash:
        # What trains on such devices uses tiles, whatever the model's age.
        transformer = replace(transformer, attention="flash")
    how = _Reader(parts["training"] or {}, "training", problems)
    optimizer = cast("Optimizer", how.choice("optimizer", OPTIMIZERS) or "adamw")
    precision = cast("Precision | None", how.choice("precision", PRECISIONS))
    recompute = cast("str | None", how.choice("recompute", (*RECOMPUTE, "auto")))
    packed = _compressing(how, problems)
    how.close()
    if problems:
        raise PlanRefused("\n".join(problems))
    # Stated in numbers, 16-bit parameters are what Megatron's engines store: 32-bit copies accompany them.
    training = Training(
        optimizer=optimizer,
        precision=precision or (transformer.params_dtype if transformer else "fp32"),
        master_weights=transformer is not None,
        compressing=packed,
    )
    wanted = None if recompute in (None, "auto") else cast("Recompute", recompute)
    return Spec(
        transformer=transformer,
        entry=entry,
        sample=sample,
        topology=topology,
        global_batch=cast("int", global_batch),
        training=training,
        recompute=wanted,
    )


def _compressing(how: _Reader, problems: list[str]) -> Compressing:
    wanted = str(how.any("compress") or NONE)
    shard = cast("str", how.choice("compress_shard", SHARD_SCHEMES) or NONE)
    ms_per_mib = how.number("compress_ms_per_mib")
    sync_every = cast("int | None", how.number("sync_every", whole=True)) or 0
    try:
        if read_wish(wanted) == AUTO:
            raise PlanRefused("auto chooses by what is measured on the machines; on paper name a scheme, such as int8")
        return compressing(wanted, shard, tried=worked(ms_per_mib, wanted, shard), sync_every=sync_every)
    except (UnknownScheme, PlanRefused) as error:
        problems.append(f"{how.name('compress')}: {error}")
        return NO_COMPRESSION


def worked(ms_per_mib: float | None, *schemes: str) -> tuple[Tried, ...]:
    """What `distroml bench comm` measured: milliseconds of work for a MiB of float32 gradients; nothing for None."""
    return tuple(
        Tried(parse_spec(scheme).name, 2, ms_per_mib * 1e-3 / (1 << 18)) for scheme in schemes if ms_per_mib is not None
    )


def _model(value: object, problems: list[str]) -> tuple[Transformer | None, str, object]:
    if value is None:
        return None, "", None
    model = _Reader(value, "model", problems)
    entry, sample, numbers = model.any("entry"), model.any("sample"), model.any("transformer")
    model.any("loss")
    model.close()
    if (entry is None) == (numbers is None):
        problems.append(
            "model takes either entry (with sample) or transformer" + ("" if entry is None else ", not both")
        )
        return None, "", None
    if numbers is None:
        if not isinstance(entry, str) or not all(part.strip() for part in entry.partition(":")):
            problems.append(f"model.entry must be 'module:factory', not {entry!r}")
        if sample is None:
            problems.append("model.sample is missing: it takes 'module:function', which returns one sample batch")
        return None, str(entry), sample
    fields = _Reader(numbers, "model.transformer", problems)
    sizes: dict[str, Any] = {}
    for name in ("hidden", "layers", "heads", "vocab", "seq"):
        sizes[name] = fields.number(name, whole=True, required=True)
    for name in ("kv_heads", "ffn"):
        sizes[name] = fields.number(name, whole=True)
    sizes["params_dtype"] = fields.choice("params_dtype", PRECISIONS) or "bf16"
    sizes["attention"] = fields.choice("attention", ("core", "flash"))
    sizes["gated"] = fields.flag("gated")
    fields.close()
    if any(sizes[name] is None for name in ("hidden", "layers", "heads", "vocab", "seq")):
        return None, "", None
    try:
        return Transformer(**sizes), "", None
    except PlanRefused as error:
        problems.append(str(error))
        return None, "", None


def _cluster(value: object, problems: list[str]) -> Topology | None:
    cluster = _Reader(value, "cluster", problems)
    nodes = cluster.number("nodes", whole=True, required=True)
    per_node = cluster.number("gpus_per_node", whole=True, required=True)
    device = _device(cluster.any("gpu"), problems)
    usual = _OTHER_LINKS_GB_PER_S
    if device is not None:
        usual = _USUAL_LINKS_GB_PER_S.get(device.name.partition("-")[0], _OTHER_LINKS_GB_PER_S)
    intra = cluster.number("intra_gb_per_s") or usual[0]
    inter = cluster.number("inter_gb_per_s") or usual[1]
    intra_us = cluster.number("intra_latency_us", least=0)
    inter_us = cluster.number("inter_latency_us", least=0)
    cluster.close()
    if device is None or nodes is None or per_node is None:
        return None
    return described(
        device,
        nodes=nodes,
        devices_per_node=per_node,
        intra_bytes_per_s=intra * 1e9,
        inter_bytes_per_s=inter * 1e9,
        intra_latency_s=(5 if intra_us is None else intra_us) * 1e-6,
        inter_latency_s=(10 if inter_us is None else inter_us) * 1e-6,
    )


def _device(value: object, problems: list[str]) -> Device | None:
    if isinstance(value, str):
        try:
            return gpu(value)
        except PlanRefused as error:
            problems.append(f"cluster.gpu: {error}")
            return None
    if value is None:
        problems.append("cluster.gpu is missing: it takes a name, or {tflops, memory_gib, memory_gb_per_s}")
        return None
    fields = _Reader(value, "cluster.gpu", problems)
    figures = {
        name: fields.number(name, required=isinstance(value, Mapping))
        for name in ("tflops", "memory_gib", "memory_gb_per_s")
    }
    fields.close()
    return None if None in figures.values() else custom_gpu(**figures)
