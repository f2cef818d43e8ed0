"""Words for sentences about a job `j` with nodes a, b, c."""

from __future__ import annotations

from collections.abc import Sequence

from distroml.events import given
from distroml.rendezvous import domain as d

JOB = "j"


def worker(node: str, index: int = 0, attempt: int = 1) -> str:
    return f"{JOB}.{attempt}.{node}.{index}"


def gang(**nodes: int) -> tuple[d.ExpectedMember, ...]:
    return tuple(d.ExpectedMember(node=node, workers=n) for node, n in nodes.items())


PAIR = gang(a=1, b=1)


def by(node: str, attempt: int = 1, agent: str = "") -> d.Sender:
    return d.Sender(attempt=attempt, node=node, agent_id=agent or f"agent-{node}")


def join(
    node: str,
    expected: Sequence[d.ExpectedMember] = PAIR,
    *,
    attempt: int = 1,
    agent: str = "",
    min_workers: int = 0,
    failures_left: int = 1,
    at: int = 0,
) -> d.JoinNode:
    count = next((e.workers for e in expected if e.node == node), 1)
    return d.JoinNode(
        at_ms=at,
        job=JOB,
        sender=by(node, attempt, agent),
        workers=tuple(worker(node, index, attempt) for index in range(count)),
        expected=tuple(expected),
        min_workers=min_workers or sum(e.workers for e in expected),
        failures_left=failures_left,
        join_timeout_s=30,
        store_endpoint=f"{node}.host:29500",
        address=f"{node}.host",
    )


def ready(
    node: str, after: int = 0, *, count: int = 1, agent: str = "", attempt: int = 1, error: str = ""
) -> d.MarkReady:
    workers = tuple(worker(node, index, attempt) for index in range(count))
    return d.MarkReady(at_ms=0, sender=by(node, attempt, agent), after=after, workers=workers, error=error)


def exited(
    node: str,
    generation: int = 1,
    *,
    index: int = 0,
    code: int = 0,
    signal: int = 0,
    message: str = "",
    expected: bool = False,
    agent: str = "",
    attempt: int = 1,
) -> d.ReportExit:
    category = d.FailureCategory.UNSPECIFIED
    if signal:
        category = d.FailureCategory.SIGNAL
    elif code:
        category = d.FailureCategory.EXCEPTION
    return d.ReportExit(
        at_ms=0,
        sender=by(node, attempt, agent),
        worker=worker(node, index, attempt),
        generation=generation,
        code=code,
        signal=signal,
        category=category,
        message=message,
        last_step=7,
        expected=expected,
        traceback="",
    )


def killed(node: str, generation: int = 1, **more: int) -> d.ReportExit:
    return exited(node, generation, signal=9, **more)


def leave(node: str, attempt: int = 1) -> d.Leave:
    return d.Leave(at_ms=0, sender=by(node, attempt), reason="cancelled")


def lost(node: str, agent: str = "") -> d.ReportLost:
    return d.ReportLost(at_ms=0, node=node, agent_id=agent or f"agent-{node}")


def events_of(*commands: d.Command) -> tuple[d.Event, ...]:
    """What has happened after these commands."""
    history: tuple[d.Event, ...] = ()
    state = d.RENDEZVOUS.initial
    for command in commands:
        new = tuple(d.RENDEZVOUS.decide(state, command))
        state = d.RENDEZVOUS.fold(new, since=state)
        history += new
    return history


def after(*commands: d.Command):
    """A sentence that begins with what these commands led to."""
    return given(d.RENDEZVOUS, *events_of(*commands))


def tick(state: d.Rendezvous, waited_s: float) -> d.Tick:
    wait = d.waiting(state)
    assert wait is not None, "the job waits for nothing"
    return d.Tick(at_ms=0, waiting=wait, waited_ms=int(waited_s * 1000))


def kinds(events: object) -> list[str]:
    assert isinstance(events, tuple), f"rejected: {events}"
    return [type(event).__name__ for event in events]


def formed_pair(**more: int) -> tuple[d.Command, ...]:
    return join("a", **more), join("b", **more), ready("a"), ready("b")
