"""What people see of queue, jobs, nodes and slots: counts of what was committed, and a look at each cycle's snapshot.

Gauges are told by the replica that runs the cycle, and by no other: one that loses the role takes its own back.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from distroml.events import Recorded
from distroml.observability import names
from distroml.observability.metrics import counter, gauge, histogram
from distroml.observability.recent import RecentValues
from distroml.scheduler.adapters import codecs
from distroml.scheduler.domain import reasons
from distroml.scheduler.domain.job import FINISHED, Job, JobState
from distroml.scheduler.domain.job import events as e
from distroml.scheduler.domain.ledger import Ledger
from distroml.scheduler.domain.node import NodeState
from distroml.scheduler.domain.plan import Pending, Snapshot
from distroml.scheduler.domain.spec import FailureCategory

MAX_NODES: Final = 500
OTHERS: Final = "others"
_STATES: Final = tuple(state for state in JobState if state is not JobState.NEW)
_NODE_STATES: Final = tuple(state for state in NodeState if state is not NodeState.NEW)
_SLOT_STATES: Final = ("free", "held", "closed")
_WAITING: Final = (
    reasons.EVALUATING,
    reasons.WAITING_FOR_SLOTS,
    reasons.WAITING_FOR_RESOURCES,
    reasons.BEHIND_OTHERS,
    reasons.EXCEEDS_CAPACITY,
    reasons.NO_NODES,
)
_WAIT_BUCKETS_S: Final = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)

CYCLE_SECONDS: Final = histogram(names.SCHEDULER_CYCLE_SECONDS, "Seconds of a scheduling cycle.")
PLACED: Final = counter(names.SCHEDULER_PLACEMENTS, "Gangs placed or changed.")
AGENTS: Final = gauge(names.SCHEDULER_AGENTS, "Agents with an open stream to this replica.")
SKIPPED: Final = counter(
    names.SCHEDULER_SKIPPED, "Events of rendezvous that say nothing to a job here.", (names.LABEL_WHY,)
)
_JOBS = gauge(
    names.SCHEDULER_JOBS,
    "Jobs by state; finished ones for as long as they hold slots.",
    (names.LABEL_STATE,),
)
_SUBMITTED = counter(names.SCHEDULER_SUBMITTED, "Jobs submitted.")
_FINISHED = counter(
    names.SCHEDULER_FINISHED,
    "Jobs finished, by outcome and by the kind of failure of those that failed.",
    (names.LABEL_OUTCOME, names.LABEL_CATEGORY),
)
_QUEUED = gauge(names.SCHEDULER_QUEUED, "Jobs that wait for a gang, or for another one, by why.", (names.LABEL_REASON,))
_OLDEST = gauge(
    names.SCHEDULER_QUEUE_OLDEST_SECONDS, "How long the job has waited that is in the queue longest; 0 without one."
)
_WAIT = histogram(
    names.SCHEDULER_QUEUE_WAIT_SECONDS, "Seconds that a job was in the queue until it got a gang.", (), _WAIT_BUCKETS_S
)
_SLOTS = gauge(
    names.SCHEDULER_SLOTS,
    "Slots: `held` by a job, `free` to be given, `closed` with their cordoned or lost node.",
    (names.LABEL_STATE,),
)
_NODE_SLOTS = gauge(
    names.SCHEDULER_NODE_SLOTS, "Slots of a node, by state as for all.", (names.LABEL_NODE, names.LABEL_STATE)
)
_NODES = gauge(names.SCHEDULER_NODES, "Nodes by state.", (names.LABEL_STATE,))
_LOST = counter(names.SCHEDULER_NODES_LOST, "Nodes declared lost.")
_SLOT_SECONDS = counter(
    names.SCHEDULER_SLOT_SECONDS, "Seconds that slots were held, free or closed: what they cost.", (names.LABEL_STATE,)
)
_JOB_SLOT_SECONDS = counter(
    names.SCHEDULER_JOB_SLOT_SECONDS, "Seconds for which a job held slots, times how many.", (names.LABEL_JOB,)
)

# A series that begins at its first count would hide it from `increase`.
for _state in FINISHED - {JobState.FAILED}:
    _FINISHED.labels(_state.value, "")
for _category in FailureCategory:
    _FINISHED.labels(JobState.FAILED.value, _category.name.lower())


def count(events: Iterable[Recorded]) -> None:
    """Count what was committed."""
    for recorded in events:
        match recorded.type:
            case "scheduler.job.Submitted":
                _SUBMITTED.inc()
            case "scheduler.job.Succeeded":
                _FINISHED.labels(JobState.SUCCEEDED.value, "").inc()
            case "scheduler.job.Cancelled":
                _FINISHED.labels(JobState.CANCELLED.value, "").inc()
            case "scheduler.job.Failed":
                event = codecs.JOB_EVENTS.decode(recorded.type, recorded.schema, recorded.data)
                category = event.category if isinstance(event, e.Failed) else FailureCategory.UNSPECIFIED
                _FINISHED.labels(JobState.FAILED.value, category.name.lower()).inc()
            case "scheduler.node.Lost":
                _LOST.inc()
            case _:
                pass


class Gauges:
    """Looks at snapshots, one after the other; times between them are on the monotonic clock."""

    def __init__(self) -> None:
        self._queued_since_ms: dict[str, int] = {}
        self._nodes: set[str] = set()
        self._looked_at_s = 0.0
        self._jobs = RecentValues(names.LABEL_JOB, (_JOB_SLOT_SECONDS,))

    def look(self, snapshot: Snapshot, pending: Mapping[str, Pending], now_ms: int) -> None:
        """Tell of `snapshot`, and of the time since the one before: its slots count as held all that time."""
        found = Counter(job.state for job in snapshot.jobs.values())
        for state in _STATES:
            _JOBS.labels(state.value).set(found[state])
        nodes = Counter(node.state for node in snapshot.nodes.values())
        for state in _NODE_STATES:
            _NODES.labels(state.value).set(nodes[state])
        self._look_at_queue(snapshot.jobs, pending, now_ms)
        self._look_at_slots(snapshot.ledger)

    def clear(self) -> None:
        """This replica knows nothing of it any more."""
        for metric in (_JOBS, _NODES, _QUEUED, _SLOTS, _NODE_SLOTS):
            metric.clear()
        _OLDEST.set(0)
        self._queued_since_ms.clear()
        self._looked_at_s = 0.0

    def _look_at_queue(self, jobs: Mapping[str, Job], pending: Mapping[str, Pending], now_ms: int) -> None:
        waiting = Counter(one.reason for one in pending.values())
        for reason in {*_WAITING, *waiting}:
            _QUEUED.labels(reason).set(waiting[reason])
        for job in jobs.values():
            if job.state is JobState.QUEUED:
                # A first attempt has waited since the submission, a later one since this replica first saw it wait.
                self._queued_since_ms.setdefault(job.id, now_ms if job.attempt else job.submitted_at_ms)
        for id_, since_ms in list(self._queued_since_ms.items()):
            job = jobs.get(id_)
            if job is None or job.state is not JobState.QUEUED:
                del self._queued_since_ms[id_]
                if job is not None and job.active:
                    _WAIT.observe(max(0, now_ms - since_ms) / 1000)
        oldest_ms = min(self._queued_since_ms.values(), default=now_ms)
        _OLDEST.set(max(0, now_ms - oldest_ms) / 1000)

    def _look_at_slots(self, ledger: Ledger) -> None:
        now_s = time.monotonic()
        passed_s = now_s - self._looked_at_s if self._looked_at_s else 0.0
        self._looked_at_s = now_s
        held = ledger.held()
        by_node: dict[str, Counter[str]] = {}
        for index, (node, offer) in enumerate(sorted(ledger.offers.items())):
            slots = by_node.setdefault(node if index < MAX_NODES else OTHERS, Counter())
            free = "free" if offer.open and offer.present else "closed"
            slots.update("held" if (node, slot.id) in held else free for slot in offer.slots)
        for node in self._nodes - by_node.keys():
            _NODE_SLOTS.remove_by_labels({names.LABEL_NODE: node})
        self._nodes = set(by_node)
        for state in _SLOT_STATES:
            for node, slots in by_node.items():
                _NODE_SLOTS.labels(node, state).set(slots[state])
            total = sum(slots[state] for slots in by_node.values())
            _SLOTS.labels(state).set(total)
            _SLOT_SECONDS.labels(state).inc(total * passed_s)
        self._count_jobs(list(held.values()), passed_s, now_s)

    def _count_jobs(self, holders: Sequence[str], passed_s: float, now_s: float) -> None:
        for job, slots in Counter(holders).items():
            if self._jobs.use(job, now_s):
                _JOB_SLOT_SECONDS.labels(job).inc(slots * passed_s)
        self._jobs.forget(now_s)
