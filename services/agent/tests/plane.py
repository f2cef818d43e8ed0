"""A control plane in this process: the real wire, and behaviour that a test can steer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from grpc import StatusCode, aio

from distroml.api.checkpoint.v1 import checkpoint_pb2 as ckpt
from distroml.api.checkpoint.v1 import checkpoint_pb2_grpc
from distroml.api.rendezvous.v1 import rendezvous_pb2 as rdzv
from distroml.api.rendezvous.v1 import rendezvous_pb2_grpc
from distroml.api.scheduler.v1 import jobs_pb2 as jobs
from distroml.api.scheduler.v1 import jobs_pb2_grpc, nodes_pb2_grpc
from distroml.api.scheduler.v1 import nodes_pb2 as nodes
from distroml.api.telemetry.v1 import telemetry_pb2 as telemetry
from distroml.api.telemetry.v1 import telemetry_pb2_grpc
from distroml.logstore import Block, Line
from distroml.rpc import status
from distroml.rpc.errors import Problem


async def until(true: Callable[[], Any], timeout_s: float = 60.0, what: str = "") -> Any:
    """Wait for something to become true; fail loudly when it does not."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not (found := true()):
        assert loop.time() < deadline, f"not within {timeout_s} s: {what or true}"
        await asyncio.sleep(0.005)
    return found


class Scheduler(nodes_pb2_grpc.NodeServiceServicer, jobs_pb2_grpc.JobServiceServicer):
    """Sends `desired` to whoever connects, keeps what it hears."""

    def __init__(self) -> None:
        self.desired = nodes.DesiredState(revision=1)
        self.hellos: list[nodes.NodeHello] = []
        self.observations: list[nodes.AttemptObservation] = []
        self.applied: list[int] = []
        self.bundles: dict[str, bytes] = {}
        self.acknowledge = True
        self.lease_ttl_s = 30
        self._streams: set[asyncio.Queue[nodes.ConnectResponse]] = set()

    def want(self, *attempts: nodes.DesiredAttempt) -> None:
        self.desired = nodes.DesiredState(revision=self.desired.revision + 1, attempts=attempts)
        for stream in self._streams:
            stream.put_nowait(nodes.ConnectResponse(desired=self.desired))

    async def stopped(self, job: str, rendezvous: Rendezvous) -> None:
        """The job's attempt stopped here, and every end is known: they come by different streams."""
        await until(lambda: "STOPPED" in self.phases(job), what="STOPPED")
        await until(lambda: len(rendezvous.exits()) >= len(rendezvous.starts()), what="an end for each start")

    def phases(self, job: str) -> list[str]:
        names = [nodes.AttemptPhase.Name(o.phase) for o in self.observations if o.job == job and not o.step]
        return [name.removeprefix("ATTEMPT_PHASE_") for name in names]

    async def Connect(self, request_iterator: Any, context: Any) -> AsyncIterator[nodes.ConnectResponse]:
        queue: asyncio.Queue[nodes.ConnectResponse] = asyncio.Queue()
        self._streams.add(queue)

        async def listen() -> None:
            async for request in request_iterator:
                if request.HasField("hello"):
                    self.hellos.append(request.hello)
                elif request.HasField("heartbeat"):
                    self.applied.append(request.heartbeat.applied_revision)
                elif request.HasField("attempt"):
                    self.observations.append(request.attempt)
                    if self.acknowledge:
                        ack = nodes.ObservationAck(observation_ids=[request.attempt.observation_id])
                        queue.put_nowait(nodes.ConnectResponse(ack=ack))

        listener = asyncio.create_task(listen())
        try:
            yield nodes.ConnectResponse(welcome=nodes.NodeWelcome(deployment="dep-1", lease_ttl_s=self.lease_ttl_s))
            yield nodes.ConnectResponse(desired=self.desired)
            while True:
                yield await queue.get()
        finally:
            listener.cancel()
            self._streams.discard(queue)

    async def GetBundle(self, request: jobs.GetBundleRequest, context: Any) -> AsyncIterator[jobs.GetBundleResponse]:
        if request.sha256 not in self.bundles:
            await context.abort(StatusCode.NOT_FOUND, f"no bundle {request.sha256}")
        data = self.bundles[request.sha256]
        for at in range(0, len(data), 1000):
            yield jobs.GetBundleResponse(data=data[at : at + 1000])


@dataclass
class Rendezvous(rendezvous_pb2_grpc.RendezvousServiceServicer):
    """One node's generations: opens one when all joined, forms it when all are ready, breaks it on a bad exit."""

    number: int = 0
    formed: rdzv.Generation | None = None
    failures_left: int = 3
    joins: list[rdzv.JoinNode] = field(default_factory=list)
    readies: list[rdzv.MemberReady] = field(default_factory=list)
    reports: list[rdzv.WorkerReport] = field(default_factory=list)
    leaves: list[str] = field(default_factory=list)
    acknowledge: bool = True
    closed: rdzv.Closed | None = None
    draining: int = 0
    opened: bool = False
    _done: set[str] = field(default_factory=set)
    _stream: asyncio.Queue[rdzv.JoinResponse] | None = None

    def exits(self) -> list[rdzv.WorkerExited]:
        return [report.exited for report in self.reports if report.HasField("exited")]

    def starts(self) -> list[rdzv.WorkerStarted]:
        return [report.started for report in self.reports if report.HasField("started")]

    def pids(self) -> list[int]:
        """Of the newest processes, by rank."""
        newest = {started.rank: started.pid for started in self.starts()}
        return [pid for _, pid in sorted(newest.items())]

    def tell(self, **kind: Any) -> None:
        if self._stream is not None:
            self._stream.put_nowait(rdzv.JoinResponse(**kind))

    def open(self, reason: str) -> None:
        self.number += 1
        self.opened = True
        self.tell(opened=rdzv.GenerationOpened(number=self.number, reason=reason))

    def break_up(self, cause: str, **more: Any) -> None:
        self.tell(broken=rdzv.GenerationBroken(number=self.number, cause=cause, **more))
        self._done.clear()
        self.failures_left -= 1
        if self.failures_left < 0:
            self.close("Failed", category=more.get("category", 0), message=more.get("message", ""))
        else:
            self.open(cause)

    def drain(self, reason: str) -> None:
        self.draining = self.number
        self.tell(drain=rdzv.DrainGeneration(generation=self.number, reason=reason))

    def close(self, outcome: str, **more: Any) -> None:
        self.opened = False
        self.closed = rdzv.Closed(generation=self.number, outcome=outcome, **more)
        self.tell(closed=self.closed)

    async def Join(self, request_iterator: Any, context: Any) -> AsyncIterator[rdzv.JoinResponse]:
        queue: asyncio.Queue[rdzv.JoinResponse] = asyncio.Queue()
        self._stream = queue

        async def listen() -> None:
            first = True
            async for request in request_iterator:
                self._heard(request, first)
                first = False

        listener = asyncio.create_task(listen())
        try:
            while True:
                yield await queue.get()
        finally:
            listener.cancel()

    def _heard(self, request: rdzv.JoinRequest, first: bool) -> None:
        match request.WhichOneof("kind"):
            case "join":
                self.joins.append(request.join)
                self.tell(accepted=rdzv.JoinAccepted(lease_ttl_s=30, generation=self.number))
                if self.closed is not None:
                    self.tell(closed=self.closed)
                elif not self.number:
                    self.open("attempt began")
                elif first and self.opened:
                    self.tell(opened=rdzv.GenerationOpened(number=self.number))
                elif first:
                    self.tell(formed=self.formed)
            case "ready":
                self.readies.append(request.ready)
                if not self.opened and self.draining == request.ready.after == self.number:
                    self.open("drained")
                if self.opened and request.ready.after >= self.number - 1:
                    self._form()
            case "report":
                self._report(request.report)
            case "leave":
                self.leaves.append(request.leave.reason)
            case _:
                pass

    def _form(self) -> None:
        join = self.joins[-1]
        self.opened = False
        self.formed = rdzv.Generation(
            job=join.job,
            number=self.number,
            world_size=len(join.workers),
            members=[
                rdzv.Member(
                    worker=worker,
                    node=join.node,
                    rank=index,
                    local_rank=index,
                    node_rank=0,
                    local_world_size=len(join.workers),
                )
                for index, worker in enumerate(join.workers)
            ],
            store_endpoint=join.store_endpoint,
            attempt=join.attempt,
        )
        self.tell(formed=self.formed)

    def _report(self, report: rdzv.WorkerReport) -> None:
        self.reports.append(report)
        if self.acknowledge:
            self.tell(ack=rdzv.ReportAck(report_ids=[report.report_id]))
        if not report.HasField("exited") or report.generation != self.number or self.opened:
            return
        exited = report.exited
        if exited.expected or self.closed is not None:
            return
        if exited.code == 0 and exited.signal == 0:
            self._done.add(exited.worker)
            if self.formed is not None and len(self._done) == self.formed.world_size:
                self.close("Succeeded")
        else:
            self.break_up("worker exited", worker=exited.worker, category=exited.category, message=exited.message)


class Checkpoints(checkpoint_pb2_grpc.CheckpointServiceServicer):
    """Commits a step when all ranks reported."""

    def __init__(self) -> None:
        self.latest: ckpt.Checkpoint | None = None
        self.shards: dict[int, set[int]] = {}
        self.asked: list[int] = []
        self.refuse = ""
        self.silent = False
        self.full: set[str] = set()
        """What there is no room for."""
        self.refused = 0
        self.failed: list[tuple[int, int, str]] = []
        self.away: list[StatusCode] = []
        """What questions for the newest checkpoint are answered with first."""

    async def BeginSave(self, request: ckpt.BeginSaveRequest, context: Any) -> ckpt.BeginSaveResponse:
        if self.refuse:
            await context.abort(StatusCode.FAILED_PRECONDITION, self.refuse)
        if self.silent:
            await context.abort(StatusCode.DEADLINE_EXCEEDED, "the answer is lost")
        await self._have_room("begin", context)
        return ckpt.BeginSaveResponse(save_id=f"save-{request.step}", object_prefix="checkpoints/x/")

    async def ReportShard(self, request: ckpt.ReportShardRequest, context: Any) -> ckpt.ReportShardResponse:
        await self._have_room("shard", context)
        ranks = self.shards.setdefault(request.step, set())
        ranks.add(request.rank)
        if len(ranks) < request.world_size:
            return ckpt.ReportShardResponse(missing=request.world_size - len(ranks))
        hash = f"hash{request.step}"
        self.latest = ckpt.Checkpoint(job=request.job, step=request.step, manifest_hash=hash)
        return ckpt.ReportShardResponse(committed=True, manifest_hash=hash)

    async def ReportSaveFailed(
        self, request: ckpt.ReportSaveFailedRequest, context: Any
    ) -> ckpt.ReportSaveFailedResponse:
        await self._have_room("failed", context)
        self.failed.append((request.step, request.rank, request.message))
        return ckpt.ReportSaveFailedResponse()

    async def _have_room(self, what: str, context: Any) -> None:
        """Refuse as the catalogue does what its store cannot write."""
        if what in self.full:
            self.refused += 1
            problem = Problem(StatusCode.RESOURCE_EXHAUSTED, "StoreFull", "no room; nothing was written")
            message, details = status.encode(problem)
            await context.abort(problem.code, message, (details,))

    async def GetLatest(self, request: ckpt.GetLatestRequest, context: Any) -> ckpt.GetLatestResponse:
        self.asked.append(request.generation)
        if self.away:
            await context.abort(self.away.pop(0), "the service is going down")
        return ckpt.GetLatestResponse(checkpoint=self.latest)


class Telemetry(telemetry_pb2_grpc.TelemetryServiceServicer):
    """Keeps everything."""

    def __init__(self) -> None:
        self.batches: list[telemetry.PushRequest] = []

    async def Push(self, request_iterator: Any, context: Any) -> AsyncIterator[telemetry.PushResponse]:
        async for batch in request_iterator:
            self.batches.append(batch)
            yield telemetry.PushResponse(sequence=batch.sequence)

    def records(self) -> list[Line]:
        return [line for batch in self.batches for block in batch.log_blocks for line in _block(block).lines()]

    def lines(self, stream: str = "stdout") -> list[str]:
        return [line.text for line in self.records() if line.stream == stream]

    def resources(self) -> list[telemetry.ResourceSample]:
        return [sample for batch in self.batches for sample in batch.resources]

    def steps(self) -> list[int]:
        return [step.step for batch in self.batches for step in batch.steps]


def _block(of: telemetry.LogBlock) -> Block:
    return Block(
        job=of.job, worker=of.worker, incarnation=of.incarnation, stream=of.stream, rank=of.rank,
        generation=of.generation, attempt=of.attempt, at_ms=of.at_ms, trace_id=of.trace_id, offset=of.offset,
        data=of.data,
    )  # fmt: skip


class Plane:
    """All services on one port."""

    def __init__(self) -> None:
        self.scheduler, self.rendezvous = Scheduler(), Rendezvous()
        self.checkpoints, self.telemetry = Checkpoints(), Telemetry()
        self.endpoint = ""
        self._port = 0
        self._server: Any = None

    async def start(self) -> None:
        self._server = aio.server(options=[("grpc.so_reuseport", 0)])
        nodes_pb2_grpc.add_NodeServiceServicer_to_server(self.scheduler, self._server)
        jobs_pb2_grpc.add_JobServiceServicer_to_server(self.scheduler, self._server)
        rendezvous_pb2_grpc.add_RendezvousServiceServicer_to_server(self.rendezvous, self._server)
        checkpoint_pb2_grpc.add_CheckpointServiceServicer_to_server(self.checkpoints, self._server)
        telemetry_pb2_grpc.add_TelemetryServiceServicer_to_server(self.telemetry, self._server)
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        self.endpoint = f"127.0.0.1:{self._port}"
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(0)
