"""The adaptive controller: from measurements that all ranks share to schemes that all ranks hold, with their reasons.

Pure: no clock, no randomness, no tensor, no network. Every rank runs it over the same all-reduced numbers, so that
ranks agree without saying more. A rank's clock and its codecs' speed come in from outside, measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from distroml.runtime.compress.control import guarding, proving
from distroml.runtime.compress.control.choosing import HIDDEN, Choice, choose, judge, offers_of
from distroml.runtime.compress.control.estimating import caution, sampled
from distroml.runtime.compress.control.model import NONE, Change, Link, Measured, Setting, State, Watched
from distroml.runtime.compress.control.timing import time_words, timing

# Between two changes, so that a step is measured under each.
_HOLD_STEPS = 10
# Choosing takes a millisecond and more where there are many buckets; a link that moved does not wait for it.
_CHOOSE_EVERY = 10
# Another choice has to be this much faster to a loss than the one that holds; less where it will have to show it.
_MARGIN, _MARGIN_SHOWN = 0.05, 0.04
# A choice that goes back to what was given up so few steps ago makes the next one slower to come, up to so many times.
_SOON, _MOST_RETURNS = 100, 4
# Communication worth a hint, as a share of the step; and what the hint has to promise.
TOLD = 0.10
_GAIN = 1.05
_HALVINGS = 40


def first(setting: Setting, link: Link, compute_s: float, recorded: Sequence[str] | None = None) -> State:
    """The schemes of step 1, from a probe of the link: one dense step on a slow link costs as much as 40 others.

    Where they are not surely worth more than no compression, steps without it are measured first. Where step 1 is made
    again they are what was `recorded` of it.
    """
    if recorded is not None:
        return State(buckets=tuple(Watched(scheme=one) for one in recorded), link=link, compute_s=compute_s)
    choice = choose(setting, link, compute_s, [-1] * len(setting.buckets))
    dense = judge(setting, link, compute_s, offers_of(setting, [NONE] * len(setting.buckets)))
    if choice.to_loss_s * proving.SURE > dense.to_loss_s:
        choice = dense
    return State(buckets=tuple(Watched(scheme=offer.scheme) for offer in choice.offers), link=link, compute_s=compute_s)


def begun(state: State) -> tuple[Change, ...]:
    """What `first` chose beside no compression, as changes that hold from the state's first step on."""
    why = f"the links between the ranks do {_rate(state.link)}"
    return tuple(
        Change(number, NONE, one.scheme, "LinkProbed", why, state.from_step)
        for number, one in enumerate(state.buckets)
        if one.scheme != NONE
    )


def decide(setting: Setting, state: State, measured: Measured) -> tuple[State, tuple[Change, ...]]:
    """The state after a step, and what changes `setting.lead` steps after it.

    A step whose times are no numbers, or that still ran under the schemes before, only counts.

    Raises:
        ValueError: `measured` is of another number of buckets.
    """
    if len(measured.buckets) != len(setting.buckets):
        raise ValueError(f"{len(measured.buckets)} buckets were measured, the layout has {len(setting.buckets)}")
    sound = measured.step_s > 0 and math.isfinite(measured.step_s)
    sound = sound and all(math.isfinite(seen.wire_s + seen.exposed_s) for seen in measured.buckets)
    # The first step with a scheme makes its buffers.
    if not sound or measured.step <= state.from_step:
        return replace(state, step=measured.step), ()
    current = offers_of(setting, state.schemes)
    s_per_byte, step_before = state.link.s_per_byte, state.step
    state, moved = sampled(setting, state, measured, current)
    state = replace(guarding.watched(state, measured), step=measured.step)
    if moved:
        # What steps took before was on another link; on a faster one, what was to be faster than that still has to be.
        before_s = state.step_before_s if state.link.s_per_byte < s_per_byte else 0.0
        state = replace(state, step_s=0.0, step_n=0, step_before_s=before_s)
    if tripped := guarding.trips(state, measured):
        return _step_back(setting, state, tripped)
    state, back = proving.shown(setting, state)
    if back:
        state = replace(_with_schemes(state, back), left=state.schemes, left_at=state.step)
        return _changed(state, back[0].from_step, step_before_s=0.0), back
    if state.step_before_s > 0 and state.link.s_per_byte <= s_per_byte * proving.SURE:
        # What steps are about to show is not decided by a model meanwhile.
        return state, ()
    due = measured.step // _CHOOSE_EVERY > step_before // _CHOOSE_EVERY
    if not moved and (measured.step < state.from_step + _HOLD_STEPS or not due):
        return state, ()
    return _choose_anew(setting, state, moved=moved)


def _step_back(setting: Setting, state: State, tripped: Sequence[guarding.Trip]) -> tuple[State, tuple[Change, ...]]:
    buckets = list(state.buckets)
    changes: list[Change] = []
    from_step = state.step + setting.lead
    for trip in tripped:
        old = buckets[trip.bucket]
        allowed = [offer.scheme for offer in setting.buckets[trip.bucket].offers]
        buckets[trip.bucket] = new = guarding.stepped_back(old, allowed, state.step)
        changes.append(Change(trip.bucket, old.scheme, new.scheme, trip.reason, trip.why, from_step))
    # Whatever tripped is counted anew, so that one trouble does not step back twice.
    state = replace(state, buckets=tuple(buckets), course=replace(state.course, high=0))
    return _changed(state, from_step, step_before_s=0.0), tuple(changes)


def _choose_anew(setting: Setting, state: State, *, moved: bool) -> tuple[State, tuple[Change, ...]]:
    held = judge(setting, state.link, state.compute_s, offers_of(setting, state.schemes), state.coding)
    found = choose(setting, state.link, state.compute_s, proving.ceilings(state), state.coding)
    schemes = tuple(offer.scheme for offer in found.offers)
    if proving.is_beaten(state, schemes):
        return state, ()
    lossier, measured = found.penalty > held.penalty, state.step_n >= proving.TELLING
    margin = _MARGIN_SHOWN if lossier and measured else _MARGIN
    if found.offers == held.offers or not _better(found, held, margin * caution(state)):
        return state, ()
    if lossier and not measured and found.to_loss_s * proving.SURE > held.to_loss_s:
        return state, ()
    from_step = state.step + setting.lead
    reason = "LinkSlower" if lossier else "LinkFaster"
    if not moved:
        reason = proving.FASTER if lossier else "LessLossy"
    why = (
        f"the links do {_rate(state.link)}: a step of {time_words(held.timing.step_s)} becomes one of "
        f"{time_words(found.timing.step_s)}, {100 * found.timing.exposed:.0f} % of it for communication"
    )
    changes = tuple(
        Change(number, old.scheme, new.scheme, reason, why, from_step)
        for number, (old, new) in enumerate(zip(state.buckets, found.offers, strict=True))
        if old.scheme != new.scheme
    )
    returns = _returns(state, schemes)
    before_s = state.step_s if lossier and measured else 0.0
    state = replace(_with_schemes(state, changes), left=state.schemes, left_at=state.step, returns=returns)
    return _changed(state, from_step, step_before_s=before_s), changes


def _returns(state: State, chosen: tuple[str, ...]) -> int:
    if chosen == state.left and state.step - state.left_at <= _SOON:
        return min(state.returns + 1, _MOST_RETURNS)
    return state.returns if caution(state) > 1 else 0


def _better(found: Choice, held: Choice, margin: float) -> bool:
    """Whether a choice is worth a change: clearly faster to a loss, or less lossy at no cost with room to spare."""
    if found.to_loss_s < held.to_loss_s * (1 - margin):
        return True
    less_lossy = found.penalty < held.penalty and found.timing.exposed <= 0.8 * HIDDEN
    return less_lossy and found.timing.step_s <= held.timing.step_s * (1 + HIDDEN)


def _changed(state: State, from_step: int, *, step_before_s: float) -> State:
    return replace(state, from_step=from_step, step_s=0.0, step_n=0, step_before_s=step_before_s, beaten=None)


def with_changes(state: State, changes: Sequence[Change]) -> State:
    """The state as if these changes, all from one step on, had been decided by it: for steps that are made again."""
    reason, from_step = changes[0].reason, changes[0].from_step
    after = replace(_with_schemes(state, changes), left=state.schemes, left_at=from_step)
    if reason == proving.NOT_FASTER:
        after = proving.refuted(after, after.schemes, from_step)
    before_s = state.step_s if reason == proving.FASTER and state.step_n >= proving.TELLING else 0.0
    return _changed(after, from_step, step_before_s=before_s)


def _with_schemes(state: State, changes: Sequence[Change]) -> State:
    buckets = list(state.buckets)
    for change in changes:
        old = buckets[change.bucket]
        buckets[change.bucket] = Watched(change.to_scheme, ceiling=old.ceiling, until=old.until, trips=old.trips)
    return replace(state, buckets=tuple(buckets))


@dataclass(frozen=True, slots=True)
class Gain:
    """What `auto` would do to a run that does not use it. `faster` is in time to a loss."""

    exposed: float
    step_s: float
    auto_step_s: float
    faster: float
    schemes: tuple[str, ...]


def gain(setting: Setting, link: Link, step_s: float, exposed_s: float) -> Gain | None:
    """What `auto` would gain a run whose exposed communication exceeds a tenth of its step; None where that is little.

    Args:
        setting: the run's buckets with all that may be chosen.
        link: as the run's own exchanges show it.
        step_s, exposed_s: medians over enough steps.
    """
    if step_s <= 0 or exposed_s <= TOLD * step_s:
        return None
    choice = choose(setting, link, step_s - exposed_s, [-1] * len(setting.buckets))
    faster = step_s / choice.to_loss_s
    if faster < _GAIN:
        return None
    schemes = tuple(offer.scheme for offer in choice.offers)
    return Gain(exposed_s / step_s, step_s, choice.timing.step_s, faster, schemes)


def link_of(setting: Setting, step_s: float, exposed_s: float) -> Link:
    """The link on which dense exchanges keep a step waiting for `exposed_s`, without latency.

    The time that exchanges stand out grows with the seconds of a byte: halving finds them, whenever buckets begin.
    """
    offers = offers_of(setting, [NONE] * len(setting.buckets))
    # What is sent in a whole step's time takes a step longer than no computing does.
    low_s, high_s = 0.0, step_s / max(sum(offer.sent_bytes for offer in offers), 1)
    for _ in range(_HALVINGS):
        middle_s = (low_s + high_s) / 2
        if timing(setting, Link(0.0, middle_s), step_s - exposed_s, offers).exposed_s < exposed_s:
            low_s = middle_s
        else:
            high_s = middle_s
    return Link(latency_s=0.0, s_per_byte=high_s)


def _rate(link: Link) -> str:
    mbit = 8e-6 / link.s_per_byte if link.s_per_byte > 0 else math.inf
    if mbit >= 10_000:
        return "over 10 Gbit/s"
    return f"{mbit / 1e3:.3g} Gbit/s" if mbit >= 999.5 else f"{mbit:.3g} Mbit/s"
