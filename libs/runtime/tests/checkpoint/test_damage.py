"""No flipped, lost or foreign byte is ever loaded silently."""

from __future__ import annotations

import random

import pytest
import torch

from distroml.manifest import Keys
from distroml.objectstore.memory import open_object_store
from distroml.runtime.checkpoint import CorruptChunk, capture, load_into, restore
from libs.runtime.tests.checkpoint.common import JOB, Net, save, train


@pytest.fixture(scope="module")
def saved():
    store = open_object_store()
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    train(net, optimizer, 1)
    base, _ = save(store, capture(net, optimizer), step=1, world_size=2, chunk_bytes=512, pack_bytes=8192)
    with torch.no_grad():
        net.head.weight += 1
    sha, _ = save(
        store, capture(net, optimizer), step=2, world_size=2, base=base, extras=[1, 2], chunk_bytes=512, pack_bytes=8192
    )
    return store, sha


def mutated(data: bytes, random_: random.Random) -> bytes:
    changed = bytearray(data)
    place = random_.randrange(len(changed))
    match random_.randrange(5):
        case 0:
            changed[place] ^= 1 << random_.randrange(8)
        case 1:
            del changed[place:]
        case 2:
            changed[place : place + 16] = bytes(len(changed[place : place + 16]))
        case 3:
            changed[place:place] = b"\0"
        case _:
            other = random_.randrange(len(changed))
            changed[place], changed[other] = changed[other], changed[place]
    return bytes(changed)


def test_hundreds_of_mutations_anywhere(saved):
    store, sha = saved
    random_ = random.Random(11)
    into = capture(Net(1), None)
    needed = [info.key for info in store.list(Keys(JOB).root) if "/shards/" not in info.key]
    found, harmless = 0, 0
    expected = Net(1)
    restore(store, JOB, sha, expected)
    for _ in range(500):
        key = random_.choice(needed)
        original = store.get(key)
        changed = mutated(original, random_)
        if changed == original:
            continue
        store.put(key, changed)
        restored, damage = Net(2), None
        try:
            load_into(store, JOB, sha, capture(restored), threads=random_.choice([1, 3]))
        except CorruptChunk as corrupt:
            damage = corrupt
        store.put(key, original)
        if damage is not None:
            assert (damage.manifest_hash, damage.object_key) == (sha, key)
            assert damage.message in str(damage)
            found += 1
        else:
            # Only bytes that this load does not need: of the optimizer, or of the older checkpoint.
            for one, other in zip(restored.state_dict().values(), expected.state_dict().values(), strict=True):
                assert torch.equal(one, other)
            harmless += 1
    assert found > 100
    assert harmless < 400
    load_into(store, JOB, sha, into)


def test_every_flipped_byte_of_what_a_whole_load_reads(saved):
    """Every chunk is read by a load of everything: a flip in any needed object is found, wherever it is."""
    store, sha = saved
    random_ = random.Random(5)
    from distroml.manifest import read_manifest

    manifest = read_manifest(store.get(Keys(JOB).manifest(sha)), sha)
    chunks = {(c.object, c.offset): c for entry in manifest.entries for c in entry.chunks}
    for chunk in random_.sample(sorted(chunks.values(), key=lambda c: (c.object, c.offset)), 60):
        key = manifest.objects[chunk.object].key
        original = store.get(key)
        changed = bytearray(original)
        changed[chunk.offset + random_.randrange(chunk.length)] ^= 1 << random_.randrange(8)
        store.put(key, bytes(changed))
        net = Net(1)
        with pytest.raises(CorruptChunk) as caught:
            restore(store, JOB, sha, net, torch.optim.AdamW(net.parameters()))
        assert (caught.value.object_key, caught.value.chunk_hash) == (key, chunk.sha256)
        store.put(key, original)


@pytest.mark.parametrize("what", ["data", "manifests"])
def test_a_missing_object_is_named(saved, what: str):
    store, sha = saved
    key = next(info.key for info in store.list(f"{Keys(JOB).root}{what}/") if what == "data" or sha in info.key)
    original = store.get(key)
    store.delete(key)
    net = Net(1)
    try:
        with pytest.raises(CorruptChunk, match="missing") as caught:
            restore(store, JOB, sha, net, torch.optim.AdamW(net.parameters()))
        assert caught.value.object_key == key
    finally:
        store.put(key, original)


def test_a_pack_of_another_job_in_its_place_is_found(saved):
    store, sha = saved
    first, second, *_ = [info for info in store.list(Keys(JOB).data)]
    one, other = store.get(first.key), store.get(second.key)
    store.put(first.key, other)
    store.put(second.key, one)
    net = Net(1)
    with pytest.raises(CorruptChunk):
        restore(store, JOB, sha, net, torch.optim.AdamW(net.parameters()))
    store.put(first.key, one)
    store.put(second.key, other)
