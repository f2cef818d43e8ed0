"""What the link does and what computing takes, from noisy steps: means within a regime, and when a regime has ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from distroml.runtime.compress.control.model import Link, Measured, Offer, Setting, State

PROBE_EVERY = 20
PROBE_BYTES = 256 * 1024
"""Smaller messages pass through the burst of a rate limiter and show a link that is not there."""

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


def probe_due(state: State, step: int) -> bool:
    """Whether a dense probe belongs into `step`: compressed exchanges may be too small to show that a link is fast."""
    compressed = any(scheme != "none" for scheme in state.schemes)
    return compressed and (step % PROBE_EVERY == 0 or state.doubt != 0)


def caution(state: State) -> float:
    """By how much what is measured has to differ more than usual before it counts; 1 where choices lately stayed."""
    lately = state.step - state.left_at <= _RETURNS_STEPS
    return 1.0 + _RETURN * state.returns if lately else 1.0


def sampled(setting: Setting, state: State, measured: Measured, offers: Sequence[Offer]) -> tuple[State, bool]:
    """The state with the step's times taken into account, and whether it shows another regime of the link."""
    exposed_s = sum(seen.exposed_s for seen in measured.buckets)
    codec_s = sum(offer.codec_s for offer in offers)
    computed_s = max(measured.step_s - exposed_s - setting.codec_slows * codec_s, 0.1 * measured.step_s)
    state = replace(
        state,
        compute_s=_mean(state.compute_s, computed_s, state.compute_n),
        compute_n=min(state.compute_n + 1, _WINDOW),
        step_s=_mean(state.step_s, measured.step_s, state.step_n),
        step_n=min(state.step_n + 1, _WINDOW),
    )
    sample = _link_sample(state, measured, offers)
    return _weighed(state, sample) if sample is not None else (state, False)


def _mean(mean: float, sample: float, n: int) -> float:
    """The mean with one sample more, in logs: a stall of one step moves it little."""
    if n == 0 or mean <= 0:
        return sample
    return math.exp(math.log(mean) + (math.log(sample) - math.log(mean)) / min(n + 1, _WINDOW))


def _link_sample(state: State, measured: Measured, offers: Sequence[Offer]) -> float | None:
    """Seconds per byte as this step shows them; None where it shows nothing."""
    link, probe = state.link, measured.probe
    if probe is not None and probe.sent_bytes > 0:
        return max((probe.seconds - link.latency_s) / probe.sent_bytes, _LEAST_S_PER_BYTE)
    took_s = sum(seen.exchange_s for seen in measured.buckets)
    sent = sum(offer.sent_bytes for offer in offers)
    on_wire_s = took_s - sum(offer.rounds * link.latency_s + offer.codec_s for offer in offers)
    stalled = on_wire_s > 0.1 * state.compute_s
    if not sent or took_s <= 0 or (sent < _TELLING_BYTES and not stalled):
        return None
    # Where codecs take most of it, the wire's part is a small difference of large numbers: a bound is what is known.
    if on_wire_s < took_s / 2:
        bound = took_s / sent
        return max(on_wire_s, took_s / 10) / sent if math.log(link.s_per_byte / bound) > _BAND else None
    return on_wire_s / sent


def _weighed(state: State, sample: float) -> tuple[State, bool]:
    off = math.log(sample / max(state.link.s_per_byte, _LEAST_S_PER_BYTE))
    if abs(off) <= _BAND * caution(state):
        mean = _mean(state.link.s_per_byte, sample, state.link_n)
        link = Link(state.link.latency_s, mean)
        return replace(state, link=link, link_n=min(state.link_n + 1, _WINDOW), doubt=0, doubt_log=0.0), False
    side = 1 if off > 0 else -1
    same = state.doubt * side > 0
    doubt, doubt_log = (state.doubt + side, state.doubt_log + off) if same else (side, off)
    needed = _FAR_DOUBTS if abs(doubt_log / doubt) > _FAR else _DOUBTS
    if abs(doubt) < needed:
        return replace(state, doubt=doubt, doubt_log=doubt_log), False
    fresh = state.link.s_per_byte * math.exp(doubt_log / abs(doubt))
    link = Link(state.link.latency_s, fresh)
    return replace(state, link=link, link_n=abs(doubt), doubt=0, doubt_log=0.0), True
