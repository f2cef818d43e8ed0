"""What of an attempt must survive the agent: the generation in force, and who ran in which place."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import msgspec

from distroml.agent.adapters.processes import Identity, read_identity, write_whole
from distroml.agent.domain.gang import Attempt, Formed, Place, Process
from distroml.agent.worker import Facts, read_facts, was_reported
from distroml.workerlink import CheckpointRef


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    formed: Formed | None = None
    broken: int = 0
    opened: int = 0
    restore_known: bool = False
    restore: CheckpointRef | None = None


class AttemptFile:
    """`attempt.json` in the attempt's folder, and the workers' folders beside it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept = _Kept()

    def save(self, state: Attempt) -> None:
        """Keep what changed; a full disk costs the next agent knowledge, not this one its work."""
        kept = _Kept(
            formed=state.formed,
            broken=state.broken,
            opened=state.opened,
            restore_known=state.restore_known,
            restore=state.restore,
        )
        if kept != self._kept:
            self._kept = kept
            with contextlib.suppress(OSError):
                write_whole(self._folder / "attempt.json", msgspec.json.encode(kept))

    def load(self, workers: list[str], grace_s: float) -> tuple[Attempt, list[tuple[Facts, Identity]]]:
        """The attempt as an earlier agent left it, and the processes whose end nobody has reported yet."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            self._kept = msgspec.json.decode((self._folder / "attempt.json").read_bytes(), type=_Kept)
        places = {worker: Place(worker=worker) for worker in workers}
        found: list[tuple[Facts, Identity]] = []
        for worker, facts in self._newest().items():
            folder = worker_folder(self._folder, facts)
            identity = read_identity(folder)
            place = Place(worker=worker, incarnation=facts.incarnation, leaving=worker not in places)
            if identity is None:
                # The agent ended before the process was made: nothing ever ran.
                places[worker] = place
            elif was_reported(folder):
                places[worker] = replace(place, ended_in=facts.generation)
            else:
                places[worker] = replace(place, process=_process(facts))
                found.append((facts, identity))
        kept = self._kept
        state = Attempt(
            places=tuple(places.values()),
            grace_s=grace_s,
            formed=kept.formed,
            broken=kept.broken,
            opened=kept.opened,
            restore_known=kept.restore_known,
            restore=kept.restore,
        )
        return state, found

    def _newest(self) -> dict[str, Facts]:
        newest: dict[str, Facts] = {}
        for folder in self._folder.glob("[0-9]*.[0-9]*"):
            facts = read_facts(folder)
            if facts is not None and facts.incarnation >= newest.get(facts.worker, facts).incarnation:
                newest[facts.worker] = facts
        return newest


def worker_folder(attempt: Path, facts: Facts) -> Path:
    """Where one process of a worker leaves everything about itself."""
    return attempt / f"{facts.worker.rpartition('.')[2]}.{facts.incarnation}"


def _process(facts: Facts) -> Process:
    return Process(incarnation=facts.incarnation, generation=facts.generation, rank=facts.rank, managed=facts.managed)
