"""What gradients sent and how, in few enough words for labels and series."""

from __future__ import annotations

from collections.abc import Mapping

WIRE_AXES = ("dp_replicate", "dp_shard", "tp", "pp", "cp", "ep", "other")
SCHEME_KINDS = (
    "none", "bf16", "fp16", "int8", "int4", "sign", "topk", "randomk", "powersgd", "agreement", "probe",
    "other",
)  # fmt: skip


def wire_way(text: str) -> tuple[str, str, str]:
    """Axis, level and scheme of `AXIS/LEVEL/SCHEME`; an axis that no mesh has is `other`."""
    axis, _, rest = text.partition("/")
    level, _, scheme = rest.partition("/")
    return axis if axis in WIRE_AXES else "other", level, scheme


def scheme_kind(scheme: str) -> str:
    """The kind of a scheme without its settings: `powersgd` of `powersgd:4+int8`; `other` for what is not known."""
    kind = scheme.partition(":")[0].partition("+")[0]
    return kind if kind in SCHEME_KINDS else "other"


def wire_values(wire_bytes: Mapping[str, int]) -> dict[str, float]:
    """The series of a step's bytes: their sum, and by axis and kind of scheme."""
    if not wire_bytes:
        return {}
    values: dict[str, float] = {"wire_bytes": float(sum(wire_bytes.values()))}
    for way, sent in wire_bytes.items():
        axis, _, scheme = wire_way(way)
        name = f"wire_bytes/{axis}/{scheme_kind(scheme)}"
        values[name] = values.get(name, 0.0) + sent
    return values
