"""What the link does and what computing takes, from noisy steps: means within a regime, and when a regime has ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from distroml.runtime.compress.control.model import Link, Measured, Offer, Setting, State
from distroml.runtime.compress.control.timing import wire_s

PROBE_EVERY = 20
LOOK_EVERY = 8
"""Where nothing has changed for long, one of so many steps is looked at, and those with probes."""
PROBE_BYTES = 256 * 1024
"""Smaller messages pass through the burst of a rate limiter and show a link that is not there."""
# A doubt is probed in each step, after the next that came to nothing in every second one, and so on: where probes and
# exchanges see a link differently, doubts come without end, and each probe takes time.
_MOST_QUELLED = 4
# Of a step's computing, what a larger probe may take.
_PROBE_SHARE = 0.05

# A mean reaches back about this many samples.
_WINDOW = 16
# A sample this far off contradicts the estimate; three in a row end the regime, two where they are further off.
_BAND = math.log(1.6)
_FAR = math.log(4.0)
_DOUBTS, _FAR_DOUBTS = 3, 2
# Exchanges of fewer bytes are mostly latency and scheduling.
_TELLING_BYTES = 64 * 1024
_LEAST_S_PER_BYTE = 1e-12
# Choices that go back and forth show that probes and exchanges see the link differently, as where ranks share cores: so
# much more each one asks of the next, until none was made for so long.
_RETURN, _RETURNS_STEPS = 0.5, 400


def probe_bytes(setting: Setting, state: State, step: int) -> int:
    """How large a dense probe belongs into `step`, 0 for none: compressed exchanges may not show that a link is fast.

    It is as large as a small part of a step lets it be, so that what holds up every message hardly counts, yet no
    larger than a bucket: what fits into a cache travels between ranks of one host as no bucket does.
    """
    compressed = any(scheme != "none" for scheme in state.schemes)
    if not compressed or step % (1 << state.quelled if state.doubt else PROBE_EVERY):
        return 0
    s_per_byte = state.link.s_per_byte * math.exp(state.doubt_log / abs(state.doubt) if state.doubt else 0.0)
    size = PROBE_BYTES
    while 2 * size <= setting.largest_bytes and 2 * size * s_per_byte <= _PROBE_SHARE * state.compute_s:
        size *= 2
    return size


def caution(state: State) -> float:
    """By how much what is measured has to differ more than usual before it counts; 1 where choices lately stayed."""
    lately = state.step - state.left_at <= _RETURNS_STEPS
    return 1.0 + _RETURN * state.returns if lately else 1.0


def sampled(setting: Setting, state: State, measured: Measured, offers: Sequence[Offer]) -> tuple[State, bool]:
    """The state with the step's times taken into account, and whether it shows another regime of the link."""
    state = _coded(state, measured, offers)
    exposed_s = sum(seen.exposed_s for seen in measured.buckets)
    codec_s = sum(seen.coded_s for seen in measured.buckets) or state.coding * sum(offer.codec_s for offer in offers)
    # What was coded while computing waited is among its waiting already.
    pairs = zip(measured.buckets, offers, strict=True)
    known_s = sum(seen.wire_s or wire_s(state.link, offer) for seen, offer in pairs)
    beside_s = max(codec_s - max(exposed_s - known_s, 0.0), 0.0)
    computed_s = max(measured.step_s - exposed_s - setting.codec_slows * beside_s, 0.1 * measured.step_s)
    state = replace(
        state,
        compute_s=_mean(state.compute_s, computed_s, state.compute_n),
        compute_n=min(state.compute_n + 1, _WINDOW),
        step_s=_mean(state.step_s, measured.step_s, state.step_n),
        step_n=min(state.step_n + 1, _WINDOW),
    )
    sample = _link_sample(state, measured, offers)
    return _weighed(state, sample) if sample is not None else (state, False)


def _coded(state: State, measured: Measured, offers: Sequence[Offer]) -> State:
    """With what codecs took, and what messages of no size did: on a busy processor both take longer than before step 1.

    Neither says anything of the link.
    """
    offered_s = sum(offer.codec_s for offer in offers)
    coded_s = sum(seen.coded_s for seen in measured.buckets)
    if offered_s > 0 and coded_s > 0:
        coding = _mean(state.coding, coded_s / offered_s, state.coding_n)
        state = replace(state, coding=coding, coding_n=min(state.coding_n + 1, _WINDOW))
    delays = [seen.latency_s for seen in measured.buckets if seen.latency_s > 0]
    if delays:
        latency_s = _mean(state.link.latency_s, math.fsum(delays) / len(delays), state.latency_n)
        link = Link(latency_s, state.link.s_per_byte)
        state = replace(state, link=link, latency_n=min(state.latency_n + 1, _WINDOW))
    return state


def _mean(mean: float, sample: float, n: int) -> float:
    """The mean with one sample more, in logs: a stall of one step moves it little."""
    if n == 0 or mean <= 0:
        return sample
    return math.exp(math.log(mean) + (math.log(sample) - math.log(mean)) / min(n + 1, _WINDOW))


def _link_sample(state: State, measured: Measured, offers: Sequence[Offer]) -> float | None:
    """Seconds per byte as this step shows them; None where it shows nothing."""
    probe = measured.probe
    if probe is not None and probe.sent_bytes > 0:
        sample = _per_byte(state.link, probe.seconds, 1, probe.sent_bytes)
        if sample is not None:
            return sample
    took_s = sum(seen.wire_s for seen in measured.buckets)
    sent, rounds = sum(offer.sent_bytes for offer in offers), sum(offer.rounds for offer in offers)
    stalled = took_s - rounds * state.link.latency_s > 0.1 * state.compute_s
    if not sent or any(seen.wire_s <= 0 for seen in measured.buckets) or (sent < _TELLING_BYTES and not stalled):
        return None
    return _per_byte(state.link, took_s, rounds, sent)


def _per_byte(link: Link, took_s: float, rounds: int, sent: int) -> float | None:
    """Of `sent` bytes in so many rounds; None where they only show that the link is no slower than is known."""
    on_wire_s = took_s - rounds * link.latency_s
    if on_wire_s >= took_s / 2:
        return max(on_wire_s / sent, _LEAST_S_PER_BYTE)
    # Where latency takes most of it, the wire's part is a small difference of large numbers: a bound is what is known.
    known = math.log(max(link.s_per_byte, _LEAST_S_PER_BYTE) * sent / took_s) > _BAND
    return max(on_wire_s, took_s / 10) / sent if known else None


def _weighed(state: State, sample: float) -> tuple[State, bool]:
    off = math.log(sample / max(state.link.s_per_byte, _LEAST_S_PER_BYTE))
    if abs(off) <= _BAND * caution(state):
        mean = _mean(state.link.s_per_byte, sample, state.link_n)
        link = Link(state.link.latency_s, mean)
        quelled = min(state.quelled + (state.doubt != 0), _MOST_QUELLED)
        state = replace(state, link=link, link_n=min(state.link_n + 1, _WINDOW), quelled=quelled)
        return replace(state, doubt=0, doubt_log=0.0), False
    side = 1 if off > 0 else -1
    same = state.doubt * side > 0
    doubt, doubt_log = (state.doubt + side, state.doubt_log + off) if same else (side, off)
    needed = _FAR_DOUBTS if abs(doubt_log / doubt) > _FAR else _DOUBTS
    if abs(doubt) < needed:
        quelled = min(state.quelled + (state.doubt != 0 and not same), _MOST_QUELLED)
        return replace(state, doubt=doubt, doubt_log=doubt_log, quelled=quelled), False
    fresh = state.link.s_per_byte * math.exp(doubt_log / abs(doubt))
    link = Link(state.link.latency_s, fresh)
    return replace(state, link=link, link_n=abs(doubt), doubt=0, doubt_log=0.0, quelled=0), True
