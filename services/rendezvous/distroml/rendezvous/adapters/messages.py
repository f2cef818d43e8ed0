"""The agent's messages to commands, and events to messages."""

from __future__ import annotations

import re
from typing import TypeVar

from google.protobuf.message import Message

from distroml.api.common.v1 import common_pb2
from distroml.api.rendezvous.v1 import rendezvous_pb2 as pb
from distroml.events import is_name
from distroml.rendezvous import domain as d
from distroml.rendezvous.adapters.codec import PUBLIC_EVENTS
from distroml.rendezvous.domain import events as ev
from distroml.rpc.errors import InvalidArgument

MAX_JOIN_TIMEOUT_S = 3600
DEFAULT_JOIN_TIMEOUT_S = 30
MAX_ID_CHARS = 128

_ENDPOINT = re.compile(r"\S{1,255}:\d{1,5}")


class Malformed(Exception):
    """A report that can never be recorded; the message says why."""


def join_command(message: pb.JoinNode, at_ms: int) -> d.JoinNode:
    """The command of a `join`; raises `InvalidArgument` that names every wrong field."""
    wrong: list[tuple[str, str]] = []

    def check(ok: bool, field: str, text: str) -> None:
        if not ok:
            wrong.append((f"join.{field}", text))

    name = "lower case letters, digits, '.', '_' and '-', at most 63 characters"
    check(is_name(message.job), "job", f"{message.job[:80]!r} names no job: {name}")
    check(is_name(message.node), "node", f"{message.node[:80]!r} names no node: {name}")
    check(not message.project or is_name(message.project), "project", f"{message.project[:80]!r} names no project")
    check(message.attempt >= 1, "attempt", f"attempts count from 1, got {message.attempt}")
    check(0 < len(message.agent_id) <= MAX_ID_CHARS, "agent_id", f"needs 1 to {MAX_ID_CHARS} characters")
    check(0 < len(message.workers) <= d.MAX_WORKERS, "workers", f"needs 1 to {d.MAX_WORKERS} worker ids")
    check(0 < len(message.expected) <= d.MAX_WORKERS, "expected", f"needs 1 to {d.MAX_WORKERS} nodes")
    check(all(is_name(e.node) for e in message.expected), "expected", f"a node's name is malformed: {name}")
    check(message.min_workers >= 0, "min_workers", "is negative; 0 means the whole gang")
    check(message.failures_left >= 0, "failures_left", "is negative")
    text = f"is {message.join_timeout_s}; at most {MAX_JOIN_TIMEOUT_S} s, 0 means {DEFAULT_JOIN_TIMEOUT_S}"
    check(0 <= message.join_timeout_s <= MAX_JOIN_TIMEOUT_S, "join_timeout_s", text)
    text = f"{message.store_endpoint[:80]!r} is no host:port"
    check(_ENDPOINT.fullmatch(message.store_endpoint) is not None, "store_endpoint", text)
    check(len(message.address) <= 255, "address", "has more than 255 characters")
    if wrong:
        raise InvalidArgument(wrong)
    expected = tuple(d.ExpectedMember(node=e.node, workers=e.workers) for e in message.expected)
    total = sum(e.workers for e in expected)
    return d.JoinNode(
        at_ms=at_ms,
        job=message.job,
        sender=d.Sender(attempt=message.attempt, node=message.node, agent_id=message.agent_id),
        workers=tuple(message.workers),
        expected=expected,
        # A gang that the scheduler placed may start, whatever the job asked for first.
        min_workers=min(message.min_workers or total, total),
        failures_left=message.failures_left,
        join_timeout_s=message.join_timeout_s or DEFAULT_JOIN_TIMEOUT_S,
        store_endpoint=message.store_endpoint,
        address=message.address,
    )


def ready_command(message: pb.MemberReady, sender: d.Sender, at_ms: int) -> d.MarkReady:
    """The command of a `ready`."""
    error = d.clip(message.error, 4000)
    return d.MarkReady(at_ms=at_ms, sender=sender, after=message.after, workers=tuple(message.workers), error=error)


def report_command(message: pb.WorkerReport, sender: d.Sender, now_ms: int) -> d.Report:
    """The command of a `report`; raises `Malformed`. The agent's own time of the event is kept where it gives one."""
    match message.WhichOneof("what"):
        case "started":
            s = message.started
            worker, generation = _subject(message, s.worker, s.generation)
            return d.ReportStart(
                at_ms=s.at_ms or now_ms,
                sender=sender,
                worker=worker,
                generation=generation,
                pid=s.pid,
                start=s.start,
                seconds=s.seconds,
                why_cold=s.why_cold,
            )
        case "exited":
            x = message.exited
            worker, generation = _subject(message, x.worker, x.generation)
            return d.ReportExit(
                at_ms=x.at_ms or now_ms,
                sender=sender,
                worker=worker,
                generation=generation,
                code=x.code,
                signal=x.signal,
                category=_category(x.category),
                message=x.message,
                last_step=x.last_step,
                expected=x.expected,
                traceback=x.traceback,
            )
        case "hang":
            h = message.hang
            worker, generation = _subject(message, h.worker, h.generation)
            return d.ReportHang(
                at_ms=h.at_ms or now_ms,
                sender=sender,
                worker=worker,
                generation=generation,
                silent_s=h.silent_s,
                last_step=h.last_step,
            )
        case "non_finite":
            n = message.non_finite
            worker, generation = _subject(message, n.worker, n.generation)
            return d.ReportNonFinite(
                at_ms=n.at_ms or now_ms,
                sender=sender,
                worker=worker,
                generation=generation,
                step=n.step,
                what=n.what,
            )
        case "plan":
            p = message.plan
            _, generation = _subject(message, message.worker, p.generation)
            return d.ReportPlan(
                at_ms=p.at_ms or now_ms,
                sender=sender,
                generation=generation,
                plan=p.plan,
                inputs=p.inputs,
                prediction=p.prediction,
                best=p.best,
                alternatives_hash=p.alternatives_hash,
            )
        case "measured":
            m = message.measured
            _, generation = _subject(message, message.worker, m.generation)
            return d.ReportMeasured(
                at_ms=m.at_ms or now_ms,
                sender=sender,
                generation=generation,
                steps=m.steps,
                step_seconds=m.step_seconds,
                peak_bytes_per_rank=m.peak_bytes_per_rank,
                predicted_step_seconds=m.predicted_step_seconds,
                predicted_peak_bytes_per_rank=m.predicted_peak_bytes_per_rank,
                parts=m.parts,
                verdict=m.verdict,
                message=m.message,
            )
        case "links":
            k = message.links
            _, generation = _subject(message, message.worker, k.generation)
            return d.ReportLinks(
                at_ms=k.at_ms or now_ms,
                sender=sender,
                generation=generation,
                topology=k.topology,
                seconds=k.seconds,
                reused=k.reused,
                sums=k.sums,
            )
        case "scheme":
            c = message.scheme
            _, generation = _subject(message, message.worker, c.generation)
            return d.ReportScheme(
                at_ms=c.at_ms or now_ms,
                sender=sender,
                generation=generation,
                buckets=tuple(sorted({*c.buckets} or {c.bucket})),
                from_scheme=c.from_scheme,
                to_scheme=c.to_scheme,
                reason=c.reason,
                why=c.why,
                from_step=c.from_step,
                place=c.place,
            )
        case "advice":
            a = message.advice
            _, generation = _subject(message, message.worker, a.generation)
            return d.ReportAdvice(
                at_ms=a.at_ms or now_ms,
                sender=sender,
                generation=generation,
                step=a.step,
                step_seconds=a.step_seconds,
                exposed_seconds=a.exposed_seconds,
                predicted_step_seconds=a.predicted_step_seconds,
                faster=a.faster,
                schemes=a.schemes,
            )
        case "step":
            t = message.step
            _, generation = _subject(message, message.worker, t.generation)
            return d.ReportStep(
                at_ms=t.at_ms or now_ms,
                sender=sender,
                generation=generation,
                step=t.step,
                sample_from=t.sample_from,
                sample_to=t.sample_to,
                epoch=t.epoch,
                loss=t.loss,
                fingerprint=t.fingerprint,
                why=t.why,
            )
        case _:
            raise Malformed("the report does not say what happened; it may come from a newer agent")


def _subject(message: pb.WorkerReport, worker: str, generation: int) -> tuple[str, int]:
    """Worker and generation, which a report names outside, inside or alike in both places."""
    if message.worker and worker and message.worker != worker:
        raise Malformed(f"the report is about worker {message.worker[:200]!r} and about {worker[:200]!r}")
    if message.generation and generation and message.generation != generation:
        raise Malformed(f"the report is about generation {message.generation} and about {generation}")
    return message.worker or worker, message.generation or generation


def _category(value: int) -> d.FailureCategory:
    try:
        name = common_pb2.FailureCategory.Name(value)  # pyright: ignore[reportArgumentType] - any number may come
        return d.FailureCategory(name.removeprefix("FAILURE_CATEGORY_"))
    except ValueError:
        return d.FailureCategory.UNSPECIFIED


def event_response(event: d.Event) -> pb.JoinResponse | None:
    """What the joined agents are told of an event, None for nothing."""
    match event:
        case ev.GenerationOpened():
            return pb.JoinResponse(opened=_message(event, pb.GenerationOpened))
        case ev.GenerationFormed():
            return pb.JoinResponse(formed=_message(event, pb.GenerationFormed).generation)
        case ev.GenerationBroken():
            return pb.JoinResponse(broken=_message(event, pb.GenerationBroken))
        case ev.Closed():
            return pb.JoinResponse(closed=_message(event, pb.Closed))
        case ev.DrainBegun():
            return _drain(event.number, event.reason)
        case _:
            return None


def standing(state: d.Rendezvous, node: str) -> list[pb.JoinResponse]:
    """What a node that joins is told of where the job stands."""
    match state.phase:
        case d.Phase.IDLE:
            return []
        case d.Phase.OPENING:
            return [_opened(state)]
        case d.Phase.FORMED:
            assert state.formed is not None
            if node not in state.formed.nodes:
                return [_opened(state)]
            formed = pb.JoinResponse(formed=generation_message(state.formed))
            return [formed, *([_drain(state.formed.number, state.drain.reason)] if state.drain else [])]
        case d.Phase.CLOSED:
            return [_closed(state)]


def _opened(state: d.Rendezvous) -> pb.JoinResponse:
    opened = ev.GenerationOpened(
        at_ms=0,
        job=state.job,
        number=state.number,
        attempt=state.attempt,
        reason="the newest generation",
        expected=state.expected,
        min_workers=state.min_workers,
        failures_left=state.failures_left,
        join_timeout_s=state.join_timeout_s,
    )
    return pb.JoinResponse(opened=_message(opened, pb.GenerationOpened))


def _closed(state: d.Rendezvous) -> pb.JoinResponse:
    assert state.ending is not None
    closed = ev.Closed(
        at_ms=0,
        generation=state.number,
        outcome=state.ending.outcome,
        category=state.ending.category,
        reason=state.ending.reason,
        message=state.ending.message,
        attempt=state.attempt,
    )
    return pb.JoinResponse(closed=_message(closed, pb.Closed))


def generation_message(generation: d.Generation) -> pb.Generation:
    """The public form of a formed generation."""
    return _message(ev.GenerationFormed(generation=generation), pb.GenerationFormed).generation


M = TypeVar("M", bound=Message)


def _message(event: ev.PublicEvent, cls: type[M]) -> M:
    return cls.FromString(PUBLIC_EVENTS.encode(event, id="").data)


def _drain(number: int, reason: str) -> pb.JoinResponse:
    return pb.JoinResponse(drain=pb.DrainGeneration(generation=number, reason=reason))
