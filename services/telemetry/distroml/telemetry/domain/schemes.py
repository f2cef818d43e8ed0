"""A job's compression from what was told of it: its last changes, and the schemes that hold, each bounded. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

from msgspec.structs import replace

from distroml.telemetry.domain.facts import SchemeChanged
from distroml.telemetry.domain.rows import HeldRow, SchemeRow

MAX_SCHEMES = 200
MAX_BUCKETS = 50_000
"""Of all changes that are kept, however many there are."""
MAX_HELD = 1024
_MAX_PLACES = 4


def row_of(fact: SchemeChanged) -> SchemeRow:
    """A change as views keep it."""
    return SchemeRow(
        generation=fact.generation,
        at_ms=fact.at_ms,
        from_step=fact.from_step,
        bucket=fact.bucket,
        from_scheme=fact.from_scheme,
        to_scheme=fact.to_scheme,
        reason=fact.reason,
        why=fact.why,
        buckets=fact.buckets,
        place=fact.place,
    )


def with_change(rows: Sequence[SchemeRow], row: SchemeRow) -> tuple[SchemeRow, ...]:
    """The last changes after one more."""
    kept = (*rows, row)[-MAX_SCHEMES:]
    excess, begin = sum(len(one.numbers) for one in kept) - MAX_BUCKETS, 0
    while excess > 0 and begin < len(kept) - 1:
        excess -= len(kept[begin].numbers)
        begin += 1
    return kept[begin:]


def hold(held: Sequence[HeldRow], row: SchemeRow) -> tuple[HeldRow, ...]:
    """The schemes that hold in the newest generation that told any, after one more change."""
    if any(one.generation > row.generation for one in held):
        return tuple(held)
    moved = set(row.numbers)
    same: set[int] = set()
    rows: list[HeldRow] = []
    for one in held:
        if one.generation != row.generation:
            continue
        if one.place != row.place:
            rows.append(one)
        elif one.scheme == row.to_scheme:
            same = set(one.buckets)
        elif left := tuple(number for number in one.buckets if number not in moved):
            rows.append(replace(one, buckets=left))
    now = HeldRow(generation=row.generation, place=row.place, scheme=row.to_scheme, buckets=tuple(sorted(moved | same)))
    return (*rows, now)[-MAX_HELD:]


def held_of(rows: Iterable[SchemeRow]) -> tuple[HeldRow, ...]:
    """The same from changes alone."""
    first: tuple[HeldRow, ...] = ()
    return reduce(hold, rows, first)


def held_text(held: Sequence[HeldRow]) -> str:
    """The schemes that hold in words: `powersgd:4+int8 (buckets 1–3), int8 (bucket 0)`, the one of most buckets first.

    Parts of a model are named, those that hold the same together.
    """
    by_place: dict[str, list[HeldRow]] = {}
    for row in held:
        by_place.setdefault(row.place, []).append(row)
    places: dict[str, list[str]] = {}
    for place in sorted(by_place):
        rows = sorted(by_place[place], key=lambda row: (-len(row.buckets), row.buckets[:1]))
        text = ", ".join(f"{row.scheme} ({buckets_text(row.buckets)})" for row in rows)
        places.setdefault(text, []).append(place)
    return "; ".join(of_places(alike, text) for text, alike in places.items())


def of_places(places: Sequence[str], text: str) -> str:
    """`text` with the parts of the model that it is of; as it is where replicas have the whole model."""
    named = [place for place in places if place]
    if not named:
        return text
    more = f" and {len(named) - _MAX_PLACES} more" if len(named) > _MAX_PLACES else ""
    return f"{', '.join(named[:_MAX_PLACES])}{more}: {text}"


def scheme_changes(rows: Iterable[SchemeRow]) -> dict[tuple[int, int, str], list[SchemeRow]]:
    """Changes by generation, step and part of the model, oldest first."""
    found: dict[tuple[int, int, str], list[SchemeRow]] = {}
    for row in rows:
        found.setdefault((row.generation, row.from_step, row.place), []).append(row)
    return found


def numbers_of(rows: Iterable[SchemeRow]) -> list[int]:
    """The buckets of several changes."""
    return [number for row in rows for number in row.numbers]


def buckets_text(numbers: Iterable[int]) -> str:
    """Buckets in words: `bucket 3`, `buckets 0–5`, `4 buckets`."""
    found = sorted(set(numbers))
    if len(found) == 1:
        return f"bucket {found[0]}"
    if found and found[-1] - found[0] == len(found) - 1:
        return f"buckets {found[0]}–{found[-1]}"
    return f"{len(found)} buckets"
