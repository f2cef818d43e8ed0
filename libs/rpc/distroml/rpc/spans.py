"""Spans of calls and of consumed events, by OpenTelemetry's semantic conventions."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from grpc import StatusCode
from grpc.aio import AbortError, AioRpcError
from opentelemetry.trace import Span

from distroml.events import Recorded
from distroml.observability import names, trace
from distroml.observability.tracing import SpanKind, Tracing
from distroml.rpc.errors import problem_of

# Any other code is an answer: the caller asked for what cannot be.
_SERVERS_FAULT: Final = frozenset(
    {
        StatusCode.UNKNOWN,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.UNIMPLEMENTED,
        StatusCode.INTERNAL,
        StatusCode.UNAVAILABLE,
        StatusCode.DATA_LOSS,
    }
)


def attributes_of(method: str) -> dict[str, str]:
    """What a call is, from `/package.Service/Method`."""
    service, _, name = method.removeprefix("/").rpartition("/")
    return {names.SPAN_RPC_SYSTEM: "grpc", names.SPAN_RPC_SERVICE: service, names.SPAN_RPC_METHOD: name}


def is_servers_fault(error: Exception) -> bool:
    """Whether an exception makes the span of a served call a failed one."""
    return not isinstance(error, AbortError) and code_of(error) in _SERVERS_FAULT


@contextmanager
def status_noted(span: Span) -> Generator[None]:
    """The span says how the call inside it ended."""
    code = StatusCode.OK
    try:
        yield
    except Exception as error:
        code = code_of(error)
        raise
    finally:
        span.set_attribute(names.SPAN_RPC_STATUS, int(code.value[0]))


def code_of(error: Exception) -> StatusCode:
    """The status that an exception ends a call with, on either side of it."""
    if isinstance(error, AioRpcError):
        return error.code()
    problem = problem_of(error)
    return problem.code if problem is not None else StatusCode.INTERNAL


def processing(tracing: Tracing, consumer: str, recorded: Recorded) -> AbstractContextManager[Span]:
    """Around what a reactor does about an event, under the span that wrote it."""
    return tracing.span(
        f"{names.SPAN_PROCESS} {consumer}",
        kind=SpanKind.CONSUMER,
        parent=trace.parse(recorded.context.traceparent),
        attributes={
            names.SPAN_MESSAGING_SYSTEM: "distroml",
            names.SPAN_MESSAGING_OPERATION: "process",
            names.SPAN_MESSAGING_DESTINATION: recorded.stream.rpartition("/")[0],
            names.SPAN_MESSAGING_CONSUMER: consumer,
            names.SPAN_MESSAGING_ID: recorded.id,
            names.SPAN_EVENT: recorded.type,
            names.SPAN_JOB: recorded.stream.rpartition("/")[2],
        },
    )
