"""What an agent does about the generations of an attempt: it leaves those that are over, gives the one in force to the
node's places, and says when these are free for the next. Pure.
"""

from __future__ import annotations

from dataclasses import replace

from distroml.agent.domain import effects, gang
from distroml.agent.domain.decision import Step, overdue_in
from distroml.agent.domain.exits import Intent
from distroml.agent.domain.gang import Attempt, Phase, Place, Process
from distroml.workerlink import Drain, Generation, GenerationBroken


def join(state: Attempt) -> effects.Join:
    """Join rendezvous, with a store that no generation has used."""
    return effects.Join(state.running_generation, state.workers)


def note_opened(s: Step, number: int) -> None:
    """Rendezvous gathers members for generation `number`: whatever was formed before it is over."""
    if number <= s.state.opened:
        return
    s.set(opened=number, ready_said=-1)
    # A newer generation is open: whatever was formed before it is over, also where the message that says so was lost.
    if s.state.formed is not None and s.state.formed.number < number:
        leave_broken(s, s.state.formed.number, f"generation {number} was opened")


def take_formed(s: Step, formed: gang.Formed) -> None:
    """Generation `formed` is in force; processes of older ones that wait for none end."""
    known = s.state.formed
    if formed.number <= s.state.broken or (known is not None and formed.number < known.number):
        return
    if known is None or formed.number > known.number:
        s.set(formed=formed, restore_known=False, restore=None, store_used=True)
        if _wanted(s.state):
            s.do(effects.AskRestore(formed.number))
    elif not s.state.restore_known and _wanted(s.state):
        s.do(effects.AskRestore(formed.number))
    s.set(opened=max(s.state.opened, formed.number))
    for place in s.state.places:
        process = place.process
        if process is not None and process.generation < formed.number and not process.awaiting:
            s.end(place, Intent.BROKEN, f"it belongs to an older generation than {formed.number}", grace_s=0)


def leave_broken(s: Step, number: int, cause: str) -> None:
    """Generation `number` is over: its processes leave it within a while, or end."""
    if number <= s.state.broken:
        return
    s.set(broken=number)
    for place in s.state.places:
        process = place.process
        if process is None or process.generation > number or process.awaiting or process.doomed:
            continue
        if not process.managed or not s.state.reforms:
            s.end(place, Intent.BROKEN, f"generation {number} broke: {cause}", grace_s=0)
            continue
        s.change(place.worker, lambda p: replace(p, why=f"generation {number} broke: {cause}"))
        if process.connected:
            s.do(effects.Tell(place.worker, GenerationBroken(number=number, cause=cause)))
        s.do(overdue_in(gang.TEARDOWN_S, place, process, Intent.BROKEN, number))


def drain(s: Step, number: int, reason: str) -> None:
    """Rendezvous asked to leave generation `number`: managed processes are told, others end within their grace."""
    if s.state.current is None or s.state.current.number != number or s.state.order is not None:
        return
    s.set(draining=number)
    for place in s.state.places:
        process = place.process
        if process is None or process.awaiting or process.doomed or process.intent is not Intent.NONE:
            continue
        if process.managed and process.connected:
            s.do(effects.Tell(place.worker, Drain(number=number, reason=reason)))
        else:
            s.end(place, Intent.DRAIN, f"generation {number} drains: {reason}", grace_s=s.state.grace_s)


def deliver(s: Step, formed: gang.Formed) -> None:
    """Give every free place of the generation a process, or its awaiting process the generation."""
    for place in s.state.places:
        member = formed.member(place.worker)
        if member is None or not place.ready:
            continue
        process = place.process
        if process is None and place.ended_in < formed.number:
            incarnation = place.incarnation + 1
            process = Process(incarnation=incarnation, generation=formed.number, rank=member.rank)
            s.put(replace(place, incarnation=incarnation, process=process))
            s.do(effects.StartWorker(place.worker, incarnation, formed, s.state.restore))
            if s.state.phase is not Phase.RUNNING:
                s.set(phase=Phase.RUNNING)
                s.do(effects.Observe(Phase.RUNNING))
        elif process is not None and process.connected and process.awaiting_after < formed.number:
            joined = replace(process, awaiting_after=-1, generation=formed.number, rank=member.rank, error="", why="")
            s.put(replace(place, process=joined))
            s.do(effects.Tell(place.worker, _message(formed, place.worker, s.state)))


def be_ready(s: Step) -> None:
    """Tell rendezvous once all places are free for a newer generation, with a store that none has used."""
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
        s.set(joined=False, store_used=False)
        s.do(join(s.state))
        return
    s.set(ready_said=after)
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


def _wanted(state: Attempt) -> bool:
    return state.order is None and not state.closed
