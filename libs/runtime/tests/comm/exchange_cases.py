"""Conformance cases of exchanges by every scheme, as rounds on a lane.

What ranks make of gradients through the back end is held to what all of them at once make of the same gradients in one
process. So each back end is held to every other one: to the bit wherever sums have one order only. They have not where
the back end itself sums the float32 numbers of more than two ranks, see `near`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from distroml.runtime.comm.algorithms import Arrangement, Choice, Chosen, Timed
from distroml.runtime.comm.lane import Lane
from distroml.runtime.comm.rounds import Peers, drive
from distroml.runtime.compress import How, Layout, Piece, Round, State, Turn, parse_scheme
from distroml.runtime.compress.simulate import exchanged
from libs.runtime.tests.comm.casebook import Casebook, same
from libs.runtime.tests.comm.round_cases import gradient, interleaved, near, sums_along

EXCHANGES = Casebook()
of_at_least = EXCHANGES.of_at_least

SEED, STEPS = 11, 3
SCHEMES = (
    *("none", "bf16", "fp16", "int8", "int4", "sign", "topk:0.05", "topk:0.05+int8", "randomk:0.1", "randomk:0.1+bf16"),
    *("powersgd:1", "powersgd:4", "powersgd:2+int8", "powersgd:16+int8"),
)


@dataclass(frozen=True)
class Axis:
    """Ranks that exchange, and the one way in which they sum."""

    group: dist.ProcessGroup
    sums: Chosen

    @property
    def arrangement(self) -> Arrangement:
        return self.sums.arrangement

    @property
    def ranks(self) -> tuple[int, ...]:
        return self.arrangement.ranks

    @property
    def nodes(self) -> tuple[tuple[int, ...], ...]:
        """The places of ranks that are summed first; the sums of nodes are summed then."""
        if "hierarchical" not in self.sums.ways:
            return (tuple(range(len(self.ranks))),)
        return tuple(tuple(self.ranks.index(rank) for rank in node) for node in self.arrangement.nodes)

    @property
    def one_order(self) -> bool:
        """Whether there is one order only in which numbers can be summed: two at a time."""
        return len(self.nodes) <= 2 and all(len(node) <= 2 for node in self.nodes)


def axis_of(device: torch.device, hosts: str, extent: int = 0) -> Axis:
    """Of all ranks, or of `extent` neighbours each; summed by the hierarchy where hosts allow it."""
    ranks = len(hosts)
    groups = [list(range(first, first + (extent or ranks))) for first in range(0, ranks, extent or ranks)]
    made = [dist.new_group(group) for group in groups]
    own = made[next(n for n, group in enumerate(groups) if dist.get_rank() in group)]
    assert isinstance(own, dist.ProcessGroup)
    found = sums_along(device, hosts, own)
    way = "hierarchical" if "hierarchical" in found.ways else "flat"
    # Whatever was measured.
    choice = Choice((Timed(1, {way: 1.0}),))
    return Axis(own, Chosen(found.arrangement, {way: found.ways[way]}, choice))


@of_at_least(2)
def exchanges_of_all_ranks(device: torch.device) -> None:
    axis = axis_of(device, "a" * dist.get_world_size())
    for scheme in SCHEMES:
        made_as_in_one_process(axis, scheme, device)


@of_at_least(4)
def exchanges_of_two_neighbours(device: torch.device) -> None:
    axis = axis_of(device, "a" * dist.get_world_size(), 2)
    for scheme in SCHEMES:
        made_as_in_one_process(axis, scheme, device)


@of_at_least(4)
def exchanges_over_two_hosts(device: torch.device) -> None:
    axis = axis_of(device, interleaved(dist.get_world_size()))
    for scheme in SCHEMES:
        made_as_in_one_process(axis, scheme, device)


def made_as_in_one_process(axis: Axis, name: str, device: torch.device) -> None:
    """Sums, all that is kept, and bytes, over steps of two buffers."""
    place, ranks, scheme = axis.group.rank(), len(axis.ranks), parse_scheme(name)
    peers, lane = Peers(axis.group, axis.sums, axis.arrangement), Lane("exchange", device)
    for number, layout in enumerate(LAYOUTS):
        own = scheme.prepare(layout, ranks, device)
        alone = [scheme.prepare(layout, ranks, device) for _ in range(ranks)]
        for step in range(1, STEPS + 1):
            turns = [Turn(rank, ranks, step, number, SEED, 20.0 + step) for rank in range(ranks)]
            flats = [drawn(layout, rank, step).to(device) for rank in axis.ranks]
            made = flats[place].clone()
            steps = scheme.rounds(made, layout, own, turns[place])
            lane.do(lambda steps=steps: drive(steps, peers.make))
            everyones = [scheme.rounds(f, layout, s, turn) for f, s, turn in zip(flats, alone, turns, strict=True)]
            rounds = in_one_process(everyones, axis)
            what = f"by {name} in buffer {number}, step {step}"
            # A GPU multiplies matrices as its library likes, which may be otherwise for another thread.
            exact = (axis.one_order or all(how != "sum" for how, _ in rounds)) and not (
                device.type == "cuda" and name.startswith("powersgd")
            )
            alike(made, flats[place], exact, what)
            kept_alike(own, alone[place], exact, what)
            sent = +peers.take()
            assert sent == sent_in(axis, rounds), what
            assert sent.total() == scheme.sent_bytes(layout, ranks) or "hierarchical" in axis.sums.ways, what
    lane.close()


def laid_out(*shapes: tuple[int, ...]) -> Layout:
    """Pieces of these shapes one after the other, with padding behind each."""
    pieces: list[Piece] = []
    begin = 0
    for number, shape in enumerate(shapes):
        pieces.append(Piece(str(number), begin, shape))
        begin += -(-pieces[-1].numel // 16) * 16
    return Layout(begin, tuple(pieces))


# Of one buffer that every scheme tells in one phase, and of one that most tell in two.
LAYOUTS = (laid_out((24, 16), (7,), ()), laid_out((160, 192), (160, 192), (1000,)))


def drawn(layout: Layout, rank: int, step: int) -> torch.Tensor:
    """The gradients of a rank, their padding zero."""
    flat = torch.zeros(layout.numel)
    for number, one in enumerate(layout.pieces):
        flat[one.offset : one.offset + one.numel] = gradient(rank, 10 * step + number, one.numel)
    return flat


def in_one_process(steps: Sequence[Generator[Round, torch.Tensor]], axis: Axis) -> list[tuple[How, int]]:
    """Run the exchange of all ranks to its end, sums in the order of the axis. Returns each round's `how` and bytes."""
    told: list[tuple[How, int]] = []
    answers: list[torch.Tensor | None] = [None for _ in steps]
    while True:
        rounds: list[Round] = []
        for generator, answer in zip(steps, answers, strict=True):
            try:
                rounds.append(next(generator) if answer is None else generator.send(answer))
            except StopIteration:
                continue
        if not rounds:
            return told
        told.append((rounds[0].how, rounds[0].payload.nbytes))
        back = exchanged(rounds)
        if rounds[0].how == "sum":
            # By number of the node, and of the rank in it.
            nodes = [[rounds[place].payload for place in node] for node in axis.nodes]
            whole = summed([summed(node) for node in nodes])
            back = [whole.clone() for _ in rounds]
        answers = [*back]


def summed(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    whole = tensors[0].clone()
    for tensor in tensors[1:]:
        whole += tensor
    return whole


def sent_in(axis: Axis, rounds: Sequence[tuple[How, int]]) -> Counter[str]:
    """What this rank sends in rounds, by level."""
    sent: Counter[str] = Counter()
    rank = dist.get_rank()
    for how, size in rounds:
        if size:
            sent.update(axis.sums.sent_bytes(size) if how == "sum" else axis.arrangement.sent(how, size, rank))
    return +sent


def alike(got: torch.Tensor, wanted: torch.Tensor, exact: bool, what: str) -> None:
    if exact:
        same(got, wanted, what)
    else:
        near(got, wanted, what)


def kept_alike(got: State, wanted: State, exact: bool, what: str) -> None:
    """What a rank keeps for the next step."""
    assert got.owned_from == wanted.owned_from, what
    both = [("residual", got.residual, wanted.residual), ("owned", got.owned, wanted.owned)]
    assert got.extra.keys() == wanted.extra.keys(), what
    for name, one, other in (*both, *((name, got.extra[name], wanted.extra[name]) for name in wanted.extra)):
        assert (one is None) == (other is None), f"{name} {what}"
        if one is not None and other is not None:
            alike(one, other, exact, f"is the {name} {what}")
