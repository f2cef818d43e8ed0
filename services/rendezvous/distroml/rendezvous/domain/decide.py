"""What follows from a command: pure; refuses with a reason."""

from __future__ import annotations

import hashlib
from typing import assert_never

from distroml.events import Decider, Rejection
from distroml.rendezvous.domain import commands as cmd
from distroml.rendezvous.domain import events as ev
from distroml.rendezvous.domain.draft import Draft
from distroml.rendezvous.domain.evolve import evolve
from distroml.rendezvous.domain.model import (
    MAX_WORKERS,
    Cause,
    ExpectedMember,
    FailureCategory,
    JoinedNode,
    Outcome,
    Phase,
    Rendezvous,
)
from distroml.rendezvous.domain.reports import decide_report, is_place
from distroml.rendezvous.domain.waiting import Wait, limit_ms, waiting

MAX_FORMED_BYTES = 60_000
"""What the members of a generation may take of the log's 64 KiB for an event."""


def decide(state: Rendezvous, command: cmd.Command) -> tuple[ev.Event, ...]:
    """The events that `command` leads to; none where it is old news.

    Raises:
        Rejection: the command contradicts what is decided (`StaleAttempt`, `AgentReplaced`, `NotJoined`,
            `UnknownGeneration`, `UnknownWorker`, `BadGang`, `TooLarge`).
    """
    draft = Draft(state, command.at_ms)
    match command:
        case cmd.JoinNode():
            _join(draft, command)
        case cmd.MarkReady():
            _ready(draft, command)
        case cmd.Leave():
            _leave(draft, command)
        case cmd.ReportLost():
            _lost(draft, command)
        case cmd.Tick():
            _tick(draft, command)
        case (
            cmd.ReportStart()
            | cmd.ReportExit()
            | cmd.ReportHang()
            | cmd.ReportNonFinite()
            | cmd.ReportPlan()
            | cmd.ReportMeasured()
            | cmd.ReportLinks()
            | cmd.ReportScheme()
            | cmd.ReportAdvice()
            | cmd.ReportStep()
        ):
            speaker(state, command.sender)
            decide_report(draft, command)
        case _:
            assert_never(command)
    return tuple(draft.events)


RENDEZVOUS: Decider[Rendezvous, cmd.Command, ev.Event] = Decider(initial=Rendezvous(), decide=decide, evolve=evolve)


def speaker(state: Rendezvous, sender: cmd.Sender) -> JoinedNode:
    """The node that `sender` speaks for; refuses agents of other attempts and those that were replaced."""
    if sender.attempt != state.attempt:
        raise stale_attempt(state, sender.attempt)
    node = state.joined.get(sender.node)
    if node is None:
        raise Rejection(
            "NotJoined",
            f"node {sender.node} takes no part in attempt {state.attempt}: its lease expired or it left; join again",
            node=sender.node,
        )
    if node.agent_id != sender.agent_id:
        raise _replaced(sender)
    return node


def stale_attempt(state: Rendezvous, attempt: int) -> Rejection:
    """The refusal of what belongs to another attempt than the current one."""
    return Rejection(
        "StaleAttempt",
        f"job {state.job} is in attempt {state.attempt}, not {attempt}; end what runs of attempt {attempt}",
        current=str(state.attempt),
        attempt=str(attempt),
    )


def _replaced(sender: cmd.Sender) -> Rejection:
    return Rejection(
        "AgentReplaced",
        f"agent {sender.agent_id} of node {sender.node} was replaced by a newer one; end this agent",
        node=sender.node,
    )


def _join(draft: Draft, c: cmd.JoinNode) -> None:
    _check_gang(c)
    state = draft.state
    if c.sender.attempt < state.attempt:
        raise stale_attempt(state, c.sender.attempt)
    if c.sender.attempt > state.attempt:
        if state.phase in (Phase.OPENING, Phase.FORMED):
            text = f"attempt {c.sender.attempt} began before attempt {state.attempt} had ended"
            draft.close(Outcome.STOPPED, reason="Superseded", message=text)
        draft.open(
            job=c.job,
            attempt=c.sender.attempt,
            reason=f"attempt {c.sender.attempt} began",
            expected=c.expected,
            min_workers=c.min_workers,
            failures_left=c.failures_left,
            join_timeout_s=c.join_timeout_s,
        )
    before = draft.state.joined.get(c.sender.node)
    if before is not None and c.sender.agent_id in before.replaced:
        raise _replaced(c.sender)
    joined = ev.NodeJoined(
        node=c.sender.node,
        agent_id=c.sender.agent_id,
        workers=c.workers,
        store_endpoint=c.store_endpoint,
        address=c.address,
        declared=_digest(c.expected, c.min_workers),
    )
    if before is None or joined != _as_event(c.sender.node, before):
        draft.add(joined)
        # A node that names the gang it named before is repeating itself, however old that gang is by now.
        if draft.state.phase is not Phase.CLOSED and (before is None or before.declared != joined.declared):
            _change_gang(draft, c)
        draft.settle()


def _as_event(name: str, node: JoinedNode) -> ev.NodeJoined:
    return ev.NodeJoined(
        node=name,
        agent_id=node.agent_id,
        workers=node.workers,
        store_endpoint=node.store_endpoint,
        address=node.address,
        declared=node.declared,
    )


def _change_gang(draft: Draft, c: cmd.JoinNode) -> None:
    state = draft.state
    gang = state.drain or state
    if _digest(gang.expected, gang.min_workers) == _digest(c.expected, c.min_workers):
        return
    total = sum(e.workers for e in c.expected)
    reason = f"the gang changes from {state.workers_expected} workers to {total}"
    if state.current is not None:
        draft.add(
            ev.DrainBegun(number=state.current.number, reason=reason, expected=c.expected, min_workers=c.min_workers)
        )
        return
    draft.open(
        job=state.job,
        attempt=state.attempt,
        reason=reason,
        expected=c.expected,
        min_workers=c.min_workers,
        failures_left=state.failures_left,
        join_timeout_s=state.join_timeout_s,
    )


def _digest(expected: tuple[ExpectedMember, ...], min_workers: int) -> str:
    named = sorted((e.node, e.workers) for e in expected)
    return hashlib.sha256(repr((named, min_workers)).encode()).hexdigest()[:16]


def _check_gang(c: cmd.JoinNode) -> None:
    nodes = [e.node for e in c.expected]
    total = sum(e.workers for e in c.expected)
    own = next((e.workers for e in c.expected if e.node == c.sender.node), 0)
    wrong = ""
    if len(set(nodes)) != len(nodes):
        wrong = "a node is named twice"
    elif any(e.workers < 1 for e in c.expected):
        wrong = "a node is named with no worker"
    elif own == 0:
        wrong = f"the joining node {c.sender.node} is not in it"
    elif own != len(c.workers) or len(set(c.workers)) != own:
        wrong = f"node {c.sender.node} is to bring {own} workers and names {len(set(c.workers))}"
    elif not all(is_place(worker, f"{c.job}.{c.sender.attempt}.{c.sender.node}") for worker in c.workers):
        wrong = f"a worker's id is JOB.ATTEMPT.NODE.INDEX; got {', '.join(c.workers)[:200]}"
    elif not 1 <= c.min_workers <= total:
        wrong = f"min_workers is {c.min_workers}; it has to be between 1 and the {total} workers of the gang"
    elif total > MAX_WORKERS:
        wrong = f"it has {total} workers; one generation takes at most {MAX_WORKERS}"
    elif (size := _formed_bytes(c)) > MAX_FORMED_BYTES:
        wrong = f"its names are too long: a formed generation would take {size} bytes of {MAX_FORMED_BYTES}"
    if wrong:
        raise Rejection("BadGang", f"the gang of job {c.job} cannot form: {wrong}", job=c.job, node=c.sender.node)


def _formed_bytes(c: cmd.JoinNode) -> int:
    """An upper bound for `GenerationFormed`, taking every node's address to be about as long as this one's."""
    address = len(c.address.encode()) + 16
    return sum(e.workers * (len(c.job) + 2 * len(e.node) + address + 40) for e in c.expected)


def _ready(draft: Draft, c: cmd.MarkReady) -> None:
    state = draft.state
    node = speaker(state, c.sender)
    if c.after > state.number:
        raise Rejection(
            "UnknownGeneration",
            f"node {c.sender.node} left generation {c.after}, but {state.number} is the newest; join again",
            newest=str(state.number),
        )
    if set(c.workers) != set(node.workers):
        raise Rejection(
            "UnknownWorker",
            f"node {c.sender.node} is ready when all of {', '.join(node.workers)} are; "
            f"got {', '.join(c.workers) or 'none'}",
            node=c.sender.node,
        )
    # Said before the node took part in a newer generation, and late: its workers may still be in that one.
    late = c.after < state.took_part.get(c.sender.node, 0)
    if state.phase is Phase.CLOSED or late or node.ready:
        return
    draft.add(ev.NodeReady(node=c.sender.node, error=c.error))
    draft.settle()


def _leave(draft: Draft, c: cmd.Leave) -> None:
    if c.sender.attempt != draft.state.attempt:
        raise stale_attempt(draft.state, c.sender.attempt)
    if c.sender.node not in draft.state.joined or draft.state.phase is Phase.CLOSED:
        return
    speaker(draft.state, c.sender)
    draft.add(ev.NodeLeft(node=c.sender.node, reason=c.reason))
    if draft.state.joined:
        draft.settle()
    else:
        draft.close(Outcome.STOPPED, reason="Left", message=c.reason)


def _lost(draft: Draft, c: cmd.ReportLost) -> None:
    state = draft.state
    node = state.joined.get(c.node)
    if node is None or node.agent_id != c.agent_id or state.phase is Phase.CLOSED:
        return
    draft.add(
        ev.MemberLost(
            at_ms=c.at_ms,
            generation=state.number,
            node=c.node,
            workers=node.workers,
            cause=Cause.LEASE_EXPIRED,
        )
    )
    formed = state.current
    if state.stopping and not draft.state.joined:
        draft.close(Outcome.STOPPED, reason="Left", message=f"node {c.node}, the last one, was lost while stopping")
    elif formed is None or c.node not in formed.nodes or state.stopping:
        draft.settle()
    else:
        text = f"node {c.node} was not heard of for its lease"
        draft.break_up(Cause.LEASE_EXPIRED, worker="", category=FailureCategory.NODE_LOST, message=text, counted=False)


def _tick(draft: Draft, c: cmd.Tick) -> None:
    limit = limit_ms(draft.state)
    if waiting(draft.state) != c.waiting or limit is None or c.waited_ms < limit:
        return
    match c.waiting.kind:
        case Wait.GATHER:
            draft.settle(c.waited_ms)
        case Wait.LEFT:
            errors = [node.error for node in draft.state.joined.values() if node.ready and node.error]
            text = errors[0] if errors else "no worker said why"
            draft.break_up(Cause.WORKERS_LEFT, category=FailureCategory.EXCEPTION, message=text, counted=True)
        case Wait.STOP:
            text = f"part of it was stopped {limit // 1000} s ago and the rest was not"
            draft.break_up(Cause.STOPPED_IN_PART, message=text, counted=False)
        case Wait.DRAIN:
            text = f"its workers did not leave it within {limit // 1000} s"
            draft.break_up(Cause.DRAIN_TIMED_OUT, message=text, counted=False)
