"""`nodes` and `queue`: the cluster."""

from __future__ import annotations

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.cli import output
from distroml.cli.client import call
from distroml.cli.options import Data, Json


def nodes(data: Data, json: Json = False) -> None:
    """List nodes and who holds their slots."""
    answer = call(data, lambda plane: plane.jobs.ListNodes(jobs_pb2.ListNodesRequest()))
    if json:
        output.print_json([output.as_dict(node) for node in answer.nodes])
        return
    output.table(
        ("NODE", "STATE", "SLOTS", "FREE", "JOBS", "ADDRESS", "SINCE"),
        (
            (
                node.id,
                output.state_text(jobs_pb2.NodeState.Name(node.state)),
                f"{len(node.slots)} {node.slots[0].kind if node.slots else ''}",
                str(sum(not slot.job for slot in node.slots)),
                ", ".join(sorted({slot.job for slot in node.slots if slot.job})),
                node.address,
                output.age(node.since),
            )
            for node in answer.nodes
        ),
        empty="no node has registered yet",
    )


def queue(data: Data, json: Json = False) -> None:
    """List waiting jobs in the order in which they are considered, each with its reason."""
    answer = call(data, lambda plane: plane.jobs.GetQueue(jobs_pb2.GetQueueRequest()))
    if json:
        output.print_json(output.as_dict(answer))
        return
    output.table(
        ("#", "JOB", "NAME", "PRIORITY", "WORKERS", "REASON", "WAITS", ""),
        (
            (
                str(entry.index),
                entry.job,
                entry.name,
                str(entry.priority),
                str(low) if (low := entry.workers.min) == (high := entry.workers.max) else f"{low}..{high}",
                entry.reason,
                output.age(entry.submitted_at),
                entry.message,
            )
            for entry in answer.entries
        ),
        empty="no job waits",
    )
