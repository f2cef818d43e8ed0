"""The parts of all ranks made one manifest."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from distroml.manifest.cover import check_cover
from distroml.manifest.model import ChunkRef, Entry, Manifest, ObjectRef, ShardManifest


class CannotMerge(Exception):
    """The parts do not make a whole checkpoint; says which and why."""


def merge(shards: Sequence[ShardManifest], *, project: str = "") -> Manifest:
    """One manifest of the parts of every rank, the same bytes whatever order they come in.

    Raises:
        CannotMerge: a rank is missing or twice, the parts are of different saves, two parts disagree on an
            object's size, or a tensor is not covered exactly once.
    """
    if not shards:
        raise CannotMerge("there is no shard to merge")
    ordered = sorted(shards, key=lambda shard: shard.rank)
    first = ordered[0]
    for shard in ordered:
        if _save(shard) != _save(first):
            raise CannotMerge(
                f"rank {shard.rank} reports another save: {_save(shard)}, rank {first.rank} {_save(first)}"
            )
    ranks = [shard.rank for shard in ordered]
    if ranks != list(range(first.world_size)):
        raise CannotMerge(f"a save of {first.world_size} ranks needs each of them once, got {ranks}")
    sizes: dict[str, int] = {}
    for shard in ordered:
        for object in shard.objects:
            if sizes.setdefault(object.key, object.size) != object.size:
                raise CannotMerge(f"{object.key} is said to have {sizes[object.key]} and {object.size} bytes")
    objects = tuple(ObjectRef(key, sizes[key]) for key in sorted(sizes))
    place = {object.key: index for index, object in enumerate(objects)}
    entries = [
        _moved(entry, [place[object.key] for object in shard.objects]) for shard in ordered for entry in shard.entries
    ]
    entries.sort(key=_order)
    if problem := check_cover(entries):
        raise CannotMerge(f"the shards do not make a whole checkpoint: {problem}")
    return Manifest(
        job=first.job,
        project=project,
        save_id=first.save_id,
        step=first.step,
        generation=first.generation,
        world_size=first.world_size,
        base=first.base,
        objects=objects,
        entries=tuple(entries),
        extras=tuple(shard.extra for shard in ordered),
        bytes_total=sum(chunk.length for entry in entries for chunk in entry.chunks),
        bytes_written=sum(shard.bytes_written for shard in ordered),
        bytes_reused=sum(shard.bytes_reused for shard in ordered),
    )


def _save(shard: ShardManifest) -> tuple[str, str, int, int, int, str]:
    return shard.job, shard.save_id, shard.generation, shard.step, shard.world_size, shard.base


def _order(entry: Entry) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    return (entry.fqn, getattr(entry, "offsets", ()), getattr(entry, "sizes", ()))


def _moved(entry: Entry, place: Sequence[int]) -> Entry:
    chunks = tuple(ChunkRef(place[chunk.object], chunk.offset, chunk.length, chunk.sha256) for chunk in entry.chunks)
    return msgspec.structs.replace(entry, chunks=chunks)
