"""When a scheme does harm: its residual runs away, its direction is lost, or the loss rises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from distroml.runtime.compress.control.estimating import LOOK_EVERY
from distroml.runtime.compress.control.model import NONE, Astray, Course, Measured, Seen, State, Watched
from distroml.runtime.compress.control.penalties import LADDER, rung

# A residual may grow for as long as its scheme needs to tell everything once; windows of so many steps show the trend.
_WINDOW = 50
_RISE = 1.1
_RISES = 4
# A bucket's own direction is lost by so many samples of it, a scheme's by samples of so many buckets in a row.
_COSINES = 3
# The loss is too high where its quick mean stands this many scatters above the best of its slow mean, for so long.
_SCATTERS = 4.0
_HIGH = 16
_LEARNED = 32
_HOLD = 200
_MOST_HOLD = 3200


@dataclass(frozen=True, slots=True)
class Trip:
    """A guard tripped over `bucket`."""

    bucket: int
    reason: str
    why: str


def watched(state: State, measured: Measured) -> State:
    """The state with the step's norms, cosines and loss taken into account."""
    # Steps at which nobody looked count as the one after them.
    steps = max(1, min(measured.step - state.step, LOOK_EVERY))
    pairs = zip(state.buckets, measured.buckets, strict=True)
    return replace(
        state,
        buckets=tuple(_watched(one, seen, steps) for one, seen in pairs),
        course=coursed(state.course, measured.loss),
        astray=_gone_astray(state, measured),
    )


def _gone_astray(state: State, measured: Measured) -> tuple[Astray, ...]:
    """What is known of schemes' directions after the step's samples; one that is as it should be clears its scheme."""
    known = {one.scheme: one.buckets for one in state.astray}
    for number, (one, seen) in enumerate(zip(state.buckets, measured.buckets, strict=True)):
        if one.scheme == NONE or (cosine := _sample_of(seen)) is None:
            continue
        lost = cosine < LADDER[rung(one.scheme)].cosine
        known[one.scheme] = tuple(dict.fromkeys((*known.get(one.scheme, ()), number))) if lost else ()
    held = set(state.schemes)
    return tuple(Astray(scheme, buckets) for scheme, buckets in known.items() if buckets and scheme in held)


def _sample_of(seen: Seen) -> float | None:
    return seen.cosine if seen.cosine is not None and math.isfinite(seen.cosine) else None


def _watched(one: Watched, seen: Seen, steps: int) -> Watched:
    if one.scheme == NONE:
        return one
    if (cosine := _sample_of(seen)) is not None:
        limit = LADDER[rung(one.scheme)].cosine
        n = one.cosine_n + 1 if (cosine < limit) == (one.cosine < limit) else 1
        one = replace(one, cosine=one.cosine + (cosine - one.cosine) / min(n, 4), cosine_n=n)
    if not (seen.gradient_norm > 0 and math.isfinite(seen.residual_norm) and math.isfinite(seen.gradient_norm)):
        return one
    n = one.ratio_n + steps
    ratio = one.ratio + (seen.residual_norm / seen.gradient_norm - one.ratio) * steps / n
    if n < _WINDOW:
        return replace(one, ratio=ratio, ratio_n=n)
    rises = one.rises + 1 if 0 < one.ratio_before * _RISE < ratio else 0
    return replace(one, ratio=0.0, ratio_n=0, ratio_before=ratio, rises=rises)


def coursed(course: Course, loss: float) -> Course:
    """The course with one more loss, if it is a number."""
    if not math.isfinite(loss):
        return course
    n = course.n + 1
    fast = course.fast + (loss - course.fast) / min(n, 8)
    slow = course.slow + (loss - course.slow) / min(n, 32)
    scatter = course.scatter + (abs(loss - slow) - course.scatter) / min(n, 64)
    best = slow if n <= _LEARNED else min(course.best, slow)
    high = course.high + 1 if n > _LEARNED and fast > best + _SCATTERS * scatter else 0
    return Course(fast=fast, slow=slow, best=best, scatter=scatter, n=n, high=high)


def trips(state: State, measured: Measured) -> list[Trip]:
    """What the guards find, at most one trip a bucket. The state has the step in it."""
    found: list[Trip] = []
    lossy = [number for number, one in enumerate(state.buckets) if one.scheme != NONE]
    for number in lossy:
        one, limits = state.buckets[number], LADDER[rung(state.buckets[number].scheme)]
        before = one.ratio_before
        if one.ratio_n >= _WINDOW // 2 and one.ratio > limits.ratio:
            found.append(
                Trip(
                    number,
                    "ResidualCeiling",
                    f"its residual is {one.ratio:.3g} times its gradient: {one.scheme} does not keep up",
                )
            )
        elif one.rises >= _RISES:
            found.append(
                Trip(
                    number,
                    "ResidualTrend",
                    f"its residual grew for {_RISES * _WINDOW} steps, to {before:.3g} times its gradient",
                )
            )
        elif one.cosine_n >= _COSINES and one.cosine < limits.cosine:
            found.append(
                Trip(number, "Direction", f"what {one.scheme} gives has a cosine of {one.cosine:.2f} to the true sum")
            )
    already = {trip.bucket for trip in found}
    for astray in state.astray:
        # One bucket may be special; so many one after the other are no chance, and there may be hundreds of it.
        if len(astray.buckets) >= _COSINES:
            where = ", ".join(map(str, astray.buckets))
            why = f"what {astray.scheme} gives has lost the direction of the true sum in buckets {where} in a row"
            holding = (n for n in lossy if state.buckets[n].scheme == astray.scheme and n not in already)
            found += [Trip(number, "Direction", why) for number in holding]
    if found:
        return found
    course = state.course
    if course.high >= _HIGH:
        why = f"the loss is {course.fast:.4g} after {course.best:.4g}"
        return [Trip(number, "LossRose", why) for number in lossy]
    return []


def sampled_bucket(state: State, step: int) -> int | None:
    """The bucket of which a part is summed as it is in `step`, too; None in most steps.

    Those that are compressed take turns. One whose last samples are of a lost direction, but too few, has every other
    turn, so that it is known soon whether it is this one's trouble or its scheme's.
    """
    turn, rest = divmod(step, LOOK_EVERY)
    lossy = [(number, one) for number, one in enumerate(state.buckets) if one.scheme != NONE]
    if rest or not lossy:
        return None
    doubted = [n for n, one in lossy if one.cosine < LADDER[rung(one.scheme)].cosine and one.cosine_n < _COSINES]
    if doubted and turn % 2:
        return doubted[0]
    return lossy[turn % len(lossy)][0]


def stepped_back(one: Watched, allowed: Sequence[str], step: int) -> Watched:
    """The bucket one scheme less lossy, and kept from the one it had for longer each time; `allowed` by rung."""
    below = [scheme for scheme in allowed if rung(scheme) < rung(one.scheme)]
    hold = min(_HOLD << min(one.trips, 10), _MOST_HOLD)
    scheme = max(below, key=rung, default=NONE)
    return Watched(scheme=scheme, ceiling=rung(scheme), until=step + hold, trips=one.trips + 1)
