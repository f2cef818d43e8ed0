"""What an agent does about the workers of an attempt: about what it hears of their processes, and about their places,
which a resize gives and takes. Pure.
"""

from __future__ import annotations

from dataclasses import replace

from distroml.agent.domain import effects, gang, inputs
from distroml.agent.domain.decision import Step
from distroml.agent.domain.ending import ask_to_stop
from distroml.agent.domain.exits import Intent
from distroml.agent.domain.gang import Place
from distroml.agent.domain.generations import join
from distroml.workerlink import GenerationBroken


def greet(s: Step, hello: inputs.SaidHello) -> None:
    """A process said hello over its link: it hears at once what it may have missed."""
    place = s.place(hello.worker)
    if place is None or place.process is None or place.process.doomed:
        return
    s.change(hello.worker, lambda p: replace(p, connected=True, managed=hello.managed, awaiting_after=-1))
    if s.state.order is not None:
        ask_to_stop(s, s.state.order, only=hello.worker)
    elif 0 < place.process.generation <= s.state.broken:
        cause = place.process.why or "a member was lost"
        s.do(effects.Tell(hello.worker, GenerationBroken(number=place.process.generation, cause=cause)))


def note_exit(s: Step, exited: inputs.Exited) -> None:
    """A process ended: rendezvous is told, and its place is free."""
    place = s.place(exited.worker)
    if place is None or place.process is None or place.process.incarnation != exited.incarnation:
        return
    process = place.process
    s.do(effects.ReportExit(place.worker, process.generation, process.rank, exited.verdict))
    s.put(replace(place, process=None, ended_in=process.generation))
    if not exited.verdict.succeeded and not exited.verdict.expected:
        s.set(category=exited.verdict.category, message=exited.verdict.message)


def end_hung(s: Step, hung: inputs.Hung) -> None:
    """A process is silent: rendezvous is told, and it is killed."""
    place = s.place(hung.worker)
    if place is None or place.process is None or place.process.incarnation != hung.incarnation:
        return
    if place.process.doomed:
        return
    process = place.process
    s.do(effects.ReportHang(place.worker, process.generation, process.rank, hung.silent_s, hung.last_step))
    s.end(place, Intent.HANG, hung.message, grace_s=0)


def end_overdue(s: Step, late: inputs.Overdue) -> None:
    """A process is killed that was to do something within a while, and has not."""
    place = s.place(late.worker)
    if place is None or place.process is None or place.process.incarnation != late.incarnation:
        return
    if late.what is Intent.BROKEN:
        if place.process.awaiting or place.process.generation > late.number:
            return
        text = f"it did not leave generation {late.number} within {gang.TEARDOWN_S:.0f} s"
    else:
        text = place.process.why or "its time to stop was over"
    s.end(place, late.what, text, grace_s=0)


def resize(s: Step, workers: tuple[str, ...]) -> None:
    """These workers are to take part from now on; one that is not among them leaves its place."""
    if s.state.order is not None:
        return
    kept = [replace(place, leaving=place.worker not in workers) for place in s.state.places]
    known = {place.worker for place in kept}
    back = {place.worker: place for place in s.state.retired}
    kept += [back.get(worker, Place(worker=worker)) for worker in workers if worker not in known]
    retired = tuple(place for place in s.state.retired if place.worker not in workers)
    s.set(places=tuple(kept), retired=retired, ready_said=-1)
    if s.state.prepared:
        s.set(joined=False, store_used=False)
        s.do(join(s.state))


def drop_leaving(s: Step) -> None:
    """Places that a resize took away go once no process is in them; one that waits for a generation is ended."""
    for place in s.state.places:
        if not place.leaving:
            continue
        if place.process is None:
            places = tuple(p for p in s.state.places if p.worker != place.worker)
            s.set(places=places, retired=(*s.state.retired, replace(place, leaving=False)))
        elif place.process.awaiting and place.process.intent is Intent.NONE:
            s.end(place, Intent.DRAIN, "a resize took its place away", grace_s=s.state.grace_s)
