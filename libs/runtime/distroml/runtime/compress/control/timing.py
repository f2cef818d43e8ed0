"""How long a step takes under given schemes on a given link: how exchanges overlap with the pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distroml.runtime.compress.control.model import Link, Offer, Setting


@dataclass(frozen=True, slots=True)
class Timing:
    """`exposed_s` is what a step takes beyond its computing: waiting, and codecs that computing makes room for."""

    step_s: float
    exposed_s: float

    @property
    def exposed(self) -> float:
        """As a share of the step."""
        return self.exposed_s / self.step_s if self.step_s > 0 else 0.0


def time_words(seconds: float) -> str:
    """Of a step, for people."""
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{1e3 * seconds:.3g} ms"


def wire_s(link: Link, offer: Offer) -> float:
    """Seconds on the wire of one exchange."""
    return offer.rounds * link.latency_s + offer.sent_bytes * link.s_per_byte


def timing(setting: Setting, link: Link, compute_s: float, offers: Sequence[Offer], coding: float = 1.0) -> Timing:
    """The step with one offer per bucket: exchanges follow one another, each once its gradients are there.

    Codecs take `coding` times as long as when they were tried.
    """
    slows = setting.codec_slows
    busy_s = compute_s + slows * coding * sum(offer.codec_s for offer in offers)
    end_s = 0.0
    for bucket, offer in zip(setting.buckets, offers, strict=True):
        end_s = max(end_s, bucket.ready * busy_s) + wire_s(link, offer) + (1 - slows) * coding * offer.codec_s
    step_s = max(busy_s, end_s)
    return Timing(step_s, step_s - compute_s)
