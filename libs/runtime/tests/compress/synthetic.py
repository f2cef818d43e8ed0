"""A synthetic training for the controller: links that change when told to, and steps that take accordingly."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from distroml.runtime.compress.control import (
    Bucket,
    Change,
    Link,
    Measured,
    Offer,
    Probe,
    Seen,
    Setting,
    State,
    decide,
    first,
    looks,
    passed,
    probe_bytes,
    sampled_bucket,
    times,
)
from distroml.runtime.compress.control.choosing import offers_of, penalty
from distroml.runtime.compress.control.timing import timing, wire_s
from libs.runtime.tests.compress.events import Happened, happen

# Bytes sent per element of the buffer, rounds, and codec seconds per element: about what two ranks of one core see.
COSTS = {
    "none": (4.0, 1, 0.0),
    "bf16": (2.0, 1, 0.4e-9),
    "int8": (1.02, 1, 1.2e-9),
    "int4": (0.53, 1, 1.4e-9),
    "powersgd:16+int8": (0.06, 2, 6e-9),
    "powersgd:8+int8": (0.03, 2, 4e-9),
    "powersgd:4+int8": (0.016, 2, 3e-9),
    "powersgd:2+int8": (0.009, 2, 2.5e-9),
    "powersgd:1+int8": (0.005, 2, 2.3e-9),
}


def mbit(rate: float, latency_s: float = 2e-4) -> Link:
    """A link of `rate` Mbit/s."""
    return Link(latency_s, 8e-6 / rate)


def setting(*, elements: int = 4_900_000, buckets: int = 4, slows: float = 1.0, late: Collection[int] = ()) -> Setting:
    """A model in buckets that get ready over the last two thirds of the pass; those that are `late` after it."""
    part = elements // buckets
    offers = tuple(
        Offer(name, round(part * size), rounds, part * codec) for name, (size, rounds, codec) in COSTS.items()
    )
    ready = [1.0 if number in late else 1 / 3 + 2 / 3 * (number + 1) / buckets for number in range(buckets)]
    return Setting(tuple(Bucket(part, at, offers) for at in ready), codec_slows=slows)


def as_reckoned(setting: Setting, link: Link, compute_s: float, offers: Sequence[Offer]) -> Happened:
    """A step as the controller itself reckons it."""
    found = timing(setting, link, compute_s, offers)
    waited_s = max(found.exposed_s - setting.codec_slows * sum(offer.codec_s for offer in offers), 0.0)
    exposed = (*(0.0 for _ in offers[1:]), waited_s)
    return Happened(found.step_s, exposed)


@dataclass
class Training:
    """Steps on `link(step)`; `noise` is the scatter of the log of every time. `harm` changes what is seen.

    `happens` says what steps take, of the buckets as they are in `truth`, where that is not as the controller has it.
    Probes see a link that is so many times as fast, by their size: `probed`. Processors are so `busy` within steps that
    codecs take so many times as long as when they were tried, and each message `delay_s` longer than before step 1.
    """

    setting: Setting
    link: Callable[[int], Link]
    compute_s: float = 0.2
    noise: float = 0.0
    seed: int = 0
    harm: Callable[[int, str, Seen], Seen] = lambda step, scheme, seen: seen
    loss: Callable[[int], float] = lambda step: 3.0 + 3.0 / step
    happens: Callable[[Setting, Link, float, Sequence[Offer]], Happened] = as_reckoned
    truth: Setting | None = None
    probed: Callable[[int], float] = lambda size: 1.0
    busy: float = 1.0
    delay_s: float = 0.0
    changes: list[Change] = field(default_factory=list[Change])
    schemes: dict[int, tuple[str, ...]] = field(default_factory=dict[int, tuple[str, ...]])
    probes: dict[int, int] = field(default_factory=dict[int, int])
    looked: list[int] = field(default_factory=list[int])

    def run(self, steps: int) -> State:
        """Train from step 1 on; `schemes` has what each step used."""
        chance = random.Random(self.seed)
        state = first(self.setting, self.link(1), self.compute_s)
        held = state.schemes
        self.schemes = {}
        for step in range(1, steps + 1):
            for change in self.changes:
                if change.from_step == step:
                    assert held[change.bucket] == change.from_scheme
                    held = (*held[: change.bucket], change.to_scheme, *held[change.bucket + 1 :])
            self.schemes[step] = held
            if not looks(state, step):
                state = passed(state, self.loss(step))
                continue
            self.looked.append(step)
            state, changes = decide(self.setting, state, self._measured(step, state, held, chance))
            assert all(change.from_step == step + self.setting.lead for change in changes)
            self.changes += changes
        return state

    def _wire_s(self, state: State, step: int, link: Link, offer: Offer) -> float:
        """Codes leave early where nobody wants to know how long they take."""
        timed = times(state, step) or offer.scheme == "none" or offer.rounds > 1
        return wire_s(link, offer) if timed else 0.0

    def _measured(self, step: int, state: State, held: tuple[str, ...], chance: random.Random) -> Measured:
        def scatter() -> float:
            return chance.lognormvariate(0, self.noise) if self.noise else 1.0

        link = self.link(step)
        offers = [replace(one, codec_s=self.busy * one.codec_s) for one in offers_of(self.setting, held)]
        # A link scatters as a whole: its exchanges of one step share the weather.
        link = Link(link.latency_s * scatter() + self.delay_s, link.s_per_byte * scatter())
        found = self.happens(self.truth or self.setting, link, self.compute_s * scatter(), offers)
        sampled = sampled_bucket(state, step)
        seen: list[Seen] = []
        for number, (offer, exposed_s) in enumerate(zip(offers, found.exposed_s, strict=True)):
            wire_s, cosine = self._wire_s(state, step, link, offer), 0.95 if number == sampled else None
            one = Seen(wire_s, exposed_s, 1.0, 1.0, cosine, offer.codec_s, link.latency_s)
            seen.append(self.harm(step, offer.scheme, one))
        probe = None
        if size := probe_bytes(self.setting, state, step):
            self.probes[step] = size
            probe = Probe(size, link.latency_s + size * link.s_per_byte / self.probed(size))
        return Measured(step, found.step_s, self.loss(step), tuple(seen), probe)


def happened(truth: Setting, link: Link, schemes: Sequence[str]) -> float:
    """Seconds to a loss with these schemes, as events come to them: 1 for as many steps as a dense run takes."""
    offers = offers_of(truth, schemes)
    return happen(truth, link, 0.2, offers).step_s * penalty(truth, offers)
