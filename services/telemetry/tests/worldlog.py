"""What tests feed a world with: a job's events in their order, samples of its steps, lines of its output."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence

from google.protobuf.message import Message

from distroml.api.checkpoint.v1 import checkpoint_pb2 as c
from distroml.api.common.v1.common_pb2 import FailureCategory
from distroml.api.rendezvous.v1 import rendezvous_pb2 as r
from distroml.api.scheduler.v1 import events_pb2 as s
from distroml.api.scheduler.v1.jobs_pb2 import JobSpec, Placement, WorkerRange
from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.events import Context, NewEvent, fresh_id
from distroml.eventstore import Append, Commit, EventStore
from distroml.planner import Plan
from distroml.planner.picture import Drawing, Level

DEPLOYMENT = "dep-test"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


class EventLog:
    """Writes public events as the services do."""

    def __init__(self, store: EventStore) -> None:
        self.store = store
        self._versions: dict[str, int] = {}

    async def tell(self, stream: str, *events: tuple[str, Message], at_ms: int = 0, actor: str = "test") -> None:
        service = stream.partition("/")[0]
        new = tuple(
            NewEvent(
                id=fresh_id("ev"), type=f"{service}.{name}" if service == "checkpoint" else name, schema=1, public=True,
                data=body.SerializeToString(),
            )
            for name, body in events
        )  # fmt: skip
        expected = self._versions.get(stream, 0)
        context = Context(
            deployment=DEPLOYMENT, project="default", actor=actor, causation_id="", correlation_id="",
            time_ms=at_ms or now_ms(),
        )  # fmt: skip
        await self.store.commit(Commit(context=context, appends=(Append(stream, expected, new),)))
        self._versions[stream] = expected + len(new)

    async def job(self, job: str, name: str, message: Message, at_ms: int = 0) -> None:
        await self.tell(f"scheduler/job/{job}", (f"scheduler.job.{name}", message), at_ms=at_ms)

    async def submit(self, job: str, *, name: str = "gpt", workers: int = 2, at_ms: int = 0) -> None:
        at = at_ms or now_ms()
        spec = JobSpec(
            name=name, project="default", command=["train.py"], workers=WorkerRange(min=workers, max=workers)
        )
        await self.tell(
            f"scheduler/job/{job}",
            (
                "scheduler.job.Submitted",
                s.JobSubmitted(job=job, spec=spec, at_ms=at, traceparent=f"00-{TRACE_ID}-00f067aa0ba902b7-01"),
            ),
            ("scheduler.job.Queued", s.JobQueued(at_ms=at, reason="WaitingForSlots")),
            at_ms=at,
            actor="ann",
        )

    async def start(self, job: str, *, workers: int = 2, at_ms: int = 0) -> None:
        at = at_ms or now_ms()
        place = [Placement(node="node-a", slots=[f"cpu-{i}" for i in range(workers)])]
        await self.job(job, "AttemptStarted", s.JobAttemptStarted(at_ms=at, attempt=1, placement=place), at)
        await self.generation(job, 1, workers=workers, at_ms=at)
        await self.job(job, "Started", s.JobStarted(at_ms=at, attempt=1, generation=1), at)

    async def generation(self, job: str, number: int, *, workers: int = 2, at_ms: int = 0) -> None:
        at = at_ms or now_ms()
        stream = f"rendezvous/job/{job}"
        members = [r.Member(worker=f"{job}.1.node-a.{i}", node="node-a", rank=i, local_rank=i) for i in range(workers)]
        await self.tell(
            stream,
            ("rendezvous.generation.GenerationOpened", r.GenerationOpened(at_ms=at, job=job, number=number, attempt=1)),
            (
                "rendezvous.generation.GenerationFormed",
                r.GenerationFormed(
                    generation=r.Generation(
                        job=job, number=number, world_size=workers, members=members, mesh={"dp_replicate": workers},
                        at_ms=at, attempt=1,
                    )
                ),
            ),
            at_ms=at,
        )  # fmt: skip
        for i in range(workers):
            started = r.WorkerStarted(
                at_ms=at, worker=f"{job}.1.node-a.{i}", generation=number, rank=i, pid=4000 + 10 * number + i,
                start="warm", node="node-a", seconds=0.2,
            )  # fmt: skip
            await self.tell(stream, ("rendezvous.worker.Started", started), at_ms=at)

    async def lose(self, job: str, number: int, *, rank: int = 1, step: int = 0, at_ms: int = 0) -> None:
        at = at_ms or now_ms()
        worker = f"{job}.1.node-a.{rank}"
        signal = FailureCategory.FAILURE_CATEGORY_SIGNAL
        exited = r.WorkerExited(
            at_ms=at, worker=worker, generation=number, rank=rank, signal=9, category=signal,
            message="killed by SIGKILL", last_step=step,
        )  # fmt: skip
        broken = r.GenerationBroken(
            at_ms=at + 5, number=number, cause="WorkerExited", worker=worker, rank=rank, category=signal,
            message="killed by SIGKILL",
        )  # fmt: skip
        await self.tell(
            f"rendezvous/job/{job}",
            ("rendezvous.worker.Exited", exited),
            ("rendezvous.generation.GenerationBroken", broken),
            at_ms=at,
        )

    async def plan(self, job: str, *, generation: int = 1, step_s: float = 0.24, at_ms: int = 0) -> None:
        at = at_ms or now_ms()
        plan = Plan(pp=2, microbatch=4, grad_accum_steps=8, stages=(3, 3), reasons=("two stages fit, one does not",))
        drawing = Drawing(
            plan=plan,
            name="gpt-stdlib",
            blocks=plan.stages,
            levels=(Level(name="node", ranks=2),),
            microbatches=8,
            forward_s=(step_s / 32,) * 2,
            backward_s=(step_s / 16,) * 2,
            after_s={"optimizer": step_s / 20},
            memory_bytes=({"parameters": 3e8, "activations": 2e8}, {"parameters": 3e8, "activations": 1e8}),
            capacity_bytes=1e9,
            step_seconds=step_s,
        )
        prediction = {
            "step_seconds": step_s,
            "peak_bytes_per_rank": 5e8,
            "parts": {},
            "mfu": 0.31,
            "binding": "the bubble: 18%",
            "drawing": json.loads(drawing.to_json()),
        }
        best = [
            {
                "plan": "dp_replicate=2,microbatch=4",
                "reason": "needs 1.4 GB of the 1 GB there is",
                "prediction": {"step_seconds": 2 * step_s, "peak_bytes_per_rank": 1.4e9},
            }
        ]
        chosen = r.PlanChosen(
            at_ms=at,
            generation=generation,
            plan=plan.to_json(),
            prediction=json.dumps(prediction),
            best=json.dumps(best),
            inputs="{}",
            alternatives_hash="ab" * 32,
        )
        await self.tell(f"rendezvous/job/{job}", ("rendezvous.plan.PlanChosen", chosen), at_ms=at)

    async def measured(self, job: str, *, generation: int = 1, step_s: float, verdict: str, steps: int = 20) -> None:
        measured = r.PlanMeasured(
            at_ms=now_ms(),
            generation=generation,
            steps=steps,
            step_seconds=step_s,
            peak_bytes_per_rank=510_000_000,
            predicted_step_seconds=0.24,
            predicted_peak_bytes_per_rank=500_000_000,
            verdict=verdict,
            message="the next plan is made with it",
        )
        await self.tell(f"rendezvous/job/{job}", ("rendezvous.plan.PlanMeasured", measured))

    async def schemes(self, job: str, *, generation: int = 1, step: int, buckets: int, to: str, why: str) -> None:
        changed = r.SchemeChanged(
            at_ms=now_ms(),
            generation=generation,
            buckets=range(buckets),
            from_scheme="none",
            to_scheme=to,
            reason="LinkSlower",
            why=why,
            from_step=step,
        )
        await self.tell(f"rendezvous/job/{job}", ("rendezvous.compression.SchemeChanged", changed))

    async def advise(self, job: str, *, generation: int = 1, step: int) -> None:
        advised = r.CompressionAdvised(
            at_ms=now_ms(),
            generation=generation,
            step=step,
            step_seconds=0.5,
            exposed_seconds=0.31,
            predicted_step_seconds=0.21,
            faster=2.3,
            schemes="int8",
        )
        await self.tell(f"rendezvous/job/{job}", ("rendezvous.compression.CompressionAdvised", advised))

    async def checkpoint(self, job: str, step: int, *, generation: int = 1, at_ms: int = 0) -> None:
        at = at_ms or now_ms()
        save = f"save-{step}"
        await self.tell(
            f"checkpoint/job/{job}",
            ("Begun", c.Begun(at_ms=at, job=job, save_id=save, step=step, generation=generation, world_size=2)),
            (
                "Committed",
                c.Committed(
                    at_ms=at + 300, save_id=save, step=step, generation=generation, manifest_hash=f"{step:064x}",
                    shards=2, bytes_total=60_000_000, bytes_written=21_500_000 + step, bytes_reused=38_500_000,
                    save_s=0.31,
                ),
            ),
            at_ms=at,
        )  # fmt: skip


def loss_at(step: int) -> float:
    return 1.25 + 4.4 * math.exp(-step / 140) + 0.06 * math.sin(step * 1.7) + 0.04 * math.sin(step * 0.37)


def steps(
    job: str, first: int, last: int, *, generation: int = 1, world: int = 2, total: int = 1000, end_ms: int = 0,
    step_s: float = 0.25,
) -> list[t.StepSample]:  # fmt: skip
    """Samples of steps [first, last] of every rank; the newest ends at `end_ms`."""
    end = end_ms or now_ms()
    return [
        t.StepSample(
            job=job, rank=rank, generation=generation, step=step, total_steps=total,
            at_ms=end - int((last - step) * step_s * 1000), loss=loss_at(step), grad_norm=1.0,
            step_s=step_s * (1 + 0.08 * math.sin(step)), data_wait_s=0.004, samples=16, tokens=16 * 256,
            learning_rate=3e-4, world_size=world,
        )
        for step in range(first, last + 1)
        for rank in range(world)
    ]  # fmt: skip


def lines(
    job: str, texts: Sequence[str], *, rank: int = 0, offset: int = 0, stream: str = "stdout"
) -> list[t.LogRecord]:
    at = now_ms()
    return [
        t.LogRecord(
            job=job, rank=rank, worker=f"{job}.1.node-a.{rank}", generation=1, stream=stream, text=text,
            at_ms=at + i, offset=offset + i * 100,
        )
        for i, text in enumerate(texts)
    ]  # fmt: skip
