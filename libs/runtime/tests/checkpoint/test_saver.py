from __future__ import annotations

import resource
import signal
import threading
from pathlib import Path

import pytest
import torch

from distroml.manifest import Keys, read_manifest
from distroml.objectstore import ObjectStoreDown, ObjectStoreError, ObjectStoreFull, ObjectStoreRefused
from distroml.objectstore.filesystem import open_object_store as open_filesystem
from distroml.objectstore.memory import MemoryObjectStore, open_object_store
from distroml.runtime.checkpoint import UnsupportedState, capture, load_into, restore
from distroml.runtime.checkpoint import saver as saving
from libs.runtime.tests.checkpoint.common import JOB, Net, Opened, Outcomes, commit, same, save, saver, train


class Gate:
    """A store whose puts wait, and fail where told to."""

    def __init__(self, store: MemoryObjectStore) -> None:
        self._store = store
        self.open = threading.Event()
        self.open.set()
        self.failing: dict[int, Exception] = {}
        self.puts = 0
        self.reached = threading.Event()

    def put(self, key, data, *, if_absent=False):
        self.puts += 1
        self.reached.set()
        assert self.open.wait(20)
        if self.puts in self.failing:
            raise self.failing[self.puts]
        return self._store.put(key, data, if_absent=if_absent)

    def __getattr__(self, name: str):
        return getattr(self._store, name)


def state() -> dict[str, object]:
    return {"model": {f"w{index}": torch.randn(64, 32) for index in range(8)}}


def test_the_saved_state_is_that_of_the_step_whatever_training_does_afterwards():
    gate = Gate(open_object_store())
    gate.open.clear()
    outcomes = Outcomes()
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    train(net, optimizer, 1)
    then = {name: value.clone() for name, value in net.state_dict().items()}
    one = saver(gate, outcomes)
    assert one.begin(capture(net, optimizer), None, step=1, opened=Opened(1, "s0000000001"))
    train(net, optimizer, 3)
    gate.open.set()
    outcomes.expect(1)
    sha = commit(gate, outcomes.saved)
    fresh = Net(1)
    restore(gate, JOB, sha, fresh)
    same(then, dict(fresh.state_dict()))
    one.close(5)


def test_one_save_at_a_time_and_the_rest_are_counted():
    gate = Gate(open_object_store())
    gate.open.clear()
    outcomes = Outcomes()
    one = saver(gate, outcomes)
    assert one.begin(state(), None, step=1, opened=Opened(1, "s0000000001"))
    assert one.busy
    assert not one.begin(state(), None, step=2, opened=Opened(2, "s0000000002"))
    assert not one.begin(state(), None, step=3)
    assert one.skipped == 2
    assert not one.wait(0.01)
    gate.open.set()
    assert one.wait(10)
    assert not one.busy
    assert one.begin(state(), None, step=4, opened=Opened(4, "s0000000003"))
    outcomes.expect(2)
    assert [result.step for result in outcomes.saved] == [1, 4]
    one.close(5)


def test_the_answer_of_the_catalogue_may_come_later():
    store = open_object_store()
    outcomes = Outcomes()
    one = saver(store, outcomes)
    one.begin(state(), None, step=5)
    one.opened(Opened(4, "s0000000009"))
    assert not one.wait(0.05)
    assert not store.list()
    one.opened(Opened(5, "s0000000001"))
    outcomes.expect(1)
    assert outcomes.saved[0].shard_key.startswith(f"{Keys(JOB).root}shards/s0000000001/")
    one.begin(state(), None, step=6)
    assert not one.drop(5)
    assert one.busy
    assert one.drop(6)
    assert one.wait(10)
    assert len(outcomes.saved) == 1
    assert not outcomes.failed
    one.close(5)


def test_a_catalogue_that_never_answers_costs_one_save():
    outcomes = Outcomes()
    one = saver(open_object_store(), outcomes, open_timeout_s=0)
    one.begin(state(), None, step=5)
    outcomes.expect(1)
    assert outcomes.failed == [(5, "the catalogue did not answer within 0 s")]
    assert not one.busy
    one.close(5)


class Away:
    """A store that fails at so many puts."""

    def __init__(self, error: Exception, times: int) -> None:
        self._store = open_object_store()
        self._error, self.left = error, times
        self.tried = threading.Event()

    def put(self, key, data, *, if_absent=False):
        if self.left:
            self.left -= 1
            self.tried.set()
            raise self._error
        return self._store.put(key, data, if_absent=if_absent)

    def __getattr__(self, name: str):
        return getattr(self._store, name)


@pytest.mark.parametrize("error", [ObjectStoreDown("no answer"), ObjectStoreFull("no room")])
def test_a_save_with_patience_waits_for_a_store_that_is_away(monkeypatch, caplog, error):
    monkeypatch.setattr(saving, "_PAUSES_S", (0.0,))
    outcomes = Outcomes()
    away = Away(error, 20)
    one = saver(away, outcomes)
    then = state()
    with caplog.at_level("WARNING"):
        one.begin(then, None, step=5, opened=Opened(5, "s0000000001"), patience_s=600.0)
        outcomes.expect(1)
    assert not outcomes.failed
    assert caplog.text.count("the save of step 5 waits: ") == 20
    read = {"model": {name: torch.zeros_like(value) for name, value in then["model"].items()}}
    load_into(away, JOB, commit(away, outcomes.saved), read)
    same(then, read)
    one.close(5)


@pytest.mark.parametrize(
    ("error", "patience_s", "tries"),
    [
        pytest.param(ObjectStoreDown("no answer"), 0.0, 1, id="none"),
        pytest.param(ObjectStoreDown("no answer"), 59.0, 1, id="over before the next try"),
        pytest.param(ObjectStoreRefused("wrong key"), 600.0, 6, id="it refuses us"),
        pytest.param(ObjectStoreError("odd"), 600.0, 1, id="not a matter of time"),
    ],
)
def test_a_save_whose_patience_is_at_its_end_fails(monkeypatch, error, patience_s, tries):
    monkeypatch.setattr(saving, "_PAUSES_S", (0.0,) if tries > 1 else (60.0,))
    outcomes = Outcomes()
    away = Away(error, 20)
    one = saver(away, outcomes)
    one.begin(state(), None, step=5, opened=Opened(5, "s0000000001"), patience_s=patience_s)
    outcomes.expect(1)
    assert outcomes.failed == [(5, f"the object store failed: {error}")]
    assert 20 - away.left == tries
    assert not away.list()
    one.close(5)


@pytest.mark.parametrize("how", ["drop", "close"])
def test_nobody_waits_for_a_store_on_behalf_of_a_save_that_is_over(monkeypatch, how):
    monkeypatch.setattr(saving, "_PAUSES_S", (60.0,))
    outcomes = Outcomes()
    away = Away(ObjectStoreDown("no answer"), 20)
    one = saver(away, outcomes)
    one.begin(state(), None, step=5, opened=Opened(5, "s0000000001"), patience_s=600.0)
    assert away.tried.wait(20)
    assert one.drop(5) if how == "drop" else one.close() is None
    assert one.wait(20)
    assert (outcomes.saved, outcomes.failed) == ([], [])
    assert away.left == 19
    one.close(5)


def test_packs_go_where_the_catalogue_says():
    store = open_object_store()
    outcomes = Outcomes()
    one = saver(store, outcomes, pack_bytes=20_000)
    one.begin(state(), None, step=1, opened=Opened(1, "s0000000001", "", f"{Keys(JOB).data_of('s0000000001')}"))
    outcomes.expect(1)
    packs = store.list(Keys(JOB).data)
    assert len(packs) == 4
    assert all(info.size <= 20_000 for info in packs)
    assert sum(info.size for info in packs) == outcomes.saved[0].bytes_written
    one.close(5)


def test_what_did_not_change_is_not_written_again():
    store = open_object_store()
    one = state()
    base, first = save(store, one, step=1, world_size=2)
    model = one["model"]
    assert isinstance(model, dict)
    model["w3"].add_(1)
    sha, second = save(store, one, step=2, world_size=2, base=base)
    assert sum(result.bytes_written for result in first) == 8 * 64 * 32 * 4
    assert sum(result.bytes_written for result in second) == 64 * 32 * 4
    assert sum(result.bytes_reused for result in second) == 7 * 64 * 32 * 4
    into: dict[str, object] = {"model": {name: torch.zeros(64, 32) for name in model}}
    load_into(store, JOB, sha, into)
    same(one, into)


def test_a_base_that_cannot_be_read_costs_only_bytes():
    store = open_object_store()
    base, _ = save(store, state(), step=1)
    store.put(Keys(JOB).manifest(base), b"damaged")
    one = state()
    sha, results = save(store, one, step=2, base=base)
    assert results[0].bytes_reused == 0
    assert read_manifest(store.get(Keys(JOB).manifest(sha)), sha).base == base


def test_equal_tensors_are_written_once():
    store = open_object_store()
    zeros: dict[str, object] = {"model": {f"z{index}": torch.zeros(64, 64) for index in range(10)}}
    _, results = save(store, zeros)
    assert results[0].bytes_written == 64 * 64 * 4


def test_a_full_store_at_every_put_is_reported_and_training_goes_on():
    gate = Gate(open_object_store())
    good = state()
    base, _ = save(gate, good, step=1, pack_bytes=20_000)
    puts = 0
    while True:
        puts += 1
        gate.puts, gate.failing = 0, {puts: ObjectStoreFull("no room on the device")}
        outcomes = Outcomes()
        one = saver(gate, outcomes, pack_bytes=20_000)
        assert one.begin(state(), None, step=puts + 1, opened=Opened(puts + 1, f"s{puts + 1:010d}", base))
        outcomes.expect(1)
        if outcomes.saved:
            break
        assert outcomes.failed[0][0] == puts + 1
        assert "no room on the device" in outcomes.failed[0][1]
        assert not one.busy
        one.close(5)
    # Four packs and the shard manifest.
    assert puts == 6
    into: dict[str, object] = {"model": {f"w{index}": torch.zeros(64, 32) for index in range(8)}}
    load_into(gate, JOB, base, into)
    same(good, into)


@pytest.mark.parametrize("error", [ObjectStoreDown("no answer"), RuntimeError("a defect")])
def test_any_other_failure_is_reported_too(error: Exception):
    gate = Gate(open_object_store())
    gate.failing = {1: error}
    outcomes = Outcomes()
    one = saver(gate, outcomes)
    one.begin(state(), None, step=1, opened=Opened(1, "s0000000001"))
    outcomes.expect(1)
    assert str(error) in outcomes.failed[0][1]
    assert one.begin(state(), None, step=2, opened=Opened(2, "s0000000002"))
    outcomes.expect(2)
    assert len(outcomes.saved) == 1
    one.close(5)


def test_a_real_file_size_limit(tmp_path: Path):
    """The kernel refuses the write in the middle of a pack: nothing is left under its key."""
    store = open_filesystem(tmp_path)
    outcomes = Outcomes()
    one = saver(store, outcomes)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
        one.begin(state(), None, step=1, opened=Opened(1, "s0000000001"))
        outcomes.expect(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "full" in outcomes.failed[0][1]
    assert not store.list()
    assert one.begin(state(), None, step=2, opened=Opened(2, "s0000000002"))
    outcomes.expect(2)
    assert len(outcomes.saved) == 1
    one.close(5)


def test_a_broken_generation_ends_a_save_without_a_word():
    gate = Gate(open_object_store())
    gate.open.clear()
    outcomes = Outcomes()
    one = saver(gate, outcomes, pack_bytes=20_000)
    one.begin(state(), None, step=1, opened=Opened(1, "s0000000001"))
    assert gate.reached.wait(10)
    one.close()
    gate.open.set()
    one.close(10)
    assert not outcomes.saved
    assert not outcomes.failed
    # It stopped before the next pack.
    assert gate.puts == 1
    with pytest.raises(ValueError, match="closed"):
        one.begin(state(), None, step=2)


def test_a_state_that_can_never_be_saved_is_told_at_once():
    outcomes = Outcomes()
    one = saver(open_object_store(), outcomes)
    with pytest.raises(UnsupportedState, match=r"model\.lock"):
        one.begin({"model": {"w": torch.ones(2), "lock": threading.Lock()}}, None, step=1)
    with pytest.raises(UnsupportedState, match="extra"):
        one.begin(state(), threading.Lock(), step=1)
    with pytest.raises(UnsupportedState, match="at most"):
        one.begin(state(), b"x" * (1 << 20), step=1)
    assert not one.busy
    assert not outcomes.failed


def test_a_rank_outside_the_world_is_refused():
    with pytest.raises(ValueError, match="rank 2 is not in a world of 2"):
        saver(open_object_store(), Outcomes(), 2, 2)


def test_a_rank_with_nothing_to_write_still_reports():
    store = open_object_store()
    tiny: dict[str, object] = {"model": {"w": torch.ones(1)}}
    sha, results = save(store, tiny, world_size=3, extras=["a", "b", "c"])
    assert sorted(result.bytes_written for result in results) == [0, 0, 4]
    into: dict[str, object] = {"model": {"w": torch.zeros(1)}}
    assert load_into(store, JOB, sha, into).extras == ("a", "b", "c")


def test_buffers_are_used_again():
    store = open_object_store()
    outcomes = Outcomes()
    one = saver(store, outcomes)
    held = state()
    addresses = []
    for step in (1, 2):
        one.begin(held, None, step=step, opened=Opened(step, f"s{step:010d}"))
        assert one.wait(10)
        addresses.append(sorted(buffer.data_ptr() for buffer in one._planner._buffers.values()))
    assert addresses[0] == addresses[1]
    one.close(5)
