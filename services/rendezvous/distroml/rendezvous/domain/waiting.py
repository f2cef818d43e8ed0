"""What a job waits for, for how long at most, and the quorum: pure policies.

Nobody keeps a deadline in the stored state: a judge measures on its own monotonic clock how long it has seen the
job wait for the same thing, and asks with `Tick`. After a restart of the judge everybody has the full time again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from distroml.rendezvous.domain.model import Phase, Rendezvous

LEFT_GRACE_MS = 5_000
"""How long workers may have left a formed generation before it counts as broken.

Survivors of a lost worker notice at once; this is the time for the report that says what it died of.
"""

STOP_GRACE_MS = 120_000
"""How long part of a formed generation may be stopped while the rest goes on."""

DRAIN_GRACE_MS = 120_000
"""How long workers may take to save and leave a generation that drains."""


class Wait(StrEnum):
    """What a job waits for."""

    GATHER = "gather"
    LEFT = "left"
    STOP = "stop"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class Waiting:
    """The wait for `kind` in generation `number`; another value is another wait, measured from its beginning."""

    kind: Wait
    number: int


def waiting(state: Rendezvous) -> Waiting | None:
    """What the job waits for now, None where nothing but a message can move it."""
    if state.phase is Phase.OPENING:
        return Waiting(Wait.GATHER, state.number)
    if (formed := state.current) is None:
        return None
    if state.drain is not None:
        return Waiting(Wait.DRAIN, formed.number)
    if state.stopping:
        return Waiting(Wait.STOP, formed.number)
    left = any(node in state.joined and state.joined[node].ready for node in formed.nodes)
    return Waiting(Wait.LEFT, formed.number) if left else None


def limit_ms(state: Rendezvous) -> int | None:
    """After how many milliseconds of the present wait a `Tick` decides something; None where nothing is waited for."""
    if (wait := waiting(state)) is None:
        return None
    match wait.kind:
        case Wait.GATHER:
            return gathering(state, 0).again_ms
        case Wait.LEFT:
            return LEFT_GRACE_MS
        case Wait.STOP:
            return STOP_GRACE_MS
        case Wait.DRAIN:
            return DRAIN_GRACE_MS


class Decision(StrEnum):
    """What a quorum says."""

    FORM = "form"
    WAIT = "wait"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision with its reason in words; `again_ms` is the wait after which it would be another one."""

    decision: Decision
    reason: str
    again_ms: int


def quorum(waited_ms: int, *, ready: int, expected: int, min_workers: int, timeout_ms: int) -> Verdict:
    """Whether `ready` workers may form a generation after `waited_ms`.

    The whole gang forms at once. After `timeout_ms` as many as are ready form, if they are `min_workers`. After
    twice that time fewer give up.
    """
    have = f"{ready} of {expected} workers are ready"
    if ready >= expected:
        return Verdict(Decision.FORM, f"all {expected} workers are ready", 0)
    if ready >= min_workers:
        if waited_ms >= timeout_ms:
            late = f"{have} after {_seconds(timeout_ms)}, and {min_workers} may start"
            return Verdict(Decision.FORM, late, timeout_ms)
        stragglers = f"{have}; waits for the others until {_seconds(timeout_ms)} have passed"
        return Verdict(Decision.WAIT, stragglers, timeout_ms)
    if waited_ms >= 2 * timeout_ms:
        few = f"{have} after {_seconds(2 * timeout_ms)}, and fewer than {min_workers} may not start"
        return Verdict(Decision.GIVE_UP, few, 2 * timeout_ms)
    return Verdict(Decision.WAIT, f"{have}; waits for at least {min_workers}", 2 * timeout_ms)


def gathering(state: Rendezvous, waited_ms: int) -> Verdict:
    """The quorum's verdict on an opening generation."""
    return quorum(
        waited_ms,
        ready=sum(len(node.workers) for node in state.ready.values()),
        expected=state.workers_expected,
        min_workers=state.min_workers,
        timeout_ms=state.join_timeout_s * 1000,
    )


def _seconds(ms: int) -> str:
    return f"{ms / 1000:g} s"
