"""Which checkpoints are kept, and which of a job's objects nobody needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from distroml.checkpoint.domain.state import Catalogue, Checkpoint, Phase, save_number
from distroml.manifest import Keys


def not_kept(catalogue: Catalogue, at_ms: int) -> tuple[Checkpoint, ...]:
    """What retention does not keep, oldest first.

    Kept are the newest `keep` sound checkpoints, damaged ones among or after them (their bytes may be of use to
    a person), pinned ones, and the base of an open save.
    """
    sound = [c for c in catalogue.present if c.phase is Phase.COMMITTED]
    newest = sound[-catalogue.keep :]
    base = catalogue.open.base_manifest_hash if catalogue.open else ""
    kept = {c.manifest_hash for c in newest} | {base}
    if newest:
        first = catalogue.present.index(newest[0])
        damaged = [c for c in catalogue.present[first:] if c.phase is Phase.DAMAGED]
    else:
        damaged = [c for c in catalogue.present if c.phase is Phase.DAMAGED]
    kept |= {c.manifest_hash for c in damaged[-catalogue.keep :]}
    return tuple(c for c in catalogue.present if c.manifest_hash not in kept and not c.pinned(at_ms))


def unreachable(catalogue: Catalogue, keys: Iterable[str], reach: Mapping[str, frozenset[str] | None]) -> list[str]:
    """Which of the job's objects nothing needs.

    Safe only where `keys` were listed before `catalogue` was read: then an object belongs to a save that the
    catalogue knows, or is newer and kept. An object of a closed save that no present manifest reaches can never
    be referred to again, since a save takes chunks only from its own packs and its base.

    Args:
        catalogue: the job's state.
        keys: listed before.
        reach: by manifest hash of every present checkpoint the objects it needs; None where its manifest cannot
            be read: then everything its save wrote is kept.
    """
    names = Keys(catalogue.job)
    needed = frozenset[str]().union(*(objects for objects in reach.values() if objects is not None))
    unread = {c.save_id for c in catalogue.present if reach.get(c.manifest_hash) is None}
    hashes = {c.manifest_hash for c in catalogue.present}

    def is_garbage(key: str) -> bool:
        if (manifest_hash := names.hash_of(key)) is not None:
            # An open save may be about to commit a manifest that is not known yet.
            return manifest_hash not in hashes and catalogue.open is None
        save = names.save_of(key)
        number = None if save is None else save_number(save)
        if save is None or number is None or number > catalogue.opened or save in unread:
            return False
        if catalogue.open is not None and catalogue.open.save_id == save:
            return False
        return key not in needed

    return [key for key in keys if is_garbage(key)]
