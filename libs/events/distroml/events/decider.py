"""The pure core of an event-sourced domain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Generic, TypeVar

S = TypeVar("S")
C = TypeVar("C")
E = TypeVar("E")


class Rejection(Exception):
    """A command that the domain refuses; it leaves no trace in the log and is decided anew when sent again.

    Attributes:
        reason: machine-readable CamelCase constant, stable across releases.
        message: what, why, and what to do, for a person.
        metadata: the values behind the message, for a program.
    """

    def __init__(self, reason: str, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata: Mapping[str, str] = metadata

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


@dataclass(frozen=True, slots=True)
class Decider(Generic[S, C, E]):
    """`decide` and `evolve` of one kind of stream, and its first state.

    Attributes:
        initial: the state of a stream with no event.
        decide: (state, command) to events; raises `Rejection`; no events means there is nothing new to say.
        evolve: (state, event) to state; total over every event ever stored.
    """

    initial: S
    decide: Callable[[S, C], Sequence[E]]
    evolve: Callable[[S, E], S]

    def fold(self, events: Iterable[E], since: S | None = None) -> S:
        """The state after `events`, starting from `since` or from the beginning."""
        return reduce(self.evolve, events, self.initial if since is None else since)


@dataclass(frozen=True, slots=True)
class Given(Generic[S, C, E]):
    """Given/when/then for tests of a decider: `given(d, e1, e2).when(command).then(e3)`."""

    decider: Decider[S, C, E]
    history: tuple[E, ...]
    outcome: tuple[E, ...] | Rejection | None = field(default=None)

    def when(self, command: C) -> Given[S, C, E]:
        """Decide `command` on the state that the history folds to."""
        try:
            outcome: tuple[E, ...] | Rejection = tuple(self.decider.decide(self.decider.fold(self.history), command))
        except Rejection as rejection:
            outcome = rejection
        return Given(self.decider, self.history, outcome)

    def then(self, *events: E) -> None:
        """The command was accepted with exactly these events."""
        assert self.outcome == events, f"expected {events}, got {self.outcome!r}"

    def then_rejected(self, reason: str) -> None:
        """The command was refused for this reason."""
        assert isinstance(self.outcome, Rejection), f"expected a rejection, got {self.outcome}"
        assert self.outcome.reason == reason, f"expected {reason}, got {self.outcome}"

    @property
    def state(self) -> S:
        """The state after the history and, where the command was accepted, its events."""
        state = self.decider.fold(self.history)
        return self.decider.fold(self.outcome, since=state) if isinstance(self.outcome, tuple) else state


def given(decider: Decider[S, C, E], *history: E) -> Given[S, C, E]:
    """Start a given/when/then sentence."""
    return Given(decider, history)
