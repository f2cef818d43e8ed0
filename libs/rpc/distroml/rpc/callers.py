"""Who is calling: filled by the server's interceptor, read by whatever runs inside the call."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from distroml.events import Context, fresh_id
from distroml.observability import trace

ACTOR: Final = "distroml-actor"
PROJECT: Final = "distroml-project"
REQUEST_ID: Final = "distroml-request-id"
CORRELATION_ID: Final = "distroml-correlation-id"
TRACEPARENT: Final = "traceparent"
AUTHORIZATION: Final = "authorization"

DEFAULT_PROJECT: Final = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who is calling, and what the call belongs to.

    Attributes:
        actor: who asked, as far as the credentials tell.
        project: the project the call is about, `default` where it names none.
        request_id: the id of this call; the same again when the caller repeats it.
        traceparent: W3C trace context of the call's span; empty outside a trace.
        correlation_id: one id for everything that a user's request set off.
    """

    actor: str
    project: str
    request_id: str
    traceparent: str
    correlation_id: str

    def context(
        self, *, deployment: str, time_ms: int, causation_id: str = "", project: str = "", generation: int = 0
    ) -> Context:
        """The context of a commit that this call causes; its cause is the request where none is given."""
        return Context(
            deployment=deployment,
            project=project or self.project,
            actor=self.actor,
            causation_id=causation_id or self.request_id,
            correlation_id=self.correlation_id,
            time_ms=time_ms,
            traceparent=self.traceparent,
            generation=generation,
        )


_caller: ContextVar[Caller | None] = ContextVar("distroml_caller", default=None)
_deadline: ContextVar[float | None] = ContextVar("distroml_deadline", default=None)


def caller() -> Caller:
    """Who is calling now.

    Outside a call (a reactor, a cycle) it is the service itself: actor `system`, with a fresh request id.
    """
    found = _caller.get()
    return system_caller() if found is None else found


def system_caller(*, actor: str = "system", project: str = DEFAULT_PROJECT, correlation_id: str = "") -> Caller:
    """The service acting of itself."""
    request_id = fresh_id("req")
    context = trace.current()
    return Caller(
        actor=actor,
        project=project,
        request_id=request_id,
        traceparent=context.traceparent if context else "",
        correlation_id=correlation_id or request_id,
    )


@contextmanager
def calling(caller: Caller, deadline_s: float | None = None) -> Generator[None]:
    """Everything inside is done for `caller`, which waits `deadline_s` more (None: for ever)."""
    who = _caller.set(caller)
    until = _deadline.set(None if deadline_s is None else time.monotonic() + deadline_s)
    try:
        yield
    finally:
        _deadline.reset(until)
        _caller.reset(who)


def in_call() -> Caller | None:
    """Who is calling now, None outside a call."""
    return _caller.get()


def time_left_s() -> float | None:
    """How long the caller still waits, never below zero; None outside a call or without a deadline."""
    deadline = _deadline.get()
    return None if deadline is None else max(0.0, deadline - time.monotonic())
