"""The catalogue's commands with everything around them: fences, objects, commits. Used by server and reactor."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar
from weakref import WeakValueDictionary

from distroml import observability
from distroml.checkpoint import metrics
from distroml.checkpoint.adapters.codecs import Repo, stream_of
from distroml.checkpoint.adapters.fence import Fences
from distroml.checkpoint.domain.commands import (
    BeginSave,
    Collect,
    Command,
    CommitSave,
    FailSave,
    RecordVerified,
    ReportCorruption,
    ReportShard,
)
from distroml.checkpoint.domain.events import Committed, Event
from distroml.checkpoint.domain.retention import unreachable
from distroml.checkpoint.domain.state import Catalogue, Checkpoint, Phase
from distroml.checkpoint.objects import Objects, Verdict
from distroml.events import Rejection
from distroml.eventstore import Fenced, Guard, WrongExpectedVersion
from distroml.eventstore.handle import CommandKey, Handled, handle
from distroml.rpc import caller
from distroml.rpc.errors import Unavailable
from distroml.statestore.failpoint import hit

log = observability.logger(__name__)
T = TypeVar("T")


class Catalogues:
    """The catalogues of all jobs.

    Args:
        repository: their streams.
        fences: of the jobs.
        objects: the object store.
        deployment: whose events these are.
        now_ms: wall clock, Unix milliseconds.
    """

    def __init__(
        self, repository: Repo, fences: Fences, objects: Objects, *, deployment: str, now_ms: Callable[[], int]
    ) -> None:
        self._repository, self._fences, self._objects = repository, fences, objects
        self._deployment, self.now_ms = deployment, now_ms
        self._deciding: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._finishing: dict[str, asyncio.Task[Catalogue]] = {}

    async def load(self, job: str) -> Catalogue:
        """The committed state."""
        return (await self._repository.load(stream_of(job))).state

    async def handle(
        self,
        job: str,
        command: Command,
        *,
        guards: tuple[Guard, ...] = (),
        key: CommandKey | None = None,
        generation: int = 0,
        project: str = "",
    ) -> Handled[Catalogue, Event]:
        """Decide and commit, one command of a job at a time: its ranks report at once and would only lose races.

        Raises as `distroml.eventstore.handle.handle`, but `Unavailable` where other replicas won every race.
        """
        context = caller().context(
            deployment=self._deployment, time_ms=self.now_ms(), generation=generation, project=project
        )
        async with self._deciding.setdefault(job, asyncio.Lock()):
            try:
                done = await handle(self._repository, stream_of(job), command, context=context, guards=guards, key=key)
            except WrongExpectedVersion as lost:
                raise Unavailable("Busy", f"{job} changes too fast just now ({lost}); try again") from lost
        metrics.count(done.events)
        return done

    async def begin(self, command: BeginSave) -> Catalogue:
        """Open a save under the job's fence; the state after, in which it may not be open.

        Raises:
            Rejection: a newer generation has begun, or the save was decided on before.
        """
        guard = await self._fences.check(command.job, command.generation)
        done = await self._fenced(
            command.job,
            command.generation,
            lambda: self.handle(
                command.job, command, guards=(guard,), generation=command.generation, project=command.project
            ),
        )
        return done.state or await self.load(command.job)

    async def report(self, job: str, command: ReportShard) -> Catalogue:
        """Record a rank's part, and complete the save with the last one; the state after.

        Raises:
            Rejection: the step will not be a checkpoint.
        """
        handled = await self.handle(job, command, generation=command.generation)
        state = handled.state or await self.load(job)
        hit("checkpoint.report")
        if not state.is_open(command.generation, command.step):
            return state
        try:
            await self._fences.check(job, command.generation)
        except Rejection as rejection:
            await self._close(job, state, rejection)
            raise
        return state if state.open is None or state.open.missing else await self.finish(job)

    async def finish(self, job: str, guards: tuple[Guard, ...] = ()) -> Catalogue:
        """Complete the open save where every rank reported; the state after.

        Called by the report that was the last one, by each repeated one, and by the reactor after a crash: whoever
        is first commits, the others find it done.
        """
        running = self._finishing.get(job)
        if running is not None:
            state = await asyncio.shield(running)
            if state.open is None or not state.open.missing:
                return state
            # It began before the last report.
        task = self._finishing.get(job)
        if task is None:
            task = self._finishing[job] = asyncio.create_task(self._finish(job, guards), name=f"finish {job}")
            task.add_done_callback(lambda _: self._finishing.pop(job))
        # The checks of a large save may outlast one caller's deadline; the next one asks for the same work.
        return await asyncio.shield(task)

    async def _finish(self, job: str, guards: tuple[Guard, ...]) -> Catalogue:
        state = await self.load(job)
        save = state.open
        if save is None or save.missing:
            return state
        try:
            fence = await self._fences.check(job, save.generation)
            merged = await asyncio.to_thread(self._objects.assemble, job, state.project, save)
            command = CommitSave(
                at_ms=self.now_ms(),
                save_id=save.save_id,
                manifest_hash=merged.manifest_hash,
                bytes_total=merged.bytes_total,
                bytes_written=merged.bytes_written,
                bytes_reused=merged.bytes_reused,
            )
            done = await self._fenced(
                job,
                save.generation,
                lambda: self.handle(
                    job, command, guards=(fence, *guards), generation=save.generation, project=state.project
                ),
            )
        except Rejection as rejection:
            return await self._close(job, state, rejection)
        hit("checkpoint.committed")
        for event in done.events:
            if isinstance(event, Committed):
                log.info("checkpoint committed", job=job, step=event.step, manifest=event.manifest_hash)
        return done.state or await self.load(job)

    async def fail(self, job: str, command: FailSave) -> None:
        """A rank cannot save."""
        await self.handle(job, command, generation=command.generation)

    async def _close(self, job: str, state: Catalogue, why: Rejection) -> Catalogue:
        """The open save will not be a checkpoint."""
        assert state.open is not None
        command = FailSave(
            at_ms=self.now_ms(),
            generation=state.open.generation,
            step=state.open.step,
            rank=-1,
            reason=why.reason,
            message=why.message,
        )
        log.warning("save failed", job=job, step=state.open.step, reason=why.reason, why=why.message)
        done = await self.handle(job, command, generation=state.open.generation, project=state.project)
        return done.state or await self.load(job)

    async def _fenced(self, job: str, generation: int, commit: Callable[[], Awaitable[T]]) -> T:
        """Run a commit under the fence; where it moved, say to which generation."""
        try:
            return await commit()
        except Fenced as fenced:
            if fenced.key == f"fences/{job}":
                await self._fences.check(job, generation)
            raise

    async def latest(self, job: str, generation: int, max_step: int) -> Checkpoint | None:
        """The newest sound checkpoint.

        With a generation: the fence is read before the state, so that no older generation can commit a checkpoint
        that this answer misses.

        Raises:
            Rejection: a newer generation has begun.
        """
        if generation:
            await self._fences.check(job, generation)
        return (await self.load(job)).newest_sound(max_step)

    async def corrupt(self, job: str, manifest_hash: str, object_key: str, chunk_hash: str, message: str) -> Catalogue:
        """Set aside a checkpoint and those that need the same bytes; the state after.

        Raises:
            Rejection: `UnknownCheckpoint`.
        """
        state = await self.load(job)
        others = [c for c in state.present if c.phase is Phase.COMMITTED and c.manifest_hash != manifest_hash]
        sharing = [
            other.manifest_hash
            for other in others
            if await asyncio.to_thread(self._objects.needs, job, other.manifest_hash, object_key, chunk_hash)
        ]
        command = ReportCorruption(
            at_ms=self.now_ms(),
            reported=manifest_hash,
            sharing=tuple(sharing),
            object_key=object_key,
            chunk_hash=chunk_hash,
            message=message,
        )
        log.error("checkpoint damaged", job=job, manifest=manifest_hash, object=object_key, why=message)
        metrics.CORRUPT.inc()
        done = await self.handle(job, command, project=state.project)
        return done.state or await self.load(job)

    async def verify(self, job: str, checkpoint: Checkpoint) -> Verdict:
        """Read every chunk of a checkpoint and record what was found; raises `ObjectStoreDown`."""
        verdict = await asyncio.to_thread(self._objects.verify, job, checkpoint.manifest_hash)
        if verdict.damages:
            for damage in verdict.damages:
                await self.corrupt(job, checkpoint.manifest_hash, damage.object_key, damage.chunk_hash, damage.message)
        else:
            command = RecordVerified(
                at_ms=self.now_ms(),
                manifest_hash=checkpoint.manifest_hash,
                chunks=verdict.chunks,
                bytes=verdict.bytes,
            )
            await self.handle(job, command)
        return verdict

    async def collect(self, job: str, guards: tuple[Guard, ...] = ()) -> None:
        """Decide what retention does not keep."""
        await self.handle(job, Collect(at_ms=self.now_ms()), guards=guards)

    async def sweep(self, job: str) -> int:
        """Remove objects that nothing needs; returns how many. Safe at any time, on any replica."""
        # Listing first is what makes it safe: see `unreachable`.
        keys = await asyncio.to_thread(self._objects.keys, job)
        state = await self.load(job)
        if not state.job:
            return 0
        reach = {
            c.manifest_hash: await asyncio.to_thread(self._objects.reach, job, c.manifest_hash) for c in state.present
        }
        unread = [c for c in state.present if c.phase is Phase.COMMITTED and reach[c.manifest_hash] is None]
        for checkpoint in unread:
            verdict = await self.verify(job, checkpoint)
            log.error("a manifest cannot be read", job=job, step=checkpoint.step, damages=len(verdict.damages))
        if unread:
            # What a lost manifest reached is not known; objects are removed only once it is set aside.
            return 0
        doomed = unreachable(state, keys, reach)
        removed = await asyncio.to_thread(self._objects.remove, doomed)
        metrics.OBJECTS_REMOVED.inc(removed)
        if removed:
            log.info("objects removed", job=job, count=removed)
        return removed
