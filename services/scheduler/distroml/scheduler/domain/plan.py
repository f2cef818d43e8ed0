"""What a scheduling cycle does, computed on a snapshot: pure, so that equal snapshots give equal plans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from distroml.scheduler.domain import ledger as pool
from distroml.scheduler.domain import node as nodes_
from distroml.scheduler.domain import reasons
from distroml.scheduler.domain.job import Job, JobState
from distroml.scheduler.domain.job import commands as c
from distroml.scheduler.domain.ledger import Holding, Ledger, Share
from distroml.scheduler.domain.node import Node, NodeState
from distroml.scheduler.domain.placement import Placed, Refused, Slots, regang
from distroml.scheduler.domain.queue import Policy
from distroml.scheduler.domain.spec import Placement, Slot, WorkerRange, places_of
from distroml.workerlink.backends import MPI

MAX_FREED = 40
"""Nodes of one gang freed in one step, so that a step fits into a commit; the next cycle frees the rest."""

MAX_PLACED = 64
"""Gangs placed in one plan, so that a cycle stays short; the next one goes on with those behind."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a cycle looks at, as it held at one position of the log."""

    jobs: Mapping[str, Job]
    nodes: Mapping[str, Node]
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class Step:
    """Commands that belong into one commit: for one job (or one node), and for the ledger."""

    job: str = ""
    job_commands: tuple[c.Command, ...] = ()
    ledger_commands: tuple[pool.Command, ...] = ()
    node: str = ""
    node_commands: tuple[nodes_.Command, ...] = ()


@dataclass(frozen=True, slots=True)
class Pending:
    """Why a job in the queue does not run; `index` counts from 1 in the order in which jobs are considered."""

    index: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps to commit, and the reason of every job that stays in the queue or waits for another gang."""

    steps: tuple[Step, ...]
    pending: Mapping[str, Pending]


# ---- settling: what ended or was lost


def settle(snapshot: Snapshot, at_ms: int) -> tuple[Step, ...]:
    """Take back slots on which nothing runs any more, and tell the jobs; idempotent, any number of times."""
    steps = [_settle_holding(snapshot, holding, at_ms) for holding in snapshot.ledger.holdings.values()]
    return (*(step for step in steps if step is not None), *_drained_nodes(snapshot, at_ms))


def _settle_holding(snapshot: Snapshot, holding: Holding, at_ms: int) -> Step | None:
    job = snapshot.jobs.get(holding.job, Job())
    current = job.attempt == holding.attempt
    preemption = _preemption(snapshot.ledger, holding, at_ms) if current and job.active else None
    ending = preemption is not None or not (current and job.active)
    free = [share.node for share in holding.shares if _can_be_freed(snapshot.ledger, share, ending)][:MAX_FREED]
    job_commands: list[c.Command] = [preemption] if preemption else []
    if ending and current and len(free) == len(holding.shares):
        job_commands.append(c.EndAttempt(at_ms=at_ms, attempt=holding.attempt))
    if not free and not job_commands:
        return None
    return Step(
        job=holding.job,
        job_commands=tuple(job_commands),
        ledger_commands=tuple(pool.Free(job=holding.job, attempt=holding.attempt, node=node) for node in free),
    )


def _can_be_freed(ledger: Ledger, share: Share, ending: bool) -> bool:
    return _is_lost(ledger, share.node) or (share.stopped and (ending or not share.slots))


def _is_lost(ledger: Ledger, node: str) -> bool:
    offer = ledger.offers.get(node)
    return offer is not None and not offer.present


def _preemption(ledger: Ledger, holding: Holding, at_ms: int) -> c.Preempt | None:
    """Why the gang cannot go on, if it cannot."""
    parts = {part.node: part.slots for part in holding.gang}
    lost = sorted(node for node in parts if _is_lost(ledger, node))
    if lost:
        message = f"nothing was heard of {', '.join(lost)} for too long"
        return c.Preempt(at_ms=at_ms, attempt=holding.attempt, reason=reasons.NODE_LOST, message=message)
    for node, slots in sorted(parts.items()):
        offered = {slot.id for slot in ledger.offers[node].slots}
        if not offered.issuperset(slots):
            message = f"{node} came back without {', '.join(sorted(set(slots) - offered))}"
            return c.Preempt(at_ms=at_ms, attempt=holding.attempt, reason=reasons.SLOTS_LOST, message=message)
    return None


def _drained_nodes(snapshot: Snapshot, at_ms: int) -> Iterator[Step]:
    busy = {share.node for holding in snapshot.ledger.holdings.values() for share in holding.shares}
    for name, node in sorted(snapshot.nodes.items()):
        if node.state is NodeState.CORDONED and name not in busy:
            yield Step(node=name, node_commands=(nodes_.Drain(at_ms=at_ms),))


def silent(snapshot: Snapshot) -> tuple[tuple[str, int], ...]:
    """(job, attempt) of jobs that shall run and whose agents all say that nothing of them is left.

    Rendezvous normally closes such an attempt at the same moment; one that stays here was stopped by somebody else.
    """
    return tuple(
        (holding.job, holding.attempt)
        for holding in snapshot.ledger.holdings.values()
        if (job := snapshot.jobs.get(holding.job)) is not None
        and job.active
        and job.attempt == holding.attempt
        and all(share.stopped for share in holding.shares if share.slots)
    )


def revive(job: str, attempt: int, at_ms: int) -> Step:
    """Put a silent job back into the queue."""
    message = "its agents stopped every worker, though nobody had asked for it"
    reason = reasons.STOPPED_UNEXPECTEDLY
    return Step(job=job, job_commands=(c.Preempt(at_ms=at_ms, attempt=attempt, reason=reason, message=message),))


# ---- placing: what can start


def place_queue(snapshot: Snapshot, policy: Policy, at_ms: int) -> Plan:
    """Give free slots to waiting jobs in the policy's order, and say why each of the others waits."""
    waiting = sorted(
        (job for job in snapshot.jobs.values() if job.state is JobState.QUEUED or (job.active and job.resizing)),
        key=policy.rank,
    )
    free, capacity = dict(snapshot.ledger.free()), snapshot.ledger.capacity()
    hopeless = _Hopeless(policy, capacity)
    steps: list[Step] = []
    pending: dict[str, Pending] = {}
    blocked: Job | None = None
    index = 0
    for job in waiting:
        if len(steps) == MAX_PLACED:
            break
        if job.state is not JobState.QUEUED:
            held_back = blocked is not None and not policy.may_pass(blocked, job)
            outcome = _changed_gang(snapshot.ledger, job, {} if held_back else free)
        elif refused := hopeless(places_of(job.spec)):
            index += 1
            outcome = refused
        elif blocked is not None and not policy.may_pass(blocked, job):
            index += 1
            pending[job.id] = Pending(index, reasons.BEHIND_OTHERS, _behind(index, blocked))
            continue
        else:
            index += 1
            outcome = policy.fit(places_of(job.spec), free, capacity)
        match outcome:
            case Placed(placement=placement):
                steps.append(_start(job, placement, at_ms))
                free = _without(free, placement)
                index -= 1 if job.state is JobState.QUEUED else 0
            case Refused(reason=reason, message=message, ever=ever):
                pending[job.id] = Pending(index if job.state is JobState.QUEUED else 0, reason, message)
                blocked = blocked or (job if ever else None)
            case None:
                pass
    return Plan(tuple(steps), pending)


class _Hopeless:
    """Gangs that the nodes there are could not take even if they were idle; they hold nobody back."""

    def __init__(self, policy: Policy, capacity: Slots) -> None:
        self._policy, self._capacity = policy, capacity
        self._known: dict[WorkerRange, Refused | None] = {}

    def __call__(self, workers: WorkerRange) -> Refused | None:
        if workers not in self._known:
            outcome = self._policy.fit(workers, {}, self._capacity)
            self._known[workers] = outcome if isinstance(outcome, Refused) and not outcome.ever else None
        return self._known[workers]


def _changed_gang(ledger: Ledger, job: Job, free: Slots) -> Placed | Refused | None:
    holding = ledger.holding(job.id, job.attempt)
    if holding is None or any(share.stopped for share in holding.shares):
        return None
    leaving = {share.node for share in holding.shares if not share.slots}
    usable = {node: slots for node, slots in free.items() if node not in leaving}
    if job.spec.backend == MPI:
        usable = {part.node: usable.get(part.node, ()) for part in holding.gang}
    return regang(job.spec.workers, holding.gang, usable, _kind(ledger, holding))


def _kind(ledger: Ledger, holding: Holding) -> str:
    share = next(share for share in holding.shares if share.slots)
    return next((slot.kind for slot in ledger.offers[share.node].slots if slot.id in share.slots), "cpu")


def _start(job: Job, placement: tuple[Placement, ...], at_ms: int) -> Step:
    if job.state is JobState.QUEUED:
        return Step(
            job=job.id,
            job_commands=(c.Admit(at_ms=at_ms, placement=placement),),
            ledger_commands=(pool.Assign(job=job.id, attempt=job.attempt + 1, placement=placement),),
        )
    return Step(
        job=job.id,
        job_commands=(c.Regang(at_ms=at_ms, placement=placement),),
        ledger_commands=(pool.Reassign(job=job.id, attempt=job.attempt, placement=placement),),
    )


def _without(free: Mapping[str, tuple[Slot, ...]], placement: tuple[Placement, ...]) -> dict[str, tuple[Slot, ...]]:
    left = dict(free)
    for part in placement:
        rest = tuple(slot for slot in left.pop(part.node, ()) if slot.id not in part.slots)
        if rest:
            left[part.node] = rest
    return left


def _behind(index: int, blocked: Job) -> str:
    return f"is number {index} in the queue; job {blocked.id} ({blocked.spec.name}) before it waits for slots"
