"""Recorded events of jobs without a log, for tests of history."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import Message

from distroml.api.checkpoint.v1 import checkpoint_pb2 as c
from distroml.api.rendezvous.v1 import rendezvous_pb2 as r
from distroml.api.scheduler.v1 import events_pb2 as s
from distroml.api.scheduler.v1.jobs_pb2 import JobSpec, Placement, WorkerRange
from distroml.events import Context, Position, Recorded
from distroml.telemetry.history.port import History
from distroml.telemetry.projecting import Reader

DAY_MS = 86_400_000
HOUR_MS = 3_600_000


class Story:
    """Tells events one after another, each at a position and version of its own."""

    def __init__(self, log: str = "log-a") -> None:
        self.log = log
        self.at: Position | None = None
        self._revision = 0
        self._versions: dict[str, int] = {}
        self.reader = Reader()

    def event(self, stream: str, type_: str, body: Message | bytes, *, at_ms: int = 0) -> Recorded:
        self._revision += 1
        version = self._versions[stream] = self._versions.get(stream, 0) + 1
        return Recorded(
            id=f"ev-{self._revision}",
            type=type_,
            schema=1,
            public=True,
            data=body if isinstance(body, bytes) else body.SerializeToString(),
            stream=stream,
            version=version,
            position=Position(self.log, self._revision, 0),
            context=Context(
                deployment="dep", project="default", actor="ann", causation_id="", correlation_id="", time_ms=at_ms
            ),
        )

    def submitted(self, job: str, *, at_ms: int = 1000, project: str = "default", name: str = "gpt") -> list[Recorded]:
        spec = JobSpec(name=name, project=project, command=["train.py"], workers=WorkerRange(min=2, max=4))
        stream = f"scheduler/job/{job}"
        return [
            self.event(stream, "scheduler.job.Submitted", s.JobSubmitted(job=job, spec=spec, at_ms=at_ms)),
            self.event(stream, "scheduler.job.Queued", s.JobQueued(at_ms=at_ms, reason="WaitingForSlots")),
        ]

    def started(self, job: str, *, at_ms: int, slots: int = 2, attempt: int = 1) -> list[Recorded]:
        place = [Placement(node="node-a", slots=[f"cpu-{i}" for i in range(slots)])]
        stream = f"scheduler/job/{job}"
        begun = s.JobAttemptStarted(at_ms=at_ms, attempt=attempt, placement=place)
        return [
            self.event(stream, "scheduler.job.AttemptStarted", begun),
            self.event(stream, "scheduler.job.Started", s.JobStarted(at_ms=at_ms, attempt=attempt, generation=1)),
        ]

    def resized(self, job: str, *, at_ms: int, slots: int) -> list[Recorded]:
        place = [Placement(node="node-a", slots=[f"cpu-{i}" for i in range(slots)])]
        return [self.event(f"scheduler/job/{job}", "scheduler.job.Resized", s.JobResized(at_ms=at_ms, placement=place))]

    def ended(self, job: str, *, at_ms: int = 5000) -> list[Recorded]:
        return [self.event(f"scheduler/job/{job}", "scheduler.job.Succeeded", s.JobSucceeded(at_ms=at_ms))]

    def planned(self, job: str, generation: int, hash_: str) -> list[Recorded]:
        chosen = r.PlanChosen(at_ms=1, generation=generation, alternatives_hash=hash_)
        return [self.event(f"rendezvous/job/{job}", "rendezvous.plan.PlanChosen", chosen)]

    def saved(self, job: str, step: int) -> list[Recorded]:
        begun = c.Begun(at_ms=1, job=job, save_id=f"s{step}", step=step, generation=1, world_size=2)
        return [self.event(f"checkpoint/job/{job}", "checkpoint.Begun", begun)]

    def event_unknown(self, job: str) -> list[Recorded]:
        return [self.event(f"scheduler/job/{job}", "scheduler.job.TurnedIntoAPumpkin", b"\xff")]

    async def told(self, history: History, *events: Recorded) -> set[str]:
        """Apply where the last call ended."""
        cursor = events[-1].position
        changed = await history.apply(self.reader.projected(events), after=self.at, cursor=cursor)
        self.at = cursor
        return changed

    async def told_again(self, history: History, events: Sequence[Recorded]) -> set[str]:
        """The same events once more, under a cursor that moves on."""
        self._revision += 1
        cursor = Position(self.log, self._revision, 0)
        changed = await history.apply(self.reader.projected(events), after=self.at, cursor=cursor)
        self.at = cursor
        return changed
