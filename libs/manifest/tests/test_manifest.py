from __future__ import annotations

import json
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distroml.manifest import (
    BytesEntry,
    CannotMerge,
    ChunkRef,
    ForeignManifest,
    Keys,
    Manifest,
    ManifestDamaged,
    ManifestError,
    ObjectRef,
    ShardManifest,
    TensorEntry,
    chunk_bounds,
    chunk_hash,
    chunk_index,
    decode_manifest,
    decode_shard,
    diff,
    encode,
    hash_of,
    merge,
    pack_chunks,
    pack_name,
    reachable,
    read_manifest,
    read_shard,
    verify_chunks,
)


def tensor(name: str, rows: tuple[int, int], data: bytes, object: int = 0, at: int = 0) -> TensorEntry:
    """Rows [start, end) of a 4x2 uint8 tensor."""
    start, end = rows
    return TensorEntry(
        fqn=f"model.{name}",
        path=("model", name),
        dtype="uint8",
        shape=(4, 2),
        offsets=(start, 0),
        sizes=(end - start, 2),
        chunks=(ChunkRef(object, at, len(data), chunk_hash(data)),),
    )


def shard(rank: int, world_size: int = 2, **changes: object) -> ShardManifest:
    half = bytes(range(rank * 4, rank * 4 + 4))
    fields: dict[str, object] = {
        "job": "j",
        "save_id": "s0000000001",
        "step": 7,
        "generation": 2,
        "rank": rank,
        "world_size": world_size,
        "objects": (ObjectRef(f"checkpoints/j/data/s0000000001/r{rank}", 4),),
        "entries": (tensor("w", (rank * 2, rank * 2 + 2), half),),
        "extra": bytes([rank]),
        "bytes_written": 4,
        "bytes_reused": 0,
    }
    return ShardManifest(**{**fields, **changes})  # type: ignore[arg-type]


def test_what_is_written_is_read_and_its_hash_is_its_name():
    one = shard(0)
    data = encode(one)
    assert data == encode(shard(0))
    assert read_shard(data, hash_of(data)) == one
    whole = merge([shard(1), one], project="p")
    data = encode(whole)
    assert read_manifest(data, hash_of(data)) == whole
    assert encode(merge([one, shard(1)], project="p")) == data
    assert whole.extras == (b"\0", b"\1")
    assert whole.bytes_total == 8
    assert json.loads(data)["format"] == "distroml.manifest/1"


@pytest.mark.parametrize(
    ("shards", "says"),
    [
        ([], "no shard"),
        ([shard(0)], "needs each of them once"),
        ([shard(0), shard(0)], "needs each of them once"),
        ([shard(0), shard(1, step=8)], "another save"),
        ([shard(0), shard(1, base="a" * 64)], "another save"),
        ([shard(0), shard(1, entries=())], "4 of 8 elements"),
        ([shard(0), shard(1, entries=(tensor("w", (0, 2), b"abcd"),))], "overlap"),
        ([shard(0), shard(1, objects=(ObjectRef("checkpoints/j/data/s0000000001/r0", 5),))], "4 and 5 bytes"),
    ],
)
def test_parts_that_make_no_whole_are_refused(shards: list[ShardManifest], says: str):
    with pytest.raises(CannotMerge, match=says):
        merge(shards)


def test_a_value_may_appear_once():
    value = BytesEntry(fqn="v", path=("v",), chunks=(ChunkRef(0, 0, 4, "0" * 64),))
    rest = [shard(rank, entries=(*shard(rank).entries, value)) for rank in (0, 1)]
    with pytest.raises(CannotMerge, match="v appears twice"):
        merge(rest)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objects": ()}, "refers to object 0 of 0"),
        ({"objects": (ObjectRef("o", 3),)}, "has 3 bytes"),
        ({"objects": (ObjectRef("o", 4), ObjectRef("o", 4))}, "twice"),
        ({"objects": (ObjectRef("../etc", 4),)}, "shape it must have"),
        ({"entries": (tensor("w", (0, 3), b"abcd"),)}, "has 6 bytes, its chunks 4"),
        ({"entries": (tensor("w", (3, 5), b"abcd"),)}, "leaves the shape"),
        ({"extra": b"x" * (1 << 20) + b"y"}, "at most"),
        ({"step": -1}, "shape it must have"),
        ({"base": "nothing"}, "shape it must have"),
    ],
)
def test_what_contradicts_itself_is_refused(changes: dict[str, object], says: str):
    with pytest.raises(ManifestDamaged, match=says):
        decode_shard(encode(shard(0, **changes)))


def test_a_rank_outside_its_world_is_refused():
    with pytest.raises(ManifestDamaged, match="rank 2 in a world of 2"):
        decode_shard(encode(shard(2)))


def test_an_unknown_dtype_is_refused():
    entry = msgspec.structs.replace(shard(0).entries[0], dtype="object")
    with pytest.raises(ManifestDamaged, match="'object' cannot be stored"):
        decode_shard(encode(shard(0, entries=(entry,))))


def test_a_manifest_that_is_not_whole_is_refused():
    whole = merge([shard(0), shard(1)])
    for changes, says in (
        ({"entries": whole.entries[:1], "bytes_total": 4}, "not whole"),
        ({"bytes_total": 9}, "add up to 8"),
        ({"extras": (b"",)}, "1 extras"),
    ):
        with pytest.raises(ManifestDamaged, match=says):
            decode_manifest(encode(msgspec.structs.replace(whole, **changes)))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"\x80\x04K\x01.", b'{"format": 3}', b"[" * 99999]
)
def test_other_bytes_are_damage(data: bytes):
    for read in (decode_manifest, decode_shard):
        with pytest.raises(ManifestDamaged):
            read(data)


def test_another_format_is_named():
    with pytest.raises(ForeignManifest, match=r"distroml\.shard/1"):
        decode_manifest(encode(shard(0)))
    newer = encode(shard(0)).replace(b"shard/1", b"shard/2")
    with pytest.raises(ForeignManifest, match=r"distroml\.shard/2"):
        decode_shard(newer)
    with pytest.raises(ForeignManifest):
        decode_shard(b"{}")


def test_an_unknown_field_is_refused():
    data = encode(shard(0)).replace(b'"job":"j"', b'"job":"j","run":"x"')
    with pytest.raises(ManifestDamaged, match="run"):
        decode_shard(data)


def test_no_mutation_of_a_manifest_is_read_silently():
    random_ = random.Random(7)
    for original, read in ((encode(shard(0)), read_shard), (encode(merge([shard(0), shard(1)])), read_manifest)):
        name = hash_of(original)
        for _ in range(300):
            data = bytearray(original)
            place = random_.randrange(len(data))
            kind = random_.randrange(4)
            if kind == 0:
                data[place] ^= 1 << random_.randrange(8)
            elif kind == 1:
                del data[place:]
            elif kind == 2:
                data[place:place] = data[place : place + random_.randrange(1, 40)]
            else:
                data[place] = random_.randrange(256)
            if bytes(data) == original:
                continue
            with pytest.raises(ManifestError):
                read(bytes(data), name)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 60))
def test_packs_hold_every_chunk_once_and_are_not_overfull(lengths: list[int], pack_bytes: int):
    packs = pack_chunks(lengths, pack_bytes)
    assert [index for pack in packs for index, _ in pack.members] == list(range(len(lengths)))
    for pack in packs:
        assert pack.size == sum(lengths[index] for index, _ in pack.members)
        assert pack.size <= pack_bytes or len(pack.members) == 1
        end = 0
        for index, offset in pack.members:
            assert offset == end
            end += lengths[index]


@given(st.integers(0, 100), st.integers(1, 30))
def test_chunks_are_cut_at_fixed_places(length: int, chunk_bytes: int):
    bounds = list(chunk_bounds(length, chunk_bytes))
    assert sum(size for _, size in bounds) == length
    assert all(offset % chunk_bytes == 0 and 0 < size <= chunk_bytes for offset, size in bounds)


def test_chunk_sizes_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        list(chunk_bounds(10, 0))


def test_a_packs_name_is_its_content():
    assert pack_name(["a", "b"]) == pack_name(["a", "b"]) != pack_name(["ab"]) != pack_name(["b", "a"])


def test_diff_and_reach():
    base = merge([shard(0), shard(1)])
    # Rank 1 changed its rows, rank 0's chunk lies in the base's pack.
    kept = shard(0, save_id="s0000000002", base="a" * 64, bytes_written=0, bytes_reused=4)
    new = shard(
        1,
        save_id="s0000000002",
        base="a" * 64,
        objects=(ObjectRef("checkpoints/j/data/s0000000002/r1", 4),),
        entries=(tensor("w", (2, 4), b"new!"),),
    )
    manifest = merge([kept, new])
    found = diff(manifest, base)
    assert (found.reused_chunks, found.reused_bytes, found.new_chunks, found.new_bytes) == (1, 4, 1, 4)
    assert found.dropped_chunks == 1
    assert reachable(manifest) == {"checkpoints/j/data/s0000000001/r0", "checkpoints/j/data/s0000000002/r1"}
    assert chunk_index(base)[chunk_hash(b"\0\1\2\3")].object.key.endswith("r0")


def test_every_chunk_is_compared():
    manifest = merge([shard(0), shard(1)])
    packs = {"checkpoints/j/data/s0000000001/r0": b"\0\1\2\3", "checkpoints/j/data/s0000000001/r1": b"\4\5\6\7"}

    def read(key: str, offset: int, length: int) -> bytes | None:
        return packs[key][offset : offset + length] if key in packs else None

    assert [damage for _, damage in verify_chunks(manifest, read)] == [None, None]
    packs["checkpoints/j/data/s0000000001/r1"] = b"\4\5\6\6"
    damages = [damage for _, damage in verify_chunks(manifest, read) if damage]
    assert [d.object_key for d in damages] == ["checkpoints/j/data/s0000000001/r1"]
    packs["checkpoints/j/data/s0000000001/r1"] = b"\4\5"
    assert "2 of 4 bytes" in next(d for _, d in verify_chunks(manifest, read) if d).message
    del packs["checkpoints/j/data/s0000000001/r1"]
    assert "missing" in next(d for _, d in verify_chunks(manifest, read) if d).message


def boxes(shape: tuple[int, ...], cuts: list[tuple[int, int]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut the whole box at (dim, place) again and again."""
    found = [((0,) * len(shape), shape)]
    for number, (dim, place) in enumerate(cuts):
        dim %= len(shape)
        offsets, sizes = found.pop(number % len(found))
        at = place % (sizes[dim] + 1)
        if at in (0, sizes[dim]):
            found.append((offsets, sizes))
            continue
        found.append((offsets, (*sizes[:dim], at, *sizes[dim + 1 :])))
        moved = (*offsets[:dim], offsets[dim] + at, *offsets[dim + 1 :])
        found.append((moved, (*sizes[:dim], sizes[dim] - at, *sizes[dim + 1 :])))
    return found


def manifest_of(shape: tuple[int, ...], parts: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> Manifest:
    entries = []
    for offsets, sizes in parts:
        size = 1
        for extent in sizes:
            size *= extent
        chunks = (ChunkRef(0, 0, size, "0" * 64),) if size else ()
        entries.append(
            TensorEntry(fqn="t", path=("t",), dtype="uint8", shape=shape, offsets=offsets, sizes=sizes, chunks=chunks)
        )
    total = sum(chunk.length for entry in entries for chunk in entry.chunks)
    return Manifest(
        job="j",
        save_id="s",
        step=1,
        generation=1,
        world_size=1,
        objects=(ObjectRef("o", 10_000),),
        entries=tuple(entries),
        extras=(b"",),
        bytes_total=total,
        bytes_written=0,
        bytes_reused=0,
    )


@settings(max_examples=200)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), max_size=8),
    st.data(),
)
def test_a_tensor_is_covered_exactly_once(shape: tuple[int, ...], cuts: list[tuple[int, int]], draw: st.DataObject):
    parts = boxes(shape, cuts)
    decode_manifest(encode(manifest_of(shape, parts)))
    if len(parts) > 1:
        missing = draw.draw(st.sampled_from(parts))
        without = [part for part in parts if part != missing]
        with pytest.raises(ManifestDamaged, match="elements"):
            decode_manifest(encode(manifest_of(shape, without)))
        # A hole filled by a second copy of a slice of the same size has the right volume.
        same = [(a, b) for a in parts for b in parts if a != b and a[1] == b[1]]
        if same:
            gone, twice = draw.draw(st.sampled_from(same))
            shifted = [twice if part == gone else part for part in parts]
            with pytest.raises(ManifestDamaged, match="overlap"):
                decode_manifest(encode(manifest_of(shape, shifted)))


def test_tensors_without_elements_or_dimensions():
    decode_manifest(encode(manifest_of((0, 3), [((0, 0), (0, 3))])))
    decode_manifest(encode(manifest_of((), [((), ())])))
    with pytest.raises(ManifestDamaged, match="2 of 1"):
        decode_manifest(encode(manifest_of((), [((), ()), ((), ())])))


def test_keys_say_whose_they_are():
    keys = Keys("job-a")
    pack, part, sha = keys.pack("s0000000003", 1, "abc"), keys.shard("s0000000003", 1, "d" * 64), "e" * 64
    assert keys.save_of(pack) == keys.save_of(part) == "s0000000003"
    assert keys.hash_of(keys.manifest(sha)) == sha
    assert keys.save_of(keys.manifest(sha)) is None
    assert keys.hash_of(pack) is None
    assert keys.save_of("checkpoints/job-b/data/s0000000003/x") is None
    assert keys.save_of("checkpoints/job-a/data/loose") is None
