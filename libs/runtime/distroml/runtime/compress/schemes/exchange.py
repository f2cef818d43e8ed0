"""Coded vectors summed over ranks: the same bits on every rank, and every loss in a residual of some rank.

In one phase every rank gathers all codes: one message of each, yet `world_size - 1` codes to receive. In two phases
each rank owns a part of every vector: codes are scattered to the owners, who sum them, encode the sum with a residual
of their own, and gather. That costs as much as a ring's all-reduce of codes, at any world size.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

import torch

from distroml.runtime.comm import sent_bytes
from distroml.runtime.compress.codec import Codec
from distroml.runtime.compress.codecs import FLOAT32, NonFinite, sum_all
from distroml.runtime.compress.codecs.oracle import LIMIT
from distroml.runtime.compress.scheme import Round, TakenBack, Turn
from distroml.runtime.compress.schemes.seeds import seed_of

# What a second phase takes in latency, as bytes: 0.1 ms at 1 Gbit/s, 13 ms at 10 Mbit/s.
_ONE_PHASE_BYTES = 16_384
# Codes begin at multiples of this, so that any number format may lie in them.
_ALIGN_BYTES = 8
# Parts begin on cache lines.
_ALIGN_ELEMENTS = 16


@dataclass(frozen=True, slots=True)
class Section:
    """One vector of an exchange.

    Attributes:
        codec: what it travels as.
        values: float32 `[n]`: this rank's; the sum over all ranks at the end.
        residual: float32 `[n]`, fed back and changed; None: what the code loses is lost.
        owned: the same for the sum of this rank's part, `part_of(n, ranks, rank)`; used in two phases only.
        carry: units of `values` over those of `residual` and `owned`.
        finite: this rank's `values` are known to be finite numbers.
    """

    codec: Codec
    values: torch.Tensor
    residual: torch.Tensor | None = None
    owned: torch.Tensor | None = None
    carry: float = 1.0
    finite: bool = False


def part_of(numel: int, ranks: int, owner: int) -> slice:
    """The elements of a vector that rank `owner` sums in two phases; may be none."""
    each = -(-numel // (ranks * _ALIGN_ELEMENTS)) * _ALIGN_ELEMENTS
    return slice(min(owner * each, numel), min((owner + 1) * each, numel))


def in_two_phases(vectors: Iterable[tuple[Codec, int]], ranks: int) -> bool:
    """Whether vectors of these codecs and sizes go together in two phases."""
    return ranks > 2 and (ranks - 1) * sum(_slot_bytes(codec, n) for codec, n in vectors) > _ONE_PHASE_BYTES


def exchange_bytes(vectors: Sequence[tuple[Codec, int]], ranks: int) -> int:
    """What one rank sends in an exchange of vectors of these codecs and sizes, padding between codes counted."""
    vectors = [(codec, n) for codec, n in vectors if n]
    if not in_two_phases(vectors, ranks):
        return sent_bytes("gather", sum(_slot_bytes(codec, n) for codec, n in vectors), ranks)
    summed = sum(sent_bytes("sum", 4 * n, ranks) for codec, n in vectors if codec == FLOAT32)
    stride = sum(_slot_bytes(codec, part_of(n, ranks, 0).stop) for codec, n in vectors if codec != FLOAT32)
    return summed + sent_bytes("scatter", ranks * stride, ranks) + sent_bytes("gather", stride, ranks)


def exchange(sections: Sequence[Section], turn: Turn, place: int = 0) -> Generator[Round, torch.Tensor]:
    """Sum `values` of all sections over the ranks, in place.

    Args:
        sections: of the same codecs and sizes on every rank.
        turn: of this exchange.
        place: number of the exchange within its turn, for its random numbers.

    Raises:
        NonFinite: a vector of this rank has a NaN or an infinity at that index; nobody was told anything.
        TakenBack: that was thrown in; in one phase residuals are as they were then, but for rounding.
    """
    sections = [section for section in sections if section.values.numel()]
    if not in_two_phases([(section.codec, section.values.numel()) for section in sections], turn.world_size):
        yield from _one_phase(sections, turn, place)
        return
    # A sum of float32 needs no owner: back ends sum it as fast as they can, along the topology.
    coded: list[Section] = []
    for section in sections:
        if section.codec == FLOAT32:
            yield from _plain(section)
        else:
            coded.append(section)
    yield from _two_phases(coded, turn, place)


def _plain(section: Section) -> Generator[Round, torch.Tensor]:
    if section.residual is not None:
        section.values.add_(section.residual, alpha=section.carry)
        section.residual.zero_()
    section.values.copy_((yield Round("sum", section.values)))


def _one_phase(sections: Sequence[Section], turn: Turn, place: int) -> Generator[Round, torch.Tensor]:
    if not sections:
        return
    slots = _slots([(section.codec, section.values.numel()) for section in sections])
    size, device = slots[-1].stop + turn.tail, sections[0].values.device
    codes = torch.empty(turn.world_size, size, dtype=torch.uint8, device=device)
    payload, coded = codes[turn.rank], 0

    def fill() -> None:
        nonlocal coded
        for number, (section, slot) in enumerate(zip(sections, slots, strict=True)):
            seed = seed_of(turn, place, number, turn.rank)
            _encode(section, section.values, section.residual, seed, payload[slot], finite=section.finite)
            coded += 1

    try:
        codes = yield Round("gather", payload, into=codes, fill=fill)
    except TakenBack:
        for section, slot in zip(sections[:coded], slots, strict=False):
            _take_back(section, payload[slot])
        raise
    for section, slot in zip(sections, slots, strict=True):
        _sum(section.codec, codes[:, slot], section.values)


def _two_phases(sections: Sequence[Section], turn: Turn, place: int) -> Generator[Round, torch.Tensor]:
    if not sections:
        return
    ranks = turn.world_size
    slots = _slots([(section.codec, part_of(section.values.numel(), ranks, 0).stop) for section in sections])
    payload = torch.empty(ranks, slots[-1].stop, dtype=torch.uint8, device=sections[0].values.device)
    for number, (section, slot) in enumerate(zip(sections, slots, strict=True)):
        for owner in range(ranks):
            part = part_of(section.values.numel(), ranks, owner)
            residual = None if section.residual is None else section.residual[part]
            seed = seed_of(turn, place, number, turn.rank, owner)
            try:
                _encode(section, section.values[part], residual, seed, payload[owner, slot], finite=section.finite)
            except NonFinite as broken:
                raise NonFinite(part.start + broken.index) from None
    codes = yield Round("scatter", payload.view(-1))
    # What was scattered has arrived: its place is that of what is gathered.
    sums, summed = payload, payload[turn.rank]
    for number, (section, slot) in enumerate(zip(sections, slots, strict=True)):
        mine = section.values[part_of(section.values.numel(), ranks, turn.rank)]
        _sum(section.codec, codes[:, slot], mine)
        seed = seed_of(turn, place, number, turn.rank, ranks)
        try:
            _encode(section, mine, section.owned, seed, summed[slot])
        except NonFinite:
            # Every rank's part was finite and their sum is not. To fail here would leave the others waiting for it.
            _encode(section, mine.clamp_(-LIMIT, LIMIT), section.owned, seed, summed[slot])
    codes = yield Round("gather", summed, into=sums)
    for section, slot in zip(sections, slots, strict=True):
        for owner in range(ranks):
            part = section.values[part_of(section.values.numel(), ranks, owner)]
            _sum(section.codec, codes[owner : owner + 1, slot], part)


def _encode(
    section: Section,
    vector: torch.Tensor,
    residual: torch.Tensor | None,
    seed: int,
    slot: torch.Tensor,
    *,
    finite: bool = False,
) -> None:
    size = section.codec.size(vector.numel()) if vector.numel() else 0
    if size:
        section.codec.encode(vector, residual, section.carry, seed, slot[:size], finite=finite)
    # What memory held before is nobody's business.
    slot[size:].zero_()


def _take_back(section: Section, slot: torch.Tensor) -> None:
    """The residual is what it was before it was coded, but for rounding of its sum with the values."""
    if section.residual is not None:
        told = torch.zeros_like(section.values)
        section.codec.add(slot[: section.codec.size(told.numel())], told)
        section.residual.add_(told.sub_(section.values), alpha=1.0 / section.carry)


def _sum(codec: Codec, slots: torch.Tensor, total: torch.Tensor) -> None:
    if total.numel():
        sum_all(codec, slots[:, : codec.size(total.numel())], total)


def _slot_bytes(codec: Codec, numel: int) -> int:
    return -(-codec.size(numel) // _ALIGN_BYTES) * _ALIGN_BYTES


def _slots(vectors: Sequence[tuple[Codec, int]]) -> list[slice]:
    """Where the code of each vector lies in a message."""
    slots: list[slice] = []
    for codec, numel in vectors:
        begin = slots[-1].stop if slots else 0
        slots.append(slice(begin, begin + _slot_bytes(codec, numel)))
    return slots
