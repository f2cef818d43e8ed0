"""The schemes with the least predicted time to a loss, never lossier than the link asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from distroml.runtime.compress.control.model import Bucket, Link, Offer, Setting
from distroml.runtime.compress.control.penalties import LADDER, RUNGS
from distroml.runtime.compress.control.timing import Timing, timing

HIDDEN = 0.05
"""Exposed time that is not worth any loss: as a share of the step."""

# A lossier rung has to be this much better, so that a model of a few per cent decides nothing.
_WORTH = 0.02


@dataclass(frozen=True, slots=True)
class Choice:
    """One offer per bucket. `to_loss_s` is the step's time times the steps that it takes beside a dense run."""

    offers: tuple[Offer, ...]
    timing: Timing
    penalty: float

    @property
    def to_loss_s(self) -> float:
        """What is made as small as possible."""
        return self.timing.step_s * self.penalty

    @property
    def hidden(self) -> bool:
        """Whether nearly all of the exchange hides behind computing."""
        return self.timing.exposed <= HIDDEN


def penalty(setting: Setting, offers: Sequence[Offer]) -> float:
    """Steps to a loss over the dense run's: each bucket counts by its share of the elements."""
    whole = sum(bucket.numel for bucket in setting.buckets) or 1
    pairs = zip(setting.buckets, offers, strict=True)
    return 1.0 + sum(LADDER[RUNGS[offer.scheme]].extra * bucket.numel / whole for bucket, offer in pairs)


def judge(setting: Setting, link: Link, compute_s: float, offers: Sequence[Offer], coding: float = 1.0) -> Choice:
    """What these offers come to; `coding` as in `timing`."""
    return Choice(tuple(offers), timing(setting, link, compute_s, offers, coding), penalty(setting, offers))


def ladders(setting: Setting, ceilings: Sequence[int]) -> list[list[Offer]]:
    """Each bucket's offers that are allowed and on the ladder, least lossy first; a ceiling below 0 allows all."""
    return [_ladder(bucket, ceiling) for bucket, ceiling in zip(setting.buckets, ceilings, strict=True)]


def _ladder(bucket: Bucket, ceiling: int) -> list[Offer]:
    known = [offer for offer in bucket.offers if offer.scheme in RUNGS]
    allowed = [offer for offer in known if ceiling < 0 or RUNGS[offer.scheme] <= ceiling]
    return sorted(allowed, key=lambda offer: RUNGS[offer.scheme])


def choose(setting: Setting, link: Link, compute_s: float, ceilings: Sequence[int], coding: float = 1.0) -> Choice:
    """The best offers: up the ladder while time to loss falls and communication shows, then down where it hides.

    1. Rung by rung, all buckets together; the climb ends at the first rung whose exchange hides.
    2. Bucket by bucket, those that are ready first: the least lossy offer that costs no time to loss, since their
       exchange hides behind the rest of the pass.
    """
    judged = partial(judge, setting, link, compute_s, coding=coding)
    buckets = ladders(setting, ceilings)
    best = judged([offers[0] for offers in buckets])
    for index in range(1, len(LADDER)):
        if best.hidden:
            break
        level = [max((o for o in offers if RUNGS[o.scheme] <= index), key=_rung_of) for offers in buckets]
        tried = judged(level)
        if tried.to_loss_s < best.to_loss_s * (1 - _WORTH):
            best = tried
        if tried.hidden:
            break
    for number, offers in enumerate(buckets):
        for offer in offers:
            if RUNGS[offer.scheme] >= RUNGS[best.offers[number].scheme]:
                break
            tried = judged([*best.offers[:number], offer, *best.offers[number + 1 :]])
            if tried.to_loss_s <= best.to_loss_s or (tried.hidden and best.hidden):
                best = tried
                break
    return best


def _rung_of(offer: Offer) -> int:
    return RUNGS[offer.scheme]


def offers_of(setting: Setting, schemes: Sequence[str]) -> list[Offer]:
    """The offers of these schemes, by bucket; raises `ValueError` for one that a bucket does not have."""
    found: list[Offer] = []
    for bucket, scheme in zip(setting.buckets, schemes, strict=True):
        offer = next((offer for offer in bucket.offers if offer.scheme == scheme), None)
        if offer is None:
            raise ValueError(f"scheme {scheme!r} is not offered; offered are {[o.scheme for o in bucket.offers]}")
        found.append(offer)
    return found
