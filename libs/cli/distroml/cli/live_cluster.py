"""The machines of the running control plane, as the `cluster` of a spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.cli.errors import CliError, UsageError

# Nobody measured these; they are of the right order for a core of a recent CPU.
_CPU_TFLOPS, _CPU_GB_PER_S, _LOOPBACK_GB_PER_S = 0.05, 8.0, 1.5


@dataclass(frozen=True, slots=True)
class LiveCluster:
    """Fields of `cluster`, and what was taken for granted, for people."""

    fields: dict[str, object]
    notes: tuple[str, ...]


def cluster_of(
    nodes: Sequence[jobs_pb2.Node], given: dict[str, object], *, memory_bytes: int | None = None
) -> LiveCluster:
    """The largest even part of the ready nodes: as many as have as many slots of one kind.

    Args:
        nodes: as the scheduler lists them.
        given: `cluster` of the spec: the devices' figures, where the spec knows them.
        memory_bytes: of this machine, for CPU slots that the spec says nothing of.

    Raises:
        CliError: no node is ready.
        UsageError: the nodes have GPUs, and neither the spec nor a node's label `gpu` says which.
    """
    ready = [node for node in nodes if node.state == jobs_pb2.NODE_STATE_READY and node.slots]
    if not ready:
        raise CliError("the control plane has no node that is ready", hint="`distroml nodes` shows their states")
    kinds = {"cuda" if any(slot.kind == "cuda" for slot in node.slots) else "cpu" for node in ready}
    kind = "cuda" if "cuda" in kinds else "cpu"
    counts = sorted((sum(slot.kind == kind for slot in node.slots) for node in ready), reverse=True)
    counts = [count for count in counts if count]
    taken = max(range(1, len(counts) + 1), key=lambda number: (number * counts[number - 1], -number))
    per_node = counts[taken - 1]
    notes = [f"planned for {taken} node{'s' if taken > 1 else ''} with {per_node} {kind} slot{'s' * (per_node > 1)}"]
    if (left := sum(counts) - taken * per_node) > 0:
        notes.append(f"{left} more slots lie unevenly and are left out")
    fields: dict[str, object] = {"nodes": taken, "gpus_per_node": per_node}
    if "gpu" not in given:
        device, note = _device(ready, kind, per_node, memory_bytes)
        fields["gpu"] = device
        notes.append(note)
        if kind == "cpu":
            fields |= {"intra_gb_per_s": _LOOPBACK_GB_PER_S} if "intra_gb_per_s" not in given else {}
    return LiveCluster(fields, tuple(notes))


def _device(nodes: Sequence[jobs_pb2.Node], kind: str, per_node: int, memory_bytes: int | None) -> tuple[object, str]:
    labels = sorted({node.labels["gpu"] for node in nodes if "gpu" in node.labels})
    if labels:
        return labels[0], f"the nodes' label says gpu={labels[0]}"
    if kind == "cuda":
        raise UsageError(
            "the nodes have GPUs, and nobody says which",
            hint="give `cluster: {gpu: NAME}` in the spec, or start the agents with the label gpu=NAME",
        )
    memory_gib = (memory_bytes or 8 * per_node << 30) / per_node / (1 << 30)
    device = {"tflops": _CPU_TFLOPS, "memory_gib": round(memory_gib, 2), "memory_gb_per_s": _CPU_GB_PER_S}
    text = ", ".join(f"{name} {value:g}" for name, value in device.items())
    return device, f"nobody measured these CPU slots; taken as {text} each (give `cluster.gpu` for other figures)"
