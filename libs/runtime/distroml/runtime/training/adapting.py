"""The controller at work: it asks the exchange, decides alike on every rank, sets schemes; one rank tells of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import msgspec

from distroml.runtime.compress.control import (
    NONE,
    PROBE_BYTES,
    Change,
    Link,
    Measured,
    Probe,
    Record,
    Replay,
    Seen,
    Setting,
    State,
    begun,
    decide,
    first,
    looks,
    passed,
    probe_bytes,
    sampled_bucket,
    times,
    with_changes,
)
from distroml.runtime.parallel.buffers import Took
from distroml.runtime.training.telling import numbers_text, told
from distroml.workerlink import SchemeChanged

log = logging.getLogger("distroml.runtime.train")

_SMALL_BYTES = 64
_PROBES = 3
# A probe that takes so long says what the link does: beside it, what a rate limiter lets through at once and what a
# busy processor makes a message wait are little. One of a tenth of a second says it once and for all.
_TELLING_S, _SURE_S = 0.02, 0.1
_LARGER = 4


class SeenBucket(Protocol):
    """What an exchange says of one bucket after a step; seconds are of the step before."""

    @property
    def gradient_norm(self) -> float:
        """Of all ranks' gradients."""
        ...

    @property
    def residual_norm(self) -> float:
        """Of what all ranks keep, in the same units."""
        ...

    @property
    def took(self) -> Took:
        """Its seconds, each on the rank that it took least."""
        ...

    @property
    def cosine(self) -> float | None:
        """Of what came out to the plain sum, where that was sampled."""
        ...


class Answer(Protocol):
    """What was asked of all ranks."""

    @property
    def probed_bytes(self) -> int:
        """That one rank sent in the probe; 0 where there was none."""
        ...

    def wait(self) -> tuple[list[float], float]:
        """The least of any rank, and the seconds of the probe."""
        ...


class Adaptable(Protocol):
    """What the controller needs of an exchange. Every rank makes the same calls."""

    def set_timed(self, timed: bool) -> None:
        """Whether what exchanges take in the step that is opened next is to tell of the link."""
        ...

    def set_sampled(self, bucket: int | None) -> None:
        """Of which bucket a part is summed as it is, too, in the step that is opened next, for the cosine to it."""
        ...

    def ask(self, values: Sequence[float], *, probe_bytes: int = 0) -> Answer:
        """Begin to make `values` the least of any rank, and to time a dense sum of `probe_bytes`."""
        ...

    def measured(self) -> Sequence[SeenBucket]:
        """What the last step's exchanges came to, by bucket, the same on every rank."""
        ...


SetScheme = Callable[[int, str, int], None]
"""Exchange a bucket by the scheme of that name from a step on."""
Tell = Callable[[SchemeChanged], None]


def probe_link(exchange: Adaptable, largest_bytes: int) -> Link:
    """What the link does before step 1: latency by small messages, speed by large ones, the best of a few. Collective.

    They grow until one takes long enough to tell, up to `largest_bytes`, which no exchange has more of; only those of
    that size are repeated.

    Raises:
        PeerLost: another rank is gone.
    """
    latency_s = min(_probed(exchange, _SMALL_BYTES)[0] for _ in range(_PROBES))
    size = PROBE_BYTES
    best_s, sent = _probed(exchange, size)
    while best_s < _TELLING_S and _LARGER * size <= largest_bytes:
        size *= _LARGER
        best_s, sent = _probed(exchange, size)
    for _ in range(1, _PROBES):
        if best_s > _SURE_S:
            break
        best_s = min(best_s, _probed(exchange, size)[0])
    return Link(latency_s, max(best_s - latency_s, best_s / 10) / max(sent, 1))


def _probed(exchange: Adaptable, size: int) -> tuple[float, int]:
    """Seconds of one probe, and the bytes that one rank sent in it."""
    asked = exchange.ask([], probe_bytes=size)
    return asked.wait()[1], asked.probed_bytes


class Adapting:
    """One generation's controller on one rank. Steps that are made again use the changes `recorded` of them.

    Args:
        exchange: that is measured.
        set_scheme: of the exchange.
        setting: the buckets and what may be chosen.
        recorded: of the whole training so far, kept over generations; grows here.
        plan: of this generation, which tells whether what was recorded of the first steps is of a world like this one.
        tell: how the rank that leads its place speaks of changes; None on other ranks.
        generation: that is told.
        keep: how that rank keeps what is recorded for processes that come after this one; None on other ranks.
        place: of these ranks, as `place_of` names it.
    """

    def __init__(
        self,
        exchange: Adaptable,
        set_scheme: SetScheme,
        setting: Setting,
        recorded: Record,
        plan: str,
        tell: Tell | None,
        generation: int,
        keep: Callable[[Record], None] | None = None,
        place: str = "",
    ) -> None:
        self._exchange = exchange
        self._set_scheme = set_scheme
        self._setting = setting
        self._recorded = recorded
        self._plan = plan
        self._tell = tell
        self._generation = generation
        self._keep = keep
        self._place = place
        self._state: State | None = None
        self._replay = Replay(())
        self._asked: Answer | None = None
        self._step_s = 0.0
        self._loss = math.nan

    def start(self, step: int, kept: str, compute_s: Callable[[], float]) -> None:
        """Choose what holds from the first step after `step` on. Collective.

        Args:
            step: the last one that was made; 0 for none.
            kept: what `keep` gave then; empty for nothing.
            compute_s: measures about what a step's computing takes, equal on all ranks; it is not asked where that
                is kept. Collective.
        """
        state = self._restored(kept)
        self._recorded.generation = self._generation
        if state is None:
            state, changes = self._begun(step, compute_s)
        else:
            why = f"as it was after step {step}"
            changes = tuple(
                Change(number, NONE, scheme, "Resumed", why, step + 1)
                for number, scheme in enumerate(state.schemes)
                if scheme != NONE
            )
        later = (change for change in self._recorded.changes if change.from_step > step + 1)
        self._replay = Replay(state.schemes, later)
        self._state = replace(state, from_step=max(state.from_step, step + 1))
        self._apply(changes)

    def _begun(self, step: int, compute_s: Callable[[], float]) -> tuple[State, Sequence[Change]]:
        """What a controller without a past begins with after `step`, and the changes that this takes. Collective."""
        link, recorded = probe_link(self._exchange, self._setting.largest_bytes), self._recorded
        again = recorded.first(self._plan, self._setting) if not step else None
        state = first(self._setting, link, compute_s(), again)
        if again is not None:
            return state, [change for change in recorded.changes if change.from_step == 1]
        # What was recorded beyond the checkpoint belongs to a controller that is gone.
        recorded.changes[:] = [change for change in recorded.changes if change.from_step <= step]
        if not step:
            recorded.plan = self._plan
        changes = [replace(change, from_step=step + 1) for change in begun(state)]
        recorded.changes += changes
        # Also that there are none, which is as good as others where these steps are made again.
        self._write()
        return state, changes

    def fits(self, kept: str) -> bool:
        """Whether `start` would go on from what was `kept`, and not begin anew."""
        return self._restored(kept) is not None

    def _restored(self, kept: str) -> State | None:
        """The state of a checkpoint, where it is of the same buckets and offers."""
        if not kept:
            return None
        try:
            state = msgspec.json.decode(kept, type=State)
        except msgspec.MsgspecError as error:
            log.warning("what the controller of compression kept cannot be read, it begins anew: %s", error)
            return None
        offered = [{offer.scheme for offer in bucket.offers} for bucket in self._setting.buckets]
        fits = len(state.buckets) == len(offered)
        return state if fits and all(s in o for s, o in zip(state.schemes, offered, strict=True)) else None

    def keep(self) -> str:
        """The controller's state for a checkpoint; as small as a few lines."""
        return msgspec.json.encode(self._state).decode() if self._state is not None else ""

    def begin(self, step: int) -> None:
        """A step begins: where it is looked at, what the one before took is shared, and the link probed when due."""
        assert self._state is not None
        self._exchange.set_timed(times(self._state, step + 1))
        if not looks(self._state, step):
            return
        self._exchange.set_sampled(sampled_bucket(self._state, step))
        probe = probe_bytes(self._setting, self._state, step)
        self._asked = self._exchange.ask([self._step_s], probe_bytes=probe)

    def end(self, step: int) -> None:
        """The step's exchanges are over: decide, and set what changes."""
        asked, self._asked = self._asked, None
        if self._state is None:
            return
        measured = self._measured(step, asked) if asked is not None else None
        if again := self._replay.at(step + 1):
            self._state = with_changes(self._state, again)
            self._apply(again)
        elif measured is None:
            self._state = passed(self._state, self._loss)
        elif step >= self._replay.last_step:
            self._state, changes = decide(self._setting, self._state, measured)
            self._record(changes)
            self._apply(changes)

    def _measured(self, step: int, asked: Answer) -> Measured:
        (step_s,), probed_s = asked.wait()
        seen = tuple(
            Seen(
                one.took.wire_s,
                one.took.waited_s,
                one.residual_norm,
                one.gradient_norm,
                one.cosine,
                one.took.coded_s,
                one.took.latency_s,
            )
            for one in self._exchange.measured()
        )
        probe = Probe(asked.probed_bytes, probed_s) if asked.probed_bytes else None
        # The seconds are those of the step before.
        return Measured(step - 1, step_s, self._loss, seen, probe)

    def note(self, step_s: float, loss: float) -> None:
        """A finished step took `step_s` on this rank."""
        self._step_s, self._loss = step_s, loss

    @property
    def schemes(self) -> tuple[str, ...]:
        """The buckets' schemes, as they were decided last."""
        return self._state.schemes if self._state is not None else ()

    def _record(self, changes: Sequence[Change]) -> None:
        if changes:
            self._recorded.changes += changes
            self._write()

    def _write(self) -> None:
        if self._keep is not None:
            self._keep(self._recorded)

    def _apply(self, changes: Sequence[Change]) -> None:
        for change in changes:
            self._set_scheme(change.bucket, change.to_scheme, change.from_step)
        if self._tell is None:
            return
        of = f"{self._place}: " if self._place else ""
        for one in told(changes, self._generation, self._place):
            buckets = numbers_text(one.buckets)
            way = (one.from_step, one.to_scheme, one.from_scheme, one.why)
            log.info("%s%s from step %d: %s instead of %s (%s)", of, buckets, *way)
            self._tell(one)
