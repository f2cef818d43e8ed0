"""How often the controller looks: not at every step any more once nothing changes, since looks cost all ranks time."""

from __future__ import annotations

from dataclasses import replace

from distroml.runtime.compress.control import guarding
from distroml.runtime.compress.control.estimating import LOOK_EVERY, PROBE_EVERY
from distroml.runtime.compress.control.model import NONE, State
from distroml.runtime.compress.control.proving import TELLING

# Without compression, steps on a link that becomes slow are the longest there are: none too many may pass unseen.
_LOOK_EVERY_PLAIN = 2
# What a change brings is watched closely for so long, and until it has shown what it promised.
_REST_AFTER = 24
# By then a doubt is probed so seldom that exchanges, which may see the link differently, speak in between.
_QUELLED = 3


def looks(state: State, step: int) -> bool:
    """Whether ranks share in `step` what the one before took; a doubt, a promise or a rising loss wants every step."""
    rests = (
        step >= state.from_step + _REST_AFTER
        and state.step_n >= TELLING
        # Doubts that came to nothing again and again need no haste.
        and (not state.doubt or state.quelled >= _QUELLED)
        and not state.course.high
        and state.step_before_s <= 0
    )
    if all(scheme == NONE for scheme in state.schemes):
        return not rests or step % _LOOK_EVERY_PLAIN == 0
    return not rests or step % LOOK_EVERY == 0 or step % PROBE_EVERY == 0


def times(state: State, step: int) -> bool:
    """Whether the exchanges of the step before `step` are to be timed; where nothing is doubted, a few are enough.

    Codes that could leave before all ranks are there wait for them then, which makes the step longer.
    """
    return looks(state, step) and (bool(state.doubt) or step % LOOK_EVERY == 0)


def passed(state: State, loss: float) -> State:
    """The state after a step at which nobody looked. Its loss counts all the same, which every rank knows anyway."""
    return replace(state, course=guarding.coursed(state.course, loss))
