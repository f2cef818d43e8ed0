from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest
import torch

from distroml.objectstore.memory import open_object_store
from distroml.runtime.checkpoint import (
    CheckpointError,
    CorruptChunk,
    StateMismatch,
    UnsupportedState,
    capture,
    load_into,
    restore,
)
from distroml.runtime.checkpoint import plan as plan_module
from distroml.runtime.checkpoint.plain import decode_plain, encode_plain
from libs.runtime.tests.checkpoint.common import JOB, Net, same, save, train

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.complex64,
    torch.complex128,
]


def bits(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Any bit pattern, NaNs among them."""
    count = int(np.prod(shape))
    raw = torch.from_numpy(np.random.default_rng(3).integers(0, 256, count * dtype.itemsize, dtype=np.uint8))
    return (raw % 2).bool().reshape(shape) if dtype is torch.bool else raw.view(dtype).reshape(shape)


def tensors() -> dict[str, object]:
    strided = torch.arange(60, dtype=torch.float32).reshape(5, 12)
    return {
        "model": {
            **{str(dtype): bits(dtype, (7, 5)) for dtype in DTYPES},
            "scalar": torch.tensor(3.5, dtype=torch.bfloat16),
            "empty": torch.empty(0, 4),
            "transposed": strided.t(),
            "slice": strided[1:4, ::3],
            "expanded": torch.tensor([1.0, 2.0]).expand(3, 2).contiguous(),
            "conj": torch.randn(4, dtype=torch.complex64).conj(),
            "large": torch.randn(300, 70),
        },
        "nested": {"list": [torch.ones(2), {"x": torch.zeros(3)}], "plain": {1: (2, {"three"})}},
    }


def blank(value: object) -> object:
    """The same structure with other content."""
    if isinstance(value, torch.Tensor):
        return torch.full_like(value, 1, memory_format=torch.preserve_format)
    if isinstance(value, dict):
        return {key: blank(item) for key, item in value.items()}
    if isinstance(value, list):
        return [blank(item) for item in value]
    return None


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("chunk_bytes", [48, 4096, 1 << 22])
def test_every_dtype_and_layout_comes_back_bit_for_bit(world_size: int, chunk_bytes: int):
    store = open_object_store()
    state = tensors()
    sha, _ = save(store, state, world_size=world_size, chunk_bytes=chunk_bytes, pack_bytes=20_000)
    into = blank(state)
    assert isinstance(into, dict)
    restored = load_into(store, JOB, sha, into)
    same(state, into)
    assert (restored.step, restored.generation, restored.world_size) == (1, 1, world_size)


def test_a_training_goes_on_as_if_nothing_had_happened():
    store = open_object_store()
    net = Net()
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    train(net, optimizer, 3)
    schedule.step()
    state = capture(net, optimizer, schedule=schedule.state_dict())
    sha, _ = save(store, state, step=3, world_size=2, extras=["zero", "one"])
    expected = train(net, optimizer, 3, seed=1)

    fresh = Net(seed=9)
    later = torch.optim.AdamW([p for p in fresh.parameters() if p.requires_grad], lr=77.0, betas=(0.1, 0.2))
    more: dict[str, object] = {"schedule": {}}
    restored = restore(store, JOB, sha, fresh, later, rank=1, more=more)
    assert restored.extra == "one"
    assert restored.extras == ("zero", "one")
    again = torch.optim.lr_scheduler.StepLR(later, 2)
    again.load_state_dict(more["schedule"])
    assert later.param_groups[0]["betas"] == (0.9, 0.999)
    assert fresh.unused not in later.state
    assert train(fresh, later, 3, seed=1) == expected
    same(capture(net, optimizer), capture(fresh, later))
    assert fresh.head.weight is fresh.embed.weight


def test_a_rank_that_did_not_exist_gets_the_extra_of_rank_0():
    store = open_object_store()
    net = Net()
    sha, _ = save(store, capture(net), world_size=2, extras=[{"rng": 0}, {"rng": 1}])
    assert restore(store, JOB, sha, Net(1), rank=5).extra == {"rng": 0}


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=1e-3),
        lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), amsgrad=True),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.1),
        lambda p: torch.optim.Adafactor(p, lr=0.1),
        lambda p: torch.optim.NAdam(p, lr=0.01),
    ],
)
def test_optimizers_that_never_stepped_get_their_state(make):
    store = open_object_store()
    net, fresh = Net(), Net(1)
    groups = [{"params": [net.embed.weight]}, {"params": list(net.body.parameters()), "lr": 2e-3}]
    optimizer = make(groups)
    train(net, optimizer, 2)
    sha, _ = save(store, capture(net, optimizer))
    later = make([{"params": [fresh.embed.weight]}, {"params": list(fresh.body.parameters()), "lr": 9.0}])
    restore(store, JOB, sha, fresh, later)
    same(capture(net, optimizer), capture(fresh, later))
    assert train(net, optimizer, 2, seed=4) == train(fresh, later, 2, seed=4)


def test_an_optimizer_state_that_is_no_tensor():
    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["count"] = self.state[parameter].get("count", 0) + 1

    store = open_object_store()
    net, fresh = Net(), Net(1)
    optimizer, later = (Counting(one.body.parameters(), lr=0.1) for one in (net, fresh))
    train(net, optimizer, 3)
    sha, _ = save(store, capture(net, optimizer))
    restore(store, JOB, sha, fresh, later)
    assert {values["count"] for values in later.state.values()} == {3}


def test_optimizer_state_in_another_dtype_than_its_parameter_stays_so():
    store = open_object_store()
    weight, other = (torch.nn.Linear(4, 4, bias=False).bfloat16() for _ in range(2))
    optimizer, later = torch.optim.SGD(weight.parameters()), torch.optim.SGD(other.parameters())
    optimizer.state[weight.weight]["master"] = torch.randn(4, 4, dtype=torch.float32)
    sha, _ = save(store, capture(weight, optimizer))
    restore(store, JOB, sha, other, later)
    same(optimizer.state[weight.weight], later.state[other.weight])


def test_an_optimizer_from_before_its_first_step():
    store = open_object_store()
    net, fresh = Net(), Net(1)
    sha, _ = save(store, capture(net, torch.optim.AdamW(net.parameters())))
    later = torch.optim.AdamW(fresh.parameters())
    train(fresh, later, 1)
    restore(store, JOB, sha, fresh, later)
    assert not later.state


def test_the_model_alone_can_be_loaded():
    store = open_object_store()
    net, fresh = Net(), Net(1)
    optimizer = torch.optim.AdamW(net.parameters())
    train(net, optimizer, 1)
    sha, _ = save(store, capture(net, optimizer))
    restore(store, JOB, sha, fresh)
    same(capture(net), capture(fresh))


def test_wrappers_do_not_change_names():
    net = Net()
    compiled = torch.compile(net, backend="eager")
    assert capture(compiled)["model"].keys() == capture(net)["model"].keys()  # type: ignore[union-attr]


def test_extra_state_of_modules():
    class Counter(torch.nn.Linear):
        seen = 0

        def get_extra_state(self):
            return {"seen": self.seen}

        def set_extra_state(self, state):
            self.seen = state["seen"]

    store = open_object_store()
    net, fresh = torch.nn.Sequential(Counter(2, 2)), torch.nn.Sequential(Counter(2, 2))
    net[0].seen = 5
    sha, _ = save(store, capture(net))
    restore(store, JOB, sha, fresh)
    assert fresh[0].seen == 5


def test_what_does_not_fit_is_named():
    store = open_object_store()
    net = Net()
    sha, _ = save(store, capture(net))
    state = capture(Net())
    model = state["model"]
    assert isinstance(model, dict)
    model["frozen"] = torch.ones(6)
    model["unused"] = torch.ones(3, dtype=torch.float64)
    model["count"] = 3
    model["new"] = torch.ones(1)
    del model["embed.weight"]
    with pytest.raises(StateMismatch) as caught:
        load_into(store, JOB, sha, state)
    text = "; ".join(caught.value.problems)
    for name in ("frozen", "unused", "count", "new", "embed.weight"):
        assert f"model.{name}" in text
    assert len(caught.value.problems) == 5


def test_a_foreign_optimizer_is_named():
    store = open_object_store()
    net, fresh = Net(), Net(1)
    optimizer = torch.optim.AdamW(net.parameters())
    train(net, optimizer, 1)
    sha, _ = save(store, capture(net, optimizer))
    with pytest.raises(StateMismatch, match="does not hold"):
        restore(store, JOB, sha, fresh, torch.optim.AdamW(fresh.body.parameters()))
    with pytest.raises(StateMismatch, match="not the model's"):
        capture(fresh, optimizer)
    regrouped = torch.optim.AdamW([{"params": [p]} for p in fresh.parameters()])
    with pytest.raises(StateMismatch, match="parameter groups"):
        restore(store, JOB, sha, fresh, regrouped)


def test_a_checkpoint_of_another_job_is_not_loaded():
    store = open_object_store()
    sha, _ = save(store, capture(Net()))
    store.put(f"checkpoints/other/manifests/{sha}", store.get(f"checkpoints/{JOB}/manifests/{sha}"))
    with pytest.raises(CorruptChunk, match="not of other"):
        load_into(store, "other", sha, capture(Net()))


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"model": {"w": torch.ones(2).to_sparse()}}, r"model\.w .*to_dense"),
        ({"model": {"w": torch.ones(2, device="meta")}}, "meta tensor"),
        ({"model": {"w": torch.ones(2), "lock": object()}}, r"model\.lock .*object"),
        ({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}, "both have this name"),
        ({"a": {(1, 2): torch.ones(1)}}, "no text"),
        ({"a": (torch.ones(1), 3)}, "use a list"),
    ],
)
def test_a_state_that_no_checkpoint_can_hold(state: dict[str, object], says: str):
    with pytest.raises(UnsupportedState, match=says):
        save(open_object_store(), state)


PLAIN: list[object] = [
    None,
    True,
    0,
    -(2**63),
    2**64 - 1,
    2**200,
    -(2**100),
    1.5,
    float("inf"),
    float("nan"),
    -0.0,
    "text \U0001f600",
    b"\0\xff",
    [],
    {},
    (),
    [1, (2, [3, {"x": (None,)}])],
    {"a": 1, "b": {"c": {1, 2, 3}}},
    {1: "one", (2, 3): "pair", None: "none"},
    frozenset({"x", "y"}),
    torch.float32,
    torch.bfloat16,
    torch.get_rng_state(),
    np.random.default_rng(0).bit_generator.state,
    np.random.RandomState(0).get_state(),
    random.Random(5).getstate(),
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: type(value).__name__)
def test_plain_values_come_back_equal(value: object):
    assert_equal(value, decode_plain(encode_plain(value)))


def assert_equal(one: object, other: object) -> None:
    if isinstance(one, np.ndarray):
        assert isinstance(other, np.ndarray)
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    elif isinstance(one, dict):
        assert isinstance(other, dict)
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert type(one) is type(other)
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    else:
        same(one, other)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x81",
        b"\x80\x04\x95\x10\x00cos\nsystem\n",
        msgspec.msgpack.encode(msgspec.msgpack.Ext(99, b"\x90")),
        msgspec.msgpack.encode(msgspec.msgpack.Ext(1, b"\x01")),
        msgspec.msgpack.encode(msgspec.msgpack.Ext(4, b"12x")),
        msgspec.msgpack.encode(msgspec.msgpack.Ext(6, b"nothing")),
        msgspec.msgpack.encode(msgspec.msgpack.Ext(7, msgspec.msgpack.encode(["float32", [3], b"\0"]))),
        msgspec.msgpack.encode(msgspec.msgpack.Ext(8, msgspec.msgpack.encode(["O", [1], b"\0" * 8]))),
    ],
)
def test_other_bytes_are_no_value(data: bytes):
    with pytest.raises(CheckpointError):
        decode_plain(data)


def test_a_value_that_contains_itself_is_refused():
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(UnsupportedState, match="64 deep"):
        encode_plain(loop)


def test_large_tensors_are_shared_out_by_rows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plan_module, "SPLIT_BYTES", 1000)
    store = open_object_store()
    state: dict[str, object] = {"model": {"embed": torch.randn(100, 25), "wide": torch.randn(1, 900)}}
    sha, results = save(store, state, world_size=4)
    assert max(one.bytes_written for one in results) < 0.3 * 13_600 + 1000
    into = blank(state)
    assert isinstance(into, dict)
    load_into(store, JOB, sha, into)
    same(state, into)
    # The pieces do not depend on the world size: another world takes them all over.
    _, again = save(store, state, step=2, world_size=2, base=sha)
    assert sum(one.bytes_written for one in again) == 0


def test_ranks_share_the_bytes_evenly_whatever_the_order_of_their_dicts():
    store = open_object_store()
    names = [f"w{index}" for index in range(40)]
    state: dict[str, object] = {"model": {name: torch.randn(17 + index, 9) for index, name in enumerate(names)}}
    model = state["model"]
    assert isinstance(model, dict)
    backwards: dict[str, object] = {"model": {name: model[name] for name in reversed(names)}}
    from libs.runtime.tests.checkpoint.common import Opened, Outcomes, commit, saver

    outcomes = Outcomes()
    for rank in range(3):
        one = saver(store, outcomes, rank, 3)
        one.begin(backwards if rank == 1 else state, None, step=1, opened=Opened(1, "s0000000001"))
        assert one.wait(10)
        one.close(5)
    outcomes.expect(3)
    commit(store, outcomes.saved)
    written = [one.bytes_written for one in outcomes.saved]
    assert max(written) < 1.1 * min(written)
