"""Bytes that compression schemes send and keep of one buffer of gradients, counted as the runtime's schemes send them.

Free of tensors: a test holds every number against the schemes themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from distroml.planner.compression import Spec, share_of

How = Literal["sum", "gather", "scatter"]
Code = Callable[[int], int]
"""Bytes of the code of so many elements."""

# As in the runtime's `schemes.exchange` and `parallel.shardsums`.
_ONE_PHASE_BYTES = 16_384
_ALIGN_BYTES = 8
_ALIGN_ELEMENTS = 16
_SHARD_HEAD_BYTES = 8
_TOPK_CHUNK = 65_536
_FLOAT32_BYTES = 4

# Copies of an element while it is encoded: of a float16 the value and what arrives of it; of Top-K and random-K those
# that were chosen, with their places.
_HALVES_BYTES, _CHOSEN_BYTES, _DRAWN_BYTES = 8, 16, 32
# Copies of all elements while single operations encode them as float32: the true ones, the decoded ones, what is lost,
# and a byte each.
_CODED_COPIES = 3.25


class Message(NamedTuple):
    """One round of an exchange: what one rank hands in."""

    how: How
    bytes: int

    def sent_bytes(self, ranks: int) -> float:
        """What one of `ranks` ranks puts on the wire for it."""
        share = self.bytes * (ranks - 1)
        return share if self.how == "gather" else (2 if self.how == "sum" else 1) * share / ranks


class Sides(NamedTuple):
    """So many matrices of these sides."""

    rows: int
    columns: int
    many: float


class Buffer(NamedTuple):
    """What is exchanged at once: its elements, and the matrices among them where anybody counted those."""

    elements: int
    matrices: tuple[Sides, ...] = ()


def _float32(n: int) -> int:
    return 4 * n


def _float16(n: int) -> int:
    return 4 + 2 * n


def _bfloat16(n: int) -> int:
    return 2 * n


def _blocks(block: int, bits: int) -> Code:
    return lambda n: 4 * -(-n // block) + -(-n * bits // 8)


_CODES: dict[str, Code] = {
    "": _float32,
    "bf16": _bfloat16,
    "fp16": _float16,
    "int8": _blocks(256, 8),
    "int4": _blocks(128, 4),
    "sign": _blocks(1024, 1),
}


def code_of(spec: Spec) -> Code:
    """The code of a scheme that sends codes of whole buffers."""
    if spec.kind != "topk":
        return _CODES[spec.kind]
    values = _CODES[spec.payload]

    def greatest(n: int) -> int:
        kept = share_of(spec.ratio, n)
        return 4 * -(-n // _TOPK_CHUNK) + 2 * kept + values(kept)

    return greatest


def messages(spec: Spec, buffer: Buffer, ranks: int) -> list[Message]:
    """The rounds of one exchange among `ranks` ranks."""
    if ranks == 1 or not buffer.elements:
        return []
    match spec.kind:
        case "none":
            return [Message("sum", 4 * buffer.elements)]
        case "randomk":
            count = share_of(spec.ratio, buffer.elements)
            return _exchanged([(_CODES[spec.payload], count)], ranks) if spec.payload else [Message("sum", 4 * count)]
        case "powersgd":
            first, second = _low_rank_rounds(spec, _low_rank(spec, buffer), ranks)
            return first + second
        case _:
            return _exchanged([(code_of(spec), buffer.elements)], ranks)


def kept_bytes(spec: Spec, buffer: Buffer, ranks: int) -> int:
    """What a rank keeps of the buffer from one step to the next: residuals, and what else goes on."""
    if ranks == 1 or spec.kind == "none" or not buffer.elements:
        return 0
    kept = 4 * buffer.elements
    if spec.kind == "powersgd":
        return kept + 4 * _low_rank(spec, buffer).factor
    if spec.kind != "randomk" and len(messages(spec, buffer, ranks)) > 1:
        # Of two phases: what the owner of a part loses of its sum.
        return kept + 4 * _part(buffer.elements, ranks)
    return kept


def working_bytes(spec: Spec, buffer: Buffer, ranks: int) -> int:
    """What lies beside the gradients while the buffer is exchanged, at most: messages, and copies on the way to them.

    As it is with the kernels of this project; codes that are made by single operations take a few copies more.
    """
    told = messages(spec, buffer, ranks)
    if spec.kind == "none" or not told:
        return 0
    n, at_once = buffer.elements, _in_messages(told, ranks)
    encoded = _part(n, ranks) if len(told) > 1 else n
    match spec.kind:
        case "fp16":
            return at_once + _HALVES_BYTES * encoded
        case "topk":
            return at_once + _CHOSEN_BYTES * share_of(spec.ratio, encoded)
        case "randomk":
            return at_once + _DRAWN_BYTES * share_of(spec.ratio, n)
        case "powersgd":
            return _low_rank_working(spec, buffer, ranks)
        case _:
            return at_once


def _in_messages(told: Sequence[Message], ranks: int) -> int:
    """Bytes of messages that are there at once."""
    # What is gathered is there from all ranks, in two phases in the place of what was scattered; that is there twice.
    gathered = max((one.bytes * ranks for one in told if one.how == "gather"), default=0)
    return max(gathered, max((2 * one.bytes for one in told if one.how == "scatter"), default=0))


def _low_rank_working(spec: Spec, buffer: Buffer, ranks: int) -> int:
    """PowerSGD's own tensors by the moments of its exchange, beside the residual that holds the gradients meanwhile."""
    low = _low_rank(spec, buffer)
    first, second = _low_rank_rounds(spec, low, ranks)
    basis, factor, whole = 4 * low.basis, 4 * low.factor, 4 * low.whole
    # What codes lose is kept apart: by every rank, and by the owners of parts.
    whole_lost, factor_lost = 4 * _part(low.whole, ranks), 4 * _part(low.factor, ranks)
    # Where the iteration began stays to the end, and the first factors do twice: as they travel, and by matrix.
    lasting = factor + 2 * basis
    # What the last round brought stays until the next one is asked for, or the end.
    brought, brought_last = _brought(first, ranks), _brought(second, ranks)
    # As float32 and in one phase factors are coded by single operations.
    coded = [one for one in second if one.how != "sum"]
    coding = _CODED_COPIES * factor if coded and not spec.payload else 0
    # What codes are written into has room for all that is gathered.
    sent = sum(one.bytes * (ranks if one.how == "gather" else 1) for one in coded[:1])
    told = max(sent + max(brought, round(coding)), _in_messages(second, ranks))
    return max(
        factor + 3 * basis,
        factor + basis + 2 * whole + whole_lost + _in_messages(first, ranks),
        lasting + 3 * factor + 2 * whole + whole_lost + brought,
        lasting + 3 * factor + whole + factor_lost + told,
        lasting + 5 * factor + whole + factor_lost + brought_last,
    )


def _brought(told: Sequence[Message], ranks: int) -> int:
    """Bytes that the last of these rounds comes back with, in tensors of their own."""
    return told[-1].bytes * ranks if told and told[-1].how == "gather" else 0


def shard_working_bytes(spec: Spec, elements: int, ranks: int, item: int) -> int:
    """What comes up beside a unit's flat gradients while they are summed along dp_shard as codes.

    Args:
        spec: of the codes.
        elements: of the gradients, all ranks' parts together.
        ranks: along dp_shard.
        item: bytes of one element.
    """
    part, codes = -(-elements // ranks), shard_message(spec, elements, ranks).bytes
    copied = 0 if item == _FLOAT32_BYTES else _FLOAT32_BYTES * elements
    # Where torch wants the sum is there all the time. First 32-bit copies are encoded; then codes go and come; those
    # that came are added up.
    return item * part + max(copied + codes, 2 * codes, codes + _FLOAT32_BYTES * part)


def shard_message(spec: Spec, elements: int, ranks: int) -> Message:
    """The one round of a coded sum of `elements` gradients along dp_shard."""
    code = _CODES[spec.kind](-(-elements // ranks))
    return Message("scatter", ranks * _aligned(_SHARD_HEAD_BYTES + code))


class _LowRank(NamedTuple):
    """Elements of the first and of the second factors, and of what goes whole."""

    basis: int
    factor: int
    whole: int


def _low_rank(spec: Spec, buffer: Buffer) -> _LowRank:
    code, rest = _CODES[spec.payload], _CODES["int8" if spec.payload == "int8" else "bf16"]
    basis = factor = covered = 0.0
    for rows, columns, many in buffer.matrices:
        both = code(spec.rank * rows) + code(spec.rank * columns)
        if spec.rank < min(rows, columns) and 2 * both <= rest(rows * columns):
            basis += many * spec.rank * rows
            factor += many * spec.rank * columns
            covered += many * rows * columns
    return _LowRank(round(basis), round(factor), max(0, buffer.elements - round(covered)))


def _low_rank_rounds(spec: Spec, low: _LowRank, ranks: int) -> tuple[list[Message], list[Message]]:
    """The rounds of the first factors, with what goes whole, and of the second ones."""
    factors, rest = _CODES[spec.payload], _CODES["int8" if spec.payload == "int8" else "bf16"]
    return (
        _exchanged([(factors, low.basis), (rest, low.whole)], ranks),
        _exchanged([(factors, low.factor)], ranks),
    )


def _part(elements: int, ranks: int) -> int:
    """Elements that the first rank owns in two phases."""
    return min(-(-elements // (ranks * _ALIGN_ELEMENTS)) * _ALIGN_ELEMENTS, elements)


def _aligned(bytes_: int) -> int:
    return -(-bytes_ // _ALIGN_BYTES) * _ALIGN_BYTES


def _exchanged(vectors: Sequence[tuple[Code, int]], ranks: int) -> list[Message]:
    """The rounds in which these vectors are summed together: one phase or two."""
    vectors = [(code, n) for code, n in vectors if n]
    slots = sum(_aligned(code(n)) for code, n in vectors)
    if not vectors or ranks <= 2 or (ranks - 1) * slots <= _ONE_PHASE_BYTES:
        return [Message("gather", slots)] if vectors else []
    return list(_two_phases(vectors, ranks))


def _two_phases(vectors: Sequence[tuple[Code, int]], ranks: int) -> Iterator[Message]:
    # What travels as float32 needs no owner.
    for code, n in vectors:
        if code is _float32:
            yield Message("sum", 4 * n)
    if stride := sum(_aligned(code(_part(n, ranks))) for code, n in vectors if code is not _float32):
        yield Message("scatter", ranks * stride)
        yield Message("gather", stride)
