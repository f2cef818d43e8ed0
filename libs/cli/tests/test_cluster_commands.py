"""What is said of one node, over real gRPC to a scheduler that remembers what it was asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.api.scheduler.v1 import jobs_pb2_grpc
from distroml.cli.errors import UsageError
from distroml.cli.main import app


class Scheduler(jobs_pb2_grpc.JobServiceServicer):
    """Knows one node, `node-a`."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def CordonNode(self, request: pb.CordonNodeRequest, context: grpc.ServicerContext) -> pb.Node:
        return self._answer(request.node, request.request_id, pb.NODE_STATE_DRAINED, context)

    def UncordonNode(self, request: pb.UncordonNodeRequest, context: grpc.ServicerContext) -> pb.Node:
        return self._answer(request.node, request.request_id, pb.NODE_STATE_READY, context)

    def _answer(self, node: str, request: str, state: pb.NodeState.ValueType, context: grpc.ServicerContext) -> pb.Node:
        if node != "node-a":
            context.abort(grpc.StatusCode.NOT_FOUND, "there is no such node")
        self.asked.append(request)
        return pb.Node(id=node, state=state)


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scheduler]:
    made, server = Scheduler(), grpc.server(ThreadPoolExecutor(1))
    jobs_pb2_grpc.add_JobServiceServicer_to_server(made, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    (tmp_path / "token").write_text("secret")
    monkeypatch.setenv("DISTROML_TOKEN_FILE", str(tmp_path / "token"))
    for name in ("SCHEDULER", "RENDEZVOUS", "CHECKPOINT", "TELEMETRY"):
        monkeypatch.setenv(f"DISTROML_{name}", address)
    yield made
    server.stop(None).wait()


def test_a_node_is_taken_out_and_back(scheduler: Scheduler) -> None:
    run = CliRunner().invoke
    assert run(app, ["node", "cordon", "node-a"]).stdout == "node-a is drained\n"
    assert run(app, ["node", "uncordon", "node-a"]).stdout == "node-a is ready\n"
    told = json.loads(run(app, ["node", "cordon", "node-a", "--json"]).stdout)
    assert (told["id"], told["state"]) == ("node-a", "NODE_STATE_DRAINED")
    # Each is a wish of its own: none is taken for the one before it.
    assert len(set(scheduler.asked)) == 3
    assert all(scheduler.asked)


def test_a_node_that_nobody_knows_is_named(scheduler: Scheduler) -> None:
    done = CliRunner().invoke(app, ["node", "cordon", "node-b"])
    assert isinstance(done.exception, UsageError)
    assert "no such node" in done.exception.message
    assert not scheduler.asked
