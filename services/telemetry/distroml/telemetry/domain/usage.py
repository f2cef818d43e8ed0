"""What a job held: slots over time, cut at midnights (UTC), so that any number of days adds up exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Self

from distroml.telemetry.domain.view import JobView

DAY_MS = 86_400_000
HOUR_S = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotTime:
    """A number of slots held from one moment to another, both within one day. Unix milliseconds."""

    job: str
    project: str
    attempt: int
    slots: int
    since_ms: int
    until_ms: int

    @property
    def day(self) -> int:
        """Days since 1970-01-01."""
        return self.since_ms // DAY_MS

    @property
    def slot_ms(self) -> int:
        """Milliseconds of one slot."""
        return self.slots * (self.until_ms - self.since_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The slots that a job holds now, since when."""

    job: str
    project: str
    attempt: int
    slots: int
    since_ms: int


def ended_pieces(before: JobView, after: JobView, at_ms: int) -> tuple[SlotTime, ...]:
    """What came to its end between two views of a job: nothing where it holds what it held."""
    if not before.placed_workers or before.placed_since_ms == after.placed_since_ms:
        return ()
    return tuple(pieces(held_by(before), at_ms))


def held_by(view: JobView) -> Held:
    """What the view's job holds."""
    return Held(
        job=view.job,
        project=view.project,
        attempt=view.attempt,
        slots=view.placed_workers,
        since_ms=view.placed_since_ms,
    )


def pieces(held: Held, until_ms: int) -> Iterator[SlotTime]:
    """What was held until then, a piece a day; nothing where the clock went back."""
    since = held.since_ms
    while since < until_ms:
        until = min(until_ms, (since // DAY_MS + 1) * DAY_MS)
        yield SlotTime(
            job=held.job,
            project=held.project,
            attempt=held.attempt,
            slots=held.slots,
            since_ms=since,
            until_ms=until,
        )
        since = until


@dataclass(frozen=True, slots=True)
class Price:
    """Money for a slot and hour."""

    amount: Decimal
    currency: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """`2.40 EUR`; raises `ValueError`."""
        amount, _, currency = text.strip().partition(" ")
        currency = currency.strip()
        if not (currency.isalpha() and currency.isascii() and currency.isupper() and len(currency) == 3):
            raise ValueError("name the currency by its three letters: `2.40 EUR`")
        if not amount.replace(".", "", 1).isdigit() or not amount.isascii() or len(amount) > 16:
            raise ValueError("give a plain number and a currency: `2.40 EUR`")
        return cls(Decimal(amount), currency)

    def of(self, slot_ms: int) -> str:
        """The money for so much slot time, to the hundredth, half of one up."""
        money = self.amount * slot_ms / (HOUR_S * 1000)
        return str(money.quantize(Decimal("0.01"), rounding=ROUND_HALF_UP))
