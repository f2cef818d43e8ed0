"""`nodes`, `node …` and `queue`: the cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.cli import output
from distroml.cli.client import Plane, call
from distroml.cli.options import Data, Json
from distroml.events import fresh_id

app = typer.Typer(no_args_is_help=True, help="Take one node out of use and back.")

NodeName: TypeAlias = Annotated[str, typer.Argument(metavar="NODE", help="Node id, as `nodes` lists it.")]


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


@app.command()
def cordon(node: NodeName, data: Data, json: Json = False) -> None:
    """Place nothing new on the node; what runs there goes on, and the node is drained when nothing is left."""
    request = jobs_pb2.CordonNodeRequest(node=node, request_id=fresh_id("req"))
    _steer(data, json, lambda plane: plane.jobs.CordonNode(request))


@app.command()
def uncordon(node: NodeName, data: Data, json: Json = False) -> None:
    """Let the node take gangs again."""
    request = jobs_pb2.UncordonNodeRequest(node=node, request_id=fresh_id("req"))
    _steer(data, json, lambda plane: plane.jobs.UncordonNode(request))


def _steer(data: Path, json: bool, action: Callable[[Plane], Awaitable[jobs_pb2.Node]]) -> None:
    answer = call(data, action)
    if json:
        output.print_json(output.as_dict(answer))
    else:
        output.out.print(f"{answer.id} is {output.state_text(jobs_pb2.NodeState.Name(answer.state))}")


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
