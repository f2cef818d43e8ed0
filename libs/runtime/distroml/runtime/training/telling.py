"""Changes of schemes in few words: those of one kind are one message, however many buckets the model has."""

from __future__ import annotations

from collections.abc import Sequence

from distroml.runtime.compress.control import Change
from distroml.workerlink import SchemeChanged

# Numbers of so many buckets fit into an event; of a model with more, a change is told in parts.
MAX_BUCKETS = 8192
_MAX_WHYS = 3


def told(changes: Sequence[Change], generation: int, place: str) -> list[SchemeChanged]:
    """What is said of `changes` of a place, in order of step and first bucket: receivers tell repeats by those."""
    kinds: dict[tuple[int, str, str, str], list[Change]] = {}
    # Of several of a bucket and step the later one counts, as for `Replay`.
    for change in {(one.from_step, one.bucket): one for one in changes}.values():
        kind = (change.from_step, change.from_scheme, change.to_scheme, change.reason)
        kinds.setdefault(kind, []).append(change)
    messages: list[SchemeChanged] = []
    for (from_step, old, new, reason), alike in kinds.items():
        why, numbers = _why(alike), sorted({change.bucket for change in alike})
        messages += [
            SchemeChanged(
                generation=generation,
                buckets=tuple(numbers[begin : begin + MAX_BUCKETS]),
                from_scheme=old,
                to_scheme=new,
                reason=reason,
                why=why,
                from_step=from_step,
                place=place,
            )
            for begin in range(0, len(numbers), MAX_BUCKETS)
        ]
    return sorted(messages, key=lambda one: (one.from_step, one.buckets))


def numbers_text(numbers: Sequence[int]) -> str:
    """Ascending numbers of buckets in words: `bucket 3`, `buckets 0–5`, `4 buckets from 2 to 9`."""
    first, last = numbers[0], numbers[-1]
    if first == last:
        return f"bucket {first}"
    if last - first == len(numbers) - 1:
        return f"buckets {first}–{last}"
    return f"{len(numbers)} buckets from {first} to {last}"


def _why(alike: Sequence[Change]) -> str:
    """What buckets have in common in one sentence; where a guard names each one's own figures, the first few."""
    whys: dict[str, int] = {}
    for change in alike:
        whys.setdefault(change.why, change.bucket)
    if len(whys) == 1:
        return alike[0].why
    parts = [f"bucket {bucket}: {why}" for why, bucket in list(whys.items())[:_MAX_WHYS]]
    return "; ".join(parts) + (f"; {len(whys) - _MAX_WHYS} more like these" if len(whys) > _MAX_WHYS else "")
