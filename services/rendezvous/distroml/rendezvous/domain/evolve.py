"""How each event changes the state; total over every event ever stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import assert_never

from distroml.rendezvous.domain import events as ev
from distroml.rendezvous.domain.model import (
    Cause,
    Drain,
    Ending,
    JoinedNode,
    Mark,
    Phase,
    Rendezvous,
    finished,
    scheme_key,
    scheme_mark,
    scheme_marks,
)

MAX_REPLACED_AGENTS = 16

_OF_GENERATIONS = ("links", "plan", "measured", "scheme", "advice", "step")
"""Marks without a worker: generations count on through attempts, so what they say may come again."""


def evolve(state: Rendezvous, event: ev.Event) -> Rendezvous:
    """The state after `event`."""
    match event:
        case ev.GenerationOpened():
            return _opened(state, event)
        case ev.GenerationFormed(generation=generation):
            joined = {
                name: replace(node, ready=False, error="") if name in generation.nodes else node
                for name, node in state.joined.items()
            }
            return replace(
                state,
                phase=Phase.FORMED,
                formed=generation,
                joined=joined,
                took_part={**state.took_part, **dict.fromkeys(generation.nodes, generation.number)},
                finished=(),
                stopping=False,
                drain=None,
            )
        case ev.GenerationBroken():
            return replace(state, phase=Phase.IDLE)
        case ev.Closed():
            ending = Ending(outcome=event.outcome, category=event.category, reason=event.reason, message=event.message)
            return replace(state, phase=Phase.CLOSED, ending=ending, drain=None, stopping=False)
        case ev.MemberLost(node=node, cause=cause):
            return _without(state, node) if cause == Cause.LEASE_EXPIRED else state
        case ev.DrainBegun():
            drain = Drain(reason=event.reason, expected=event.expected, min_workers=event.min_workers)
            return replace(state, drain=drain)
        case ev.NodeJoined():
            return _joined(state, event)
        case ev.NodeReady(node=node, error=error):
            ready = replace(state.joined[node], ready=True, error=error)
            return replace(state, joined={**state.joined, node: ready})
        case ev.NodeLeft(node=node):
            took_part = state.current is not None and node in state.current.nodes
            stopping = state.stopping or (took_part and state.drain is None)
            return replace(_without(state, node), stopping=stopping)
        case ev.WorkerStarted(worker=worker, generation=generation):
            return _marked(state, f"started/{worker}", (generation, 0))
        case ev.WorkerExited():
            return _exited(state, event)
        case ev.HangDetected(worker=worker, generation=generation, last_step=step):
            return _marked(state, f"hang/{worker}", (generation, step))
        case ev.NonFiniteDetected(worker=worker, generation=generation, step=step):
            return _marked(state, f"nonfinite/{worker}", (generation, step))
        case ev.PlanChosen(generation=generation):
            return _marked(state, "plan", (generation, 0))
        case ev.PlanMeasured(generation=generation, steps=steps):
            return _marked(state, "measured", (generation, steps))
        case ev.LinksProbed(generation=generation):
            return _marked(state, "links", (generation, 0))
        case ev.SchemeChanged():
            return _scheme_changed(state, event)
        case ev.CompressionAdvised(generation=generation):
            return _marked(state, "advice", (generation, 0))
        case ev.StepRecorded(generation=generation, step=step, why=why):
            mark = (generation, step)
            whys = (*state.step_whys, why) if state.marks.get("step") == mark else (why,)
            return _marked(replace(state, step_whys=whys), "step", mark)
        case _:
            assert_never(event)


def _opened(state: Rendezvous, event: ev.GenerationOpened) -> Rendezvous:
    opened = replace(
        state,
        job=event.job,
        attempt=event.attempt,
        number=event.number,
        phase=Phase.OPENING,
        expected=event.expected,
        min_workers=event.min_workers,
        failures_left=event.failures_left,
        join_timeout_s=event.join_timeout_s,
        stopping=False,
        drain=None,
    )
    if event.attempt == state.attempt:
        return opened
    # Worker ids name their attempt, so what was recorded of the older ones cannot come again.
    marks = {key: mark for key, mark in state.marks.items() if key.partition("/")[0] in _OF_GENERATIONS}
    return replace(opened, joined={}, took_part={}, formed=None, finished=(), ending=None, marks=marks)


def _joined(state: Rendezvous, event: ev.NodeJoined) -> Rendezvous:
    before = state.joined.get(event.node)
    replaced: tuple[str, ...] = ()
    ready, error = False, ""
    if before is not None:
        replaced = before.replaced
        if before.agent_id != event.agent_id:
            replaced = (*replaced, before.agent_id)[-MAX_REPLACED_AGENTS:]
        elif before.workers == event.workers:
            ready, error = before.ready, before.error
    node = JoinedNode(
        agent_id=event.agent_id,
        workers=event.workers,
        store_endpoint=event.store_endpoint,
        address=event.address,
        declared=event.declared,
        replaced=replaced,
        ready=ready,
        error=error,
    )
    return replace(state, joined={**state.joined, event.node: node})


def _exited(state: Rendezvous, event: ev.WorkerExited) -> Rendezvous:
    marked = _marked(state, f"exited/{event.worker}", (event.generation, 0))
    formed = state.current
    if formed is None or formed.number != event.generation or formed.member(event.worker) is None:
        return marked
    if event.expected:
        return replace(marked, stopping=state.stopping or state.drain is None)
    if finished(event.code, event.signal, event.category):
        return replace(marked, finished=(*state.finished, event.worker))
    return marked


def _scheme_changed(state: Rendezvous, event: ev.SchemeChanged) -> Rendezvous:
    # A newer generation may have other places. What older ones tell is old news then, and their marks would pile up.
    older = {key for key, mark in scheme_marks(state.marks).items() if mark[0] < event.generation}
    marks = {key: mark for key, mark in state.marks.items() if key not in older}
    mark = scheme_mark(event.generation, event.from_step, event.bucket)
    return _marked(replace(state, marks=marks), scheme_key(event.place), mark)


def _without(state: Rendezvous, node: str) -> Rendezvous:
    joined: Mapping[str, JoinedNode] = {name: n for name, n in state.joined.items() if name != node}
    return replace(state, joined=joined)


def _marked(state: Rendezvous, key: str, mark: Mark) -> Rendezvous:
    return replace(state, marks={**state.marks, key: mark})
