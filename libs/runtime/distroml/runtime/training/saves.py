"""Checkpoints of one generation: begun at a step's end, written in the background, committed by the catalogue."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, MutableMapping

from distroml.observability import names
from distroml.runtime.checkpoint import Agreement, Saver, ShardResult, Whole
from distroml.runtime.elastic import Collectives
from distroml.runtime.link import Link
from distroml.runtime.spans import OpenSpan, WorkerSpans
from distroml.runtime.training.storage import Storage
from distroml.workerlink import (
    CheckpointCommitted,
    CheckpointFailed,
    CheckpointRef,
    SaveBegun,
    SaveFailed,
    SaveOpened,
    SaveRefused,
    ShardSaved,
)

log = logging.getLogger("distroml.runtime.checkpoint")

# A save that is written but whose commit nobody confirms does not hold up the next one for longer.
_UNCONFIRMED_S = 60.0
_POLL_S = 0.05


class Saves:
    """Begins saves, and knows what became of them. One per generation; `close()` abandons what is in flight."""

    def __init__(
        self,
        link: Link,
        storage: Storage,
        collectives: Collectives,
        on_committed: Callable[[CheckpointRef], None],
        whole: Whole | None = None,
    ) -> None:
        self._link = link
        self._storage = storage
        self._collectives = collectives
        self._world = collectives.world
        self._on_committed = on_committed
        # Where ranks hold different parts, they agree on who writes what.
        self._agreement = Agreement(self._world.rank, collectives.gather, whole) if whole is not None else None
        self._known = threading.Condition()
        self._outcome: dict[int, str] = {}
        self._newest: CheckpointRef | None = None
        self._begun_step: int | None = None
        self._begun_at = 0.0
        self._spans = WorkerSpans(link, self._world)
        self._open: dict[int, OpenSpan | None] = {}
        self._saver = Saver(
            storage.store,
            job=storage.job,
            rank=self._world.rank,
            world_size=self._world.world_size,
            generation=self._world.generation,
            on_saved=self._on_saved,
            on_failed=self._on_failed,
        )
        # Tells this start's saves from those of an earlier one in the same folder.
        self._nonce = collectives.gather(f"{time.time_ns():x}")[0] if storage.catalogue is not None else ""
        link.subscribe(SaveOpened, self._opened)
        link.subscribe(SaveRefused, self._refused)
        link.subscribe(CheckpointCommitted, self._committed)
        link.subscribe(CheckpointFailed, self._failed)

    @property
    def busy(self) -> bool:
        """Whether a new save would have to be refused."""
        if self._saver.busy:
            return True
        open_ = self._begun_step is not None and self._begun_step not in self._outcome
        return open_ and time.monotonic() - self._begun_at < _UNCONFIRMED_S

    @property
    def begun(self) -> int | None:
        """The step of the last save begun."""
        return self._begun_step

    @property
    def blocked_s(self) -> float:
        """Seconds for which the last `begin` held the training thread."""
        return self._saver.blocked_s

    def begin(self, state: MutableMapping[str, object], *, step: int, patience_s: float = 0.0) -> None:
        """Copy this rank's part of `state` and write it in the background. Every rank calls this at the same step.

        A catalogue that is away is waited for as long as `patience_s`, and for a few seconds in any case; a store of
        objects that is away or full for as long as `patience_s`.
        """
        self._begun_step, self._begun_at = step, time.monotonic()
        self._open[step] = span = self._spans.begin(names.SPAN_CHECKPOINT, step=step)
        opened: SaveOpened | None = None
        if self._storage.catalogue is not None:
            base = self._collectives.gather(self._newest.manifest_hash if self._newest else "")[0]
            opened = self._storage.catalogue.open(step, f"s{step}-{self._nonce}", base)
        own = state if self._agreement is None else self._agreement.agree(state)
        if not self._saver.begin(own, {}, step=step, opened=opened, patience_s=patience_s):
            # Where there was no memory for the copy, the saver has said so itself.
            if step not in self._outcome:
                self._on_failed(step, "this rank is still writing an earlier save")
            return
        if opened is None:
            self._link.send(
                SaveBegun(
                    generation=self._world.generation,
                    step=step,
                    world_size=self._world.world_size,
                    traceparent=span.traceparent if span else "",
                    rank=self._world.rank,
                    patience_s=patience_s,
                )
            )

    def wait(self, step: int, timeout_s: float, check: Callable[[], None]) -> bool:
        """Wait until it is known what became of the save of `step`, calling `check` now and then (it may raise).

        Returns:
            Whether the checkpoint is committed. Without a catalogue service, ranks other than 0 know only that
            their own part is durable.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            check()
            with self._known:
                if self._known.wait_for(lambda: step in self._outcome, _POLL_S):
                    return self._outcome[step] == ""
        return False

    def give_up(self, step: int) -> str:
        """Why the save of `step`, which was waited for, is not known to be a checkpoint; empty where it is one by now.

        Where this rank's part is still being written that ends here, and everybody is told. A part that is durable
        already may become one yet: its report stays with the agent until the catalogue answers.
        """
        if step not in self._outcome and self._saver.drop(step):
            self._on_failed(step, "its part was not written in time")
        return self._outcome.get(step, "the catalogue did not answer in time, and may still commit it")

    @property
    def newest(self) -> CheckpointRef | None:
        """The newest checkpoint of this generation that this rank knows to be committed."""
        return self._newest

    def close(self) -> None:
        """Abandon what is in flight."""
        self._saver.close()
        for step in list(self._open):
            self._over(step, "abandoned: the generation ended before it was known to be committed")

    def finish(self, timeout_s: float) -> None:
        """Let what is in flight be written, within `timeout_s`."""
        self._saver.close(timeout_s)

    def _settle(self, step: int, failure: str) -> None:
        with self._known:
            self._outcome[step] = failure
            for old in sorted(self._outcome)[:-8]:
                del self._outcome[old]
            self._known.notify_all()
        self._over(step, failure)

    def _over(self, step: int, failure: str) -> None:
        """The span of a save ends once, whoever of the threads hears first what became of it."""
        self._spans.end(self._open.pop(step, None), error=failure)

    # ---- the saver's thread

    def _on_saved(self, result: ShardResult) -> None:
        if self._storage.catalogue is None:
            span = self._open.get(result.step)
            self._link.send(
                ShardSaved(
                    generation=result.generation,
                    step=result.step,
                    rank=result.rank,
                    world_size=result.world_size,
                    shard_key=result.shard_key,
                    shard_hash=result.shard_hash,
                    bytes_written=result.bytes_written,
                    bytes_reused=result.bytes_reused,
                    seconds=result.seconds,
                    traceparent=span.traceparent if span else "",
                )
            )
        elif self._world.is_main:
            self._storage.catalogue.commit_when_whole(
                f"s{result.step}-{self._nonce}",
                result.step,
                result.world_size,
                lambda ref, why: self._on_local_commit(result.step, ref, why),
            )
        else:
            self._settle(result.step, "")

    def _on_failed(self, step: int, text: str) -> None:
        log.warning("the checkpoint of step %d failed on rank %d: %s; training goes on", step, self._world.rank, text)
        self._link.send(
            SaveFailed(generation=self._world.generation, step=step, rank=self._world.rank, message=text[:2000])
        )
        self._settle(step, text)

    def _on_local_commit(self, step: int, ref: CheckpointRef | None, why: str) -> None:
        if ref is None:
            log.warning("the checkpoint of step %d was not committed: %s; training goes on", step, why)
            self._settle(step, why)
        else:
            self._note(ref)

    # ---- the link's thread

    def _opened(self, message: SaveOpened) -> None:
        if message.step == self._begun_step:
            self._saver.opened(message)

    def _refused(self, message: SaveRefused) -> None:
        if message.step != self._begun_step:
            return
        log.warning(
            "no checkpoint at step %d: %s (%s); training goes on", message.step, message.message, message.reason
        )
        self._saver.drop(message.step)
        self._settle(message.step, message.message)

    def _committed(self, message: CheckpointCommitted) -> None:
        self._note(CheckpointRef(step=message.step, manifest_hash=message.manifest_hash))

    def _failed(self, message: CheckpointFailed) -> None:
        log.warning("the checkpoint of step %d failed: %s; training goes on", message.step, message.message)
        self._settle(message.step, message.message)

    def _note(self, ref: CheckpointRef) -> None:
        self._newest = ref
        self._settle(ref.step, "")
        self._on_committed(ref)
