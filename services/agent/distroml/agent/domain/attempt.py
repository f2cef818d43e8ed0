"""What an agent does about one attempt: `step(state, input)` is pure and total.

The shell feeds in what rendezvous, workers, holders and the scheduler say, in the order in which it heard it, and
carries out the effects in order. The rules are those of docs/architecture.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from distroml.agent.domain import ending, gang, generations, inputs, workers
from distroml.agent.domain.decision import Step
from distroml.agent.domain.effects import Effect
from distroml.agent.domain.gang import Attempt, Order, Phase
from distroml.agent.domain.inputs import Input


def step(state: Attempt, happened: Input) -> tuple[Attempt, tuple[Effect, ...]]:
    """The state after `happened`, and what is to be done. Old news changes nothing."""
    s = Step(state)
    match happened:
        case inputs.Prepared():
            s.set(prepared=True)
            if s.state.order is None and not s.state.closed:
                s.do(generations.join(s.state))
        case inputs.PrepareFailed(message=message):
            ending.give_up(s, message)
        case inputs.Accepted():
            s.set(joined=True, ready_said=-1)
        case inputs.JoinEnded():
            s.set(joined=False)
        case inputs.Opened(number=number):
            generations.note_opened(s, number)
        case inputs.GenerationIs(formed=formed):
            generations.take_formed(s, formed)
        case inputs.Broke(number=number, cause=cause):
            generations.leave_broken(s, number, cause)
        case inputs.DrainAsked(number=number, reason=reason):
            generations.drain(s, number, reason)
        case inputs.WasClosed(outcome=outcome, category=category, message=message):
            ending.close(s, outcome, category, message)
        case inputs.RestoreIs(number=number, restore=restore):
            if s.state.current is not None and s.state.current.number == number:
                s.set(restore_known=True, restore=restore)
        case inputs.Exited():
            workers.note_exit(s, happened)
        case inputs.SaidHello():
            workers.greet(s, happened)
        case inputs.LinkLost(worker=worker):
            s.change(worker, lambda p: replace(p, connected=False))
        case inputs.Awaits():
            after, error = max(0, happened.after), happened.error
            s.change(happened.worker, lambda p: replace(p, awaiting_after=after, managed=True, error=error))
        case inputs.Hung():
            workers.end_hung(s, happened)
        case inputs.Overdue():
            workers.end_overdue(s, happened)
        case inputs.Ordered(order=order):
            ending.take_order(s, order)
        case inputs.Resized(workers=taking_part):
            workers.resize(s, taking_part)
        case inputs.Removed():
            if s.state.phase not in (Phase.STOPPED, Phase.FAILED):
                ending.take_order(s, Order(reason="Removed", grace_s=gang.REMOVED_GRACE_S, checkpoint=False))
        case _:
            assert_never(happened)
    _go_on(s)
    return s.state, tuple(s.effects)


def _go_on(s: Step) -> None:
    """Whatever the state now allows."""
    workers.drop_leaving(s)
    if s.state.order is not None:
        ending.finish(s)
        return
    if not s.state.prepared or s.state.phase is Phase.FAILED:
        return
    current = s.state.current
    if current is not None and s.state.restore_known:
        generations.deliver(s, current)
    generations.be_ready(s)
