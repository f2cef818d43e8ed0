"""What the planner counts of a scheme, without tensors, is what the scheme sends, keeps and needs on the way."""

import weakref
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distroml.planner import Device, Level, Topology
from distroml.planner.buffers import fullest
from distroml.planner.codes import Buffer, Message, Sides, kept_bytes, messages, shard_working_bytes, working_bytes
from distroml.planner.compression import parse_spec
from distroml.planner.cost.moves import moved
from distroml.runtime.comm.algorithms import Arrangement
from distroml.runtime.compress import Layout, Piece, Round, Turn
from distroml.runtime.compress.parse import parse_scheme
from distroml.runtime.compress.schemes.matrices import as_matrix
from distroml.runtime.compress.simulate import SimulatedRanks, exchanged
from distroml.runtime.parallel import shardsums
from distroml.runtime.parallel.buckets import lay_out

SHAPES = [(512, 256), (256,), (256, 512), (64, 64), (1024,), (96, 3, 3, 4)]
SCHEMES = [
    "none",
    "bf16",
    "fp16",
    "int8",
    "int4",
    "sign",
    "topk:0.01",
    "topk:0.05+int8",
    "randomk:0.01",
    "randomk:0.01+int8",
    "powersgd:4",
    "powersgd:4+int8",
    "powersgd:16+bf16",
]


def layout() -> Layout:
    pieces: list[Piece] = []
    numel = 0
    for number, shape in enumerate(SHAPES):
        pieces.append(Piece(str(number), numel, shape))
        numel += pieces[-1].numel
    return Layout(numel, tuple(pieces))


def buffer() -> Buffer:
    return Buffer(layout().numel, tuple(Sides(*as_matrix(shape), 1) for shape in SHAPES))


class Peak(TorchDispatchMode):
    """The most bytes of storages that came up within it and were there at once."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known = known
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, list | tuple) else [result]:
            if isinstance(one, torch.Tensor) and (key := one.untyped_storage()._cdata) not in self.known:
                size = one.untyped_storage().nbytes()
                self.known.add(key)
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(one.untyped_storage(), self._gone, key, size)
        return result

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("name", SCHEMES)
def test_bytes_are_sent_and_kept_as_counted(name: str, ranks: int) -> None:
    scheme, spec, whole = parse_scheme(name), parse_spec(name), layout()
    told = sum(one.sent_bytes(ranks) for one in messages(spec, buffer(), ranks))
    assert told == pytest.approx(scheme.sent_bytes(whole, ranks), abs=4)
    if ranks > 1:
        simulated = SimulatedRanks(scheme, whole, ranks)
        simulated.exchange([torch.randn(whole.numel) for _ in range(ranks)])
        state = simulated.states[0]
        tensors = [one for one in (state.residual, state.owned, *state.extra.values()) if one is not None]
        assert kept_bytes(spec, buffer(), ranks) == sum(one.nbytes for one in tensors)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", [name for name in SCHEMES if name != "none"])
def test_a_rank_needs_as_much_beside_its_gradients_as_counted(name: str, ranks: int) -> None:
    whole = layout()
    simulated = SimulatedRanks(parse_scheme(name), whole, ranks)
    flats = [torch.randn(whole.numel) for _ in range(ranks)]
    simulated.exchange([flat.clone() for flat in flats])
    turns = [Turn(rank, ranks, 2, 0, 0, 1.0) for rank in range(ranks)]
    generators = [
        simulated.scheme.rounds(flat, whole, state, turn)
        for flat, state, turn in zip(flats, simulated.states, turns, strict=True)
    ]
    state = simulated.states[0]
    there = [flats[0], state.residual, state.owned, *state.extra.values()]
    peak = Peak({one.untyped_storage()._cdata for one in there if one is not None})
    answers: list[torch.Tensor | None] = [None] * ranks
    while True:
        try:
            with peak:
                mine = answers[0]
                answers[0] = None
                asked = [next(generators[0]) if mine is None else generators[0].send(mine)]
                del mine
                asked[0].filled()
                asked[0] = replace(asked[0], fill=None)
            asked += [
                next(generator) if answer is None else generator.send(answer)
                for generator, answer in zip(generators[1:], answers[1:], strict=True)
            ]
        except StopIteration:
            break
        came = exchanged(asked)
        with peak:
            # As the exchange does it: sums come back where they were, all else where it was asked for, or by itself.
            first, into = asked[0].payload if asked[0].how == "sum" else asked[0].into, came[0]
            answers = [(torch.empty_like(into) if first is None else first).copy_(into)]
            del first, into
        answers += came[1:]
        del asked, came
    ours = working_bytes(parse_spec(name), buffer(), ranks)
    if name.startswith("powersgd"):
        assert ours == pytest.approx(peak.most, rel=0.05)
    assert ours == pytest.approx(peak.most, rel=0.25, abs=0.1 * whole.numel)


class Echo:
    """Ranks that all send one the same as it sends them."""

    def __init__(self, group: Any, *_: Any) -> None:
        self.ranks = group.size()

    def make(self, wanted: Round) -> torch.Tensor:
        """As `Peers` do it, in a tensor of its own."""
        return wanted.payload.new_empty(self.ranks, wanted.payload.numel() // self.ranks).copy_(
            wanted.payload.view(self.ranks, -1)
        )

    def take(self) -> Counter[str]:
        """Nothing goes anywhere."""
        return Counter()


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_rank_needs_as_much_beside_its_flat_gradients_as_counted(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, ranks: int
) -> None:
    part = 10_001
    monkeypatch.setattr(shardsums, "Peers", Echo)
    sums = shardsums.ShardSums(shardsums.SHARD_CODECS[name], 0)
    given = torch.randn(ranks * part).to(dtype)
    group: Any = SimpleNamespace(size=lambda: ranks, rank=lambda: 0)
    with Peak({given.untyped_storage()._cdata}) as peak:
        # Where torch wants the sum.
        wanted = torch.empty(part, dtype=dtype)
        wanted.copy_(sums.sum(0, given, group, [("weight", part)]))
    ours = shard_working_bytes(parse_spec(name), ranks * part, ranks, dtype.itemsize)
    assert ours == pytest.approx(peak.most, rel=0.01)


@pytest.mark.parametrize("hosts", ["aaaa", "abcd", "aabb", "aaabbb", "aabbcc"])
@pytest.mark.parametrize("how", ["gather", "scatter", "sum"])
def test_bytes_by_level_are_those_that_ranks_count(hosts: str, how: Any) -> None:
    ranks, nodes = len(hosts), len(set(hosts))
    arrangement = Arrangement.of(range(ranks), hosts)
    levels = [Level(name="node", extent=ranks // nodes, latency_s=0.0, bytes_per_s=1.0)]
    levels.append(Level(name="cluster", extent=nodes, latency_s=0.0, bytes_per_s=1.0))
    device = Device(name="cpu", flops={"fp32": 1.0}, memory_bytes=1.0, memory_bytes_per_s=1.0)
    route = Topology(device=device, levels=tuple(levels)).route(ranks, 1)
    # On a GPU a plain sum is one ring, too.
    ours = moved(route, Message(how, 1 << 16), 1, on_cpu=False).sent_bytes
    counted = [arrangement.sent(how, 1 << 16, rank) for rank in range(ranks)]
    for level in ("node", "cluster"):
        mean = sum(one.get(level, 0) for one in counted) / ranks
        assert ours.get(level, 0.0) == pytest.approx(mean, abs=1.0)


@pytest.mark.parametrize("most_mb", [0.25, 0.5, 1.0, 8.0])
def test_the_fullest_bucket_is_the_one_of_the_layout(most_mb: float) -> None:
    parameters = [(str(number), torch.nn.Parameter(torch.zeros(shape))) for number, shape in enumerate(SHAPES)]
    real = max(spec.numel for spec in lay_out(parameters, most_mb))
    ours = fullest([as_matrix(shape) for shape in reversed(SHAPES)], most_mb * (1 << 20) / 4)
    assert ours.elements == pytest.approx(real, abs=16 * len(SHAPES))
