"""What an agent does about one attempt: `step(state, input)` is pure and total.

The shell feeds in what rendezvous, workers, holders and the scheduler say, in the order in which it heard it, and
carries out the effects in order. The rules are those of docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

from distroml.agent.domain import effects, gang, inputs
from distroml.agent.domain.effects import Effect, Step
from distroml.agent.domain.exits import Category, Intent
from distroml.agent.domain.gang import Attempt, Order, Phase, Place, Process
from distroml.agent.domain.inputs import Input
from distroml.workerlink import Drain, Generation, GenerationBroken, Stop


def step(state: Attempt, happened: Input) -> tuple[Attempt, tuple[Effect, ...]]:
    """The state after `happened`, and what is to be done. Old news changes nothing."""
    s = Step(state)
    match happened:
        case inputs.Prepared():
            _set(s, prepared=True)
            if s.state.order is None and not s.state.closed:
                s.do(_join(s.state))
        case inputs.PrepareFailed(message=message):
            _prepare_failed(s, message)
        case inputs.Accepted():
            _set(s, joined=True, ready_said=-1)
        case inputs.JoinEnded():
            _set(s, joined=False)
        case inputs.Opened(number=number):
            _opened(s, number)
        case inputs.GenerationIs(formed=formed):
            _formed(s, formed)
        case inputs.Broke(number=number, cause=cause):
            _broke(s, number, cause)
        case inputs.DrainAsked(number=number, reason=reason):
            _drain(s, number, reason)
        case inputs.WasClosed(outcome=outcome, category=category, message=message):
            _closed(s, outcome, category, message)
        case inputs.RestoreIs(number=number, restore=restore):
            if s.state.current is not None and s.state.current.number == number:
                _set(s, restore_known=True, restore=restore)
        case inputs.Exited():
            _exited(s, happened)
        case inputs.SaidHello():
            _hello(s, happened)
        case inputs.LinkLost(worker=worker):
            _process(s, worker, lambda p: replace(p, connected=False))
        case inputs.Awaits():
            after, error = max(0, happened.after), happened.error
            _process(s, happened.worker, lambda p: replace(p, awaiting_after=after, managed=True, error=error))
        case inputs.Hung():
            _hung(s, happened)
        case inputs.Overdue():
            _overdue(s, happened)
        case inputs.Ordered(order=order):
            _order(s, order)
        case inputs.Resized(workers=workers):
            _resize(s, workers)
        case inputs.Removed():
            if s.state.phase not in (Phase.STOPPED, Phase.FAILED):
                _order(s, Order(reason="Removed", grace_s=gang.REMOVED_GRACE_S, checkpoint=False))
        case _:
            assert_never(happened)
    _go_on(s)
    return s.state, tuple(s.effects)


# ---- generations


def _join(state: Attempt) -> effects.Join:
    return effects.Join(state.running_generation, state.workers)


def _prepare_failed(s: Step, message: str) -> None:
    if s.state.phase in (Phase.STOPPED, Phase.FAILED):
        return
    if s.state.joined and not s.state.left:
        _set(s, left=True)
        s.do(effects.Leave(message))
    for place in s.state.places:
        if place.process is not None and not place.process.doomed:
            _end(s, place, Intent.STOP, message, grace_s=0)
    _set(s, phase=Phase.FAILED, category=Category.SETUP, message=message)
    s.do(effects.Observe(Phase.FAILED, Category.SETUP, message))


def _opened(s: Step, number: int) -> None:
    if number <= s.state.opened:
        return
    _set(s, opened=number, ready_said=-1)
    # A newer generation is open: whatever was formed before it is over, also where the message that says so was lost.
    if s.state.formed is not None and s.state.formed.number < number:
        _broke(s, s.state.formed.number, f"generation {number} was opened")


def _formed(s: Step, formed: gang.Formed) -> None:
    known = s.state.formed
    if formed.number <= s.state.broken or (known is not None and formed.number < known.number):
        return
    if known is None or formed.number > known.number:
        _set(s, formed=formed, restore_known=False, restore=None, store_used=True)
        if _wanted(s.state):
            s.do(effects.AskRestore(formed.number))
    elif not s.state.restore_known and _wanted(s.state):
        s.do(effects.AskRestore(formed.number))
    _set(s, opened=max(s.state.opened, formed.number))
    for place in s.state.places:
        process = place.process
        if process is not None and process.generation < formed.number and not process.awaiting:
            _end(s, place, Intent.BROKEN, f"it belongs to an older generation than {formed.number}", grace_s=0)


def _broke(s: Step, number: int, cause: str) -> None:
    if number <= s.state.broken:
        return
    _set(s, broken=number)
    for place in s.state.places:
        process = place.process
        if process is None or process.generation > number or process.awaiting or process.doomed:
            continue
        if not process.managed or not s.state.reforms:
            _end(s, place, Intent.BROKEN, f"generation {number} broke: {cause}", grace_s=0)
            continue
        _process(s, place.worker, lambda p: replace(p, why=f"generation {number} broke: {cause}"))
        if process.connected:
            s.do(effects.Tell(place.worker, GenerationBroken(number=number, cause=cause)))
        s.do(_overdue_in(gang.TEARDOWN_S, place, process, Intent.BROKEN, number))


def _drain(s: Step, number: int, reason: str) -> None:
    if s.state.current is None or s.state.current.number != number or s.state.order is not None:
        return
    _set(s, draining=number)
    for place in s.state.places:
        process = place.process
        if process is None or process.awaiting or process.doomed or process.intent is not Intent.NONE:
            continue
        if process.managed and process.connected:
            s.do(effects.Tell(place.worker, Drain(number=number, reason=reason)))
        else:
            _end(s, place, Intent.DRAIN, f"generation {number} drains: {reason}", grace_s=s.state.grace_s)


def _closed(s: Step, outcome: str, category: Category, message: str) -> None:
    if s.state.closed:
        return
    _set(s, closed=True, joined=False, category=category, message=message)
    if s.state.order is None:
        _order(s, Order(reason=outcome, grace_s=min(s.state.grace_s, gang.REMOVED_GRACE_S), checkpoint=False))


def _resize(s: Step, workers: tuple[str, ...]) -> None:
    if s.state.order is not None:
        return
    kept = [replace(place, leaving=place.worker not in workers) for place in s.state.places]
    known = {place.worker for place in kept}
    back = {place.worker: place for place in s.state.retired}
    kept += [back.get(worker, Place(worker=worker)) for worker in workers if worker not in known]
    retired = tuple(place for place in s.state.retired if place.worker not in workers)
    _set(s, places=tuple(kept), retired=retired, ready_said=-1)
    if s.state.prepared:
        _set(s, joined=False, store_used=False)
        s.do(_join(s.state))


# ---- workers


def _hello(s: Step, hello: inputs.SaidHello) -> None:
    place = _place(s, hello.worker)
    if place is None or place.process is None or place.process.doomed:
        return
    _process(s, hello.worker, lambda p: replace(p, connected=True, managed=hello.managed, awaiting_after=-1))
    if s.state.order is not None:
        _ask_to_stop(s, s.state.order, only=hello.worker)
    elif 0 < place.process.generation <= s.state.broken:
        cause = place.process.why or "a member was lost"
        s.do(effects.Tell(hello.worker, GenerationBroken(number=place.process.generation, cause=cause)))


def _exited(s: Step, exited: inputs.Exited) -> None:
    place = _place(s, exited.worker)
    if place is None or place.process is None or place.process.incarnation != exited.incarnation:
        return
    process = place.process
    s.do(effects.ReportExit(place.worker, process.generation, process.rank, exited.verdict))
    _put(s, replace(place, process=None, ended_in=process.generation))
    if not exited.verdict.succeeded and not exited.verdict.expected:
        _set(s, category=exited.verdict.category, message=exited.verdict.message)


def _hung(s: Step, hung: inputs.Hung) -> None:
    place = _place(s, hung.worker)
    if place is None or place.process is None or place.process.incarnation != hung.incarnation:
        return
    if place.process.doomed:
        return
    process = place.process
    s.do(effects.ReportHang(place.worker, process.generation, process.rank, hung.silent_s, hung.last_step))
    _end(s, place, Intent.HANG, hung.message, grace_s=0)


def _overdue(s: Step, late: inputs.Overdue) -> None:
    place = _place(s, late.worker)
    if place is None or place.process is None or place.process.incarnation != late.incarnation:
        return
    if late.what is Intent.BROKEN:
        if place.process.awaiting or place.process.generation > late.number:
            return
        text = f"it did not leave generation {late.number} within {gang.TEARDOWN_S:.0f} s"
    else:
        text = place.process.why or "its time to stop was over"
    _end(s, place, late.what, text, grace_s=0)


def _order(s: Step, order: Order) -> None:
    if s.state.order is not None:
        harder = order.grace_s < s.state.order.grace_s
        if not harder:
            return
    _set(s, order=order)
    _ask_to_stop(s, order)


def _ask_to_stop(s: Step, order: Order, only: str = "") -> None:
    text = f"the attempt ends: {order.reason}"
    for place in s.state.places:
        process = place.process
        if process is None or process.doomed or (only and place.worker != only):
            continue
        if process.managed and process.connected:
            message = Stop(reason=order.reason, grace_s=max(1, int(order.grace_s)), checkpoint=order.checkpoint)
            s.do(effects.Tell(place.worker, message), _overdue_in(order.grace_s, place, process, Intent.STOP, 0))
            _process(s, place.worker, lambda p: replace(p, intent=Intent.STOP, why=text))
        else:
            _end(s, place, Intent.STOP, text, grace_s=order.grace_s)


# ---- after every input


def _go_on(s: Step) -> None:
    """Whatever the state now allows."""
    _drop_leaving(s)
    if s.state.order is not None:
        _end_of_attempt(s)
        return
    if not s.state.prepared or s.state.phase is Phase.FAILED:
        return
    current = s.state.current
    if current is not None and s.state.restore_known:
        _deliver(s, current)
    _be_ready(s)


def _drop_leaving(s: Step) -> None:
    for place in s.state.places:
        if not place.leaving:
            continue
        if place.process is None:
            places = tuple(p for p in s.state.places if p.worker != place.worker)
            _set(s, places=places, retired=(*s.state.retired, replace(place, leaving=False)))
        elif place.process.awaiting and place.process.intent is Intent.NONE:
            _end(s, place, Intent.DRAIN, "a resize took its place away", grace_s=s.state.grace_s)


def _deliver(s: Step, formed: gang.Formed) -> None:
    """Give every free place of the generation a process, or its awaiting process the generation."""
    for place in s.state.places:
        member = formed.member(place.worker)
        if member is None or not place.ready:
            continue
        process = place.process
        if process is None and place.ended_in < formed.number:
            incarnation = place.incarnation + 1
            process = Process(incarnation=incarnation, generation=formed.number, rank=member.rank)
            _put(s, replace(place, incarnation=incarnation, process=process))
            s.do(effects.StartWorker(place.worker, incarnation, formed, s.state.restore))
            if s.state.phase is not Phase.RUNNING:
                _set(s, phase=Phase.RUNNING)
                s.do(effects.Observe(Phase.RUNNING))
        elif process is not None and process.connected and process.awaiting_after < formed.number:
            joined = replace(process, awaiting_after=-1, generation=formed.number, rank=member.rank, error="", why="")
            _put(s, replace(place, process=joined))
            s.do(effects.Tell(place.worker, _message(formed, place.worker, s.state)))


def _be_ready(s: Step) -> None:
    places = [place for place in s.state.places if not place.leaving]
    if not s.state.joined or not places or not all(place.ready for place in places):
        return
    current = s.state.current
    if current is None:
        after = max(s.state.opened - 1, s.state.broken, 0)
    elif _left(current, places, s.state.draining):
        after = current.number
    else:
        return
    if s.state.ready_said == after:
        return
    if s.state.store_used:
        # Plain scripts write the same keys in every generation: each needs a fresh store, agreed on before it forms.
        _set(s, joined=False, store_used=False)
        s.do(_join(s.state))
        return
    _set(s, ready_said=after)
    error = next((place.process.error for place in places if place.process and place.process.error), "")
    s.do(effects.SayReady(after, s.state.workers, error))


def _left(current: gang.Formed, places: list[Place], draining: int) -> bool:
    """Whether this node's workers, all in no generation, will take no part in `current` any more."""
    if not any(current.member(place.worker) for place in places):
        return True
    if any(place.process is not None and place.process.awaiting_after >= current.number for place in places):
        # Nobody called the generation broken yet: rendezvous learns it from this.
        return True
    return draining == current.number and all(
        place.ended_in == current.number or place.process is not None
        for place in places
        if current.member(place.worker)
    )


def _end_of_attempt(s: Step) -> None:
    assert s.state.order is not None
    if any(place.process is not None for place in s.state.places) or s.state.phase is Phase.STOPPED:
        return
    if not s.state.closed and s.state.prepared and not s.state.left:
        _set(s, left=True)
        s.do(effects.Leave(s.state.order.reason))
    _set(s, phase=Phase.STOPPED)
    s.do(effects.Observe(Phase.STOPPED, s.state.category, s.state.message))


# ---- small things


def _message(formed: gang.Formed, worker: str, state: Attempt) -> Generation:
    member = formed.member(worker)
    assert member is not None
    return Generation(
        number=formed.number,
        rank=member.rank,
        local_rank=member.local_rank,
        node_rank=formed.node_ranks[member.node],
        world_size=formed.world_size,
        local_world_size=formed.local_world_sizes[member.node],
        store_host=formed.store_host,
        store_port=formed.store_port,
        members=list(formed.members),
        restore=state.restore,
        traceparent=formed.traceparent,
    )


def _end(s: Step, place: Place, intent: Intent, why: str, *, grace_s: float) -> None:
    process = place.process
    assert process is not None
    ended = replace(process, intent=intent, why=why, doomed=grace_s == 0)
    _put(s, replace(place, process=ended))
    s.do(effects.EndWorker(place.worker, process.incarnation, grace_s, why))


def _overdue_in(after_s: float, place: Place, process: Process, what: Intent, number: int) -> effects.Wake:
    return effects.Wake(after_s, inputs.Overdue(place.worker, process.incarnation, what, number))


def _wanted(state: Attempt) -> bool:
    return state.order is None and not state.closed


def _place(s: Step, worker: str) -> Place | None:
    return next((place for place in s.state.places if place.worker == worker), None)


def _put(s: Step, place: Place) -> None:
    _set(s, places=tuple(place if p.worker == place.worker else p for p in s.state.places))


def _process(s: Step, worker: str, change: Callable[[Process], Process]) -> None:
    place = _place(s, worker)
    if place is not None and place.process is not None:
        _put(s, replace(place, process=change(place.process)))


def _set(s: Step, **changes: object) -> None:
    s.state = replace(s.state, **changes)  # pyright: ignore[reportArgumentType] - fields of Attempt, checked by tests
