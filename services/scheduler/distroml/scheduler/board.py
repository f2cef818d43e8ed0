"""The read model of a replica: every job, node and slot in memory, at one position of the log.

It is folded from the stored states once and from events after that; losing it costs a start. Lists, the queue, the
scheduling cycle and the agents' desired states are computed from it. Whoever must not see an old state reads the
store instead.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeVar

from distroml.events import Position, Recorded
from distroml.eventstore import MAX_COMMIT_OPERATIONS
from distroml.eventstore.draft import Repository
from distroml.observability import logger
from distroml.scheduler.domain.job import Job
from distroml.scheduler.domain.ledger import LEDGER, Ledger
from distroml.scheduler.domain.node import NODE, Node
from distroml.scheduler.domain.plan import Pending, Plan, Snapshot, place_queue
from distroml.scheduler.domain.queue import STRICT_FIFO, Policy
from distroml.scheduler.signals import Pulse, Signal, heard
from distroml.scheduler.streams import JOB_PREFIX, NODE_PREFIX, POOL, POOL_PREFIX, Streams, now_ms

log = logger(__name__)

_BATCH: Final = 1000
_LAST_INDEX: Final = MAX_COMMIT_OPERATIONS
"""No event has it: a position with it is behind its whole commit."""
_PREFIXES: Final = (JOB_PREFIX, NODE_PREFIX, POOL_PREFIX)

ListKey = tuple[int, str]

S = TypeVar("S")
C = TypeVar("C")
E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Entry:
    """A job with the version of its stream and the position that this reflects."""

    job: Job
    version: int
    position: Position

    @property
    def key(self) -> ListKey:
        """Lists are newest first."""
        return (-self.job.submitted_at_ms, self.job.id)


class Board:
    """See the module. Finished jobs stay until they are forgotten, and at most `finished_kept` of them.

    Those that it does not have any more are found by their id in the store.
    """

    def __init__(self, streams: Streams, pulse: Pulse, *, finished_kept: int, policy: Policy = STRICT_FIFO) -> None:
        self._streams, self._pulse, self._finished_kept, self._policy = streams, pulse, finished_kept, policy
        self._lock = asyncio.Lock()
        self._versions: dict[str, int] = {}
        self._entries: dict[str, Entry] = {}
        self._order: list[ListKey] = []
        self._live: dict[str, Job] = {}
        self._finished: dict[str, None] = {}
        self._nodes: dict[str, Node] = {}
        self._ledger = LEDGER.initial
        self._plan: Plan | None = None
        self._loaded = False
        self.changed = Signal()
        self.position = Position(streams.store.log_id, 0)

    # ---- reading

    @property
    def ledger(self) -> Ledger:
        """Who holds what."""
        return self._ledger

    @property
    def nodes(self) -> Mapping[str, Node]:
        """Every node ever registered."""
        return self._nodes

    @property
    def jobs(self) -> Mapping[str, Job]:
        """Jobs that are not finished, and finished ones that still hold slots."""
        return self._live

    def snapshot(self) -> Snapshot:
        """What a scheduling cycle looks at."""
        return Snapshot(dict(self._live), dict(self._nodes), self._ledger)

    def entry(self, job: str) -> Entry | None:
        """What is known of a job, unless it finished long ago."""
        return self._entries.get(job)

    def named(self, name: str, project: str) -> list[str]:
        """Ids of the known jobs of this name in a project, unfinished ones first, then the newest."""
        found = [e for e in self._entries.values() if e.job.spec.name == name and e.job.spec.project == project]
        return [entry.job.id for entry in sorted(found, key=lambda entry: (entry.job.finished, *entry.key))]

    def page(self, after: ListKey | None) -> Sequence[Entry]:
        """Known jobs, newest first, behind a place in the list."""
        start = 0 if after is None else bisect_right(self._order, after)
        return [self._entries[id_] for _, id_ in islice(self._order, start, None)]

    def plan(self) -> Plan:
        """What the next scheduling cycle would do; computed once per change."""
        if self._plan is None:
            self._plan = place_queue(self.snapshot(), self._policy, now_ms())
        return self._plan

    def pending(self) -> Mapping[str, Pending]:
        """Why each waiting job waits."""
        return self.plan().pending

    async def at_least(self, position: Position, timeout_s: float) -> bool:
        """Wait until the board reflects `position`; False where that takes longer than `timeout_s`."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        with self._pulse.signal.listening() as woken:
            while True:
                await self.refresh()
                if self.position >= position:
                    return True
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    return False
                await heard(woken, min(left, 0.1))

    def forget(self, job: str) -> None:
        """Keep a finished job no longer: its stream was retired."""
        if job in self._finished:
            self._drop(job)

    # ---- following the log

    async def run(self) -> None:
        """Follow the log until cancelled."""
        with self._pulse.signal.listening() as woken:
            while True:
                await self.refresh()
                await heard(woken)

    async def refresh(self) -> None:
        """Take everything into account that is committed now."""
        async with self._lock:
            if not self._loaded:
                await self._load()
                self._loaded = True
                self._has_changed()
            head = await self._streams.store.head()
            while batch := await self._streams.store.read(after=self.position, streams=_PREFIXES, limit=_BATCH):
                # A full batch may end in the middle of a commit: that one is read again, whole.
                whole = batch
                if len(batch) == _BATCH:
                    last = batch[-1].position.revision
                    whole = [one for one in batch if one.position.revision < last] or batch
                # Without a pause from here to the notification: whoever called may be cancelled at any other place.
                news = [self._apply(recorded) for recorded in whole]
                self.position = whole[-1].position
                if any(news):
                    self._has_changed()
            self.position = max(self.position, head)

    def _has_changed(self) -> None:
        self._plan = None
        self.changed.notify()

    async def _load(self) -> None:
        """Begin with the stored states: a long log is not read from its beginning."""
        streams = self._streams
        stored: dict[str, dict[str, bytes]] = {}
        revision: int | None = None
        for prefix in _PREFIXES:
            found, at = await streams.store.parts(f"state/{prefix}")
            # Read one after the other: what the later ones have in advance is known by its version.
            revision = at if revision is None else revision
            for key, data in found.items():
                name = key.removeprefix("state/").rpartition(":")[0]
                stored.setdefault(name, {})[key] = data
        self.position = Position(streams.store.log_id, revision or 0, _LAST_INDEX)
        # The ledger first: it says which finished jobs are still of interest.
        for name, parts in sorted(stored.items(), key=lambda item: item[0] != POOL):
            await self._load_stream(name, parts)
        log.info("the board is loaded", jobs=len(self._entries), nodes=len(self._nodes), position=str(self.position))

    async def _load_stream(self, name: str, parts: Mapping[str, bytes]) -> None:
        streams = self._streams
        if name.startswith(JOB_PREFIX):
            job, version = await _state_of(streams.jobs, name, parts)
            self._put_job(Entry(job, version, self.position))
        elif name.startswith(NODE_PREFIX):
            node, version = await _state_of(streams.nodes, name, parts)
            self._nodes[node.id] = node
        elif name == POOL:
            self._ledger, version = await _state_of(streams.ledgers, name, parts)
        else:
            return
        self._versions[name] = version

    def _apply(self, recorded: Recorded) -> bool:
        name = recorded.stream
        if recorded.version <= self._versions.get(name, 0):
            return False
        self._versions[name] = recorded.version
        streams = self._streams
        if name.startswith(JOB_PREFIX):
            event = streams.jobs.codec.decode(recorded.type, recorded.schema, recorded.data)
            known = self._entries.get(name.removeprefix(JOB_PREFIX))
            if known is None and recorded.version > 1:
                # Of a job that was over and forgotten: without what came before, it cannot be folded here.
                del self._versions[name]
                return False
            job = streams.jobs.decider.evolve(known.job if known else streams.jobs.decider.initial, event)
            self._put_job(Entry(job, recorded.version, recorded.position))
        elif name.startswith(NODE_PREFIX):
            event = streams.nodes.codec.decode(recorded.type, recorded.schema, recorded.data)
            node = name.removeprefix(NODE_PREFIX)
            self._nodes[node] = NODE.evolve(self._nodes.get(node, NODE.initial), event)
        elif name == POOL:
            event = streams.ledgers.codec.decode(recorded.type, recorded.schema, recorded.data)
            self._ledger = LEDGER.evolve(self._ledger, event)
            self._forget_free_jobs()
        return True

    # ---- bounds

    def _put_job(self, entry: Entry) -> None:
        job = entry.job
        if job.id not in self._entries:
            insort(self._order, entry.key)
        self._entries[job.id] = entry
        self._live[job.id] = job
        if job.finished:
            self._finished.setdefault(job.id)
            self._forget_free_jobs()
            while len(self._finished) > self._finished_kept:
                self._drop(next(iter(self._finished)))

    def _drop(self, job: str) -> None:
        del self._finished[job]
        entry = self._entries.pop(job)
        del self._order[bisect_left(self._order, entry.key)]
        self._versions.pop(JOB_PREFIX + job, None)

    def _forget_free_jobs(self) -> None:
        holding = {holding.job for holding in self._ledger.holdings.values()}
        for job in [id_ for id_, job in self._live.items() if job.finished and id_ not in holding]:
            del self._live[job]


async def _state_of(repository: Repository[S, C, E], name: str, parts: Mapping[str, bytes]) -> tuple[S, int]:
    return repository.read_parts(name, parts) or await repository.fold(name)
