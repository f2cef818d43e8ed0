"""Whether a change for speed keeps its promise: where the model promises little, what steps take decides."""

from __future__ import annotations

from dataclasses import replace

from distroml.runtime.compress.control.choosing import offers_of, penalty
from distroml.runtime.compress.control.model import Beaten, Change, Refuted, Setting, State
from distroml.runtime.compress.control.penalties import rung
from distroml.runtime.compress.control.timing import time_words

FASTER, NOT_FASTER = "Faster", "NotFaster"
"""Reasons of a change for speed, and of the one that takes it back."""
SURE = 1.25
"""What is promised to be so many times as fast to a loss needs no measurement beside it."""
TELLING = 8
"""Steps that say what a step takes."""
# A change has to show what it promised within so many steps.
_SHOWN_AFTER = 12
# What was no faster is not tried again for so many steps, twice as many each time, unless the link is another.
_HOLD, _MOST_HOLD = 50, 3200
# So many times as slow or as fast.
_ANOTHER = 1.6


def ceilings(state: State) -> list[int]:
    """The most lossy rung that each bucket may have, by its guards and by what was no faster; below 0 for any."""
    allowed = [one.ceiling if state.step < one.until else -1 for one in state.buckets]
    known = state.refuted
    if known is None or state.step >= known.until or state.link.s_per_byte > _ANOTHER * known.s_per_byte:
        return allowed
    rungs = [rung(scheme) for scheme in known.schemes]
    return [most if one < 0 else min(one, most) for one, most in zip(allowed, rungs, strict=True)]


def shown(setting: Setting, state: State) -> tuple[State, tuple[Change, ...]]:
    """The state once a change for speed had its steps, and the changes that take it back where it was no faster.

    What counts is the time to a loss: steps have to be shorter by more than a lossier scheme needs more of them.
    """
    before_s = state.step_before_s
    if before_s <= 0 or state.step_n < _SHOWN_AFTER:
        return state, ()
    now, before = (penalty(setting, offers_of(setting, schemes)) for schemes in (state.schemes, state.left))
    if state.step_s * now < before_s * before:
        return replace(state, step_before_s=0.0, beaten=Beaten(state.left, state.link.s_per_byte)), ()
    why = f"steps take {time_words(state.step_s)}, and took {time_words(before_s)} before the change"
    from_step = state.step + setting.lead
    changes = tuple(
        Change(number, one.scheme, scheme, NOT_FASTER, why, from_step)
        for number, (one, scheme) in enumerate(zip(state.buckets, state.left, strict=True))
        if one.scheme != scheme
    )
    return refuted(state, state.left, state.step), changes


def is_beaten(state: State, schemes: tuple[str, ...]) -> bool:
    """Whether steps have shown that `schemes` are slower on a link like this one; the model says otherwise in vain."""
    known = state.beaten
    return known is not None and schemes == known.schemes and state.link.s_per_byte * _ANOTHER > known.s_per_byte


def refuted(state: State, kept: tuple[str, ...], step: int) -> State:
    """With what is known once schemes lossier than `kept` were no faster up to `step`."""
    times = state.refuted.times + 1 if state.refuted is not None else 1
    hold = min(_HOLD << min(times - 1, 10), _MOST_HOLD)
    return replace(state, refuted=Refuted(kept, state.link.s_per_byte, step + hold, times))
