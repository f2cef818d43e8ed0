"""The server's interceptor: who calls, how long they wait, what goes wrong, how long it took."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
import grpc.aio as aio
from google.protobuf.message import DecodeError
from grpc import StatusCode
from opentelemetry.trace import SpanKind

from distroml.events import fresh_id
from distroml.observability import bound, logger, names, trace
from distroml.observability.metrics import gauge, histogram
from distroml.observability.tracing import Tracing
from distroml.rpc import callers, spans, status
from distroml.rpc.callers import Caller
from distroml.rpc.errors import InvalidArgument, Problem, Unauthenticated, Unavailable, problem_of

log = logger(__name__)

UNARY_DEADLINE_S: Final = 30.0
"""How long a service works on a unary call whose caller set no deadline, seconds."""

_PUBLIC: Final = "/grpc.health.v1.Health/"
_MAX_METADATA_CHARS: Final = 256
_REFUSAL_LOG_INTERVAL_S: Final = 1.0

_DURATION = histogram(
    names.RPC_SERVER_DURATION,
    "Seconds until a call was answered or a stream ended, by outcome.",
    (names.LABEL_METHOD, names.LABEL_CODE),
)
_IN_FLIGHT = gauge(names.RPC_SERVER_IN_FLIGHT, "Calls that run now.", (names.LABEL_METHOD,))

# Generic in the stubs only.
if TYPE_CHECKING:
    _Context = aio.ServicerContext[Any, Any]
    _Handler = grpc.RpcMethodHandler[Any, Any]
    _InterceptorBase = aio.ServerInterceptor[Any, Any]
else:
    _Context = aio.ServicerContext
    _Handler = grpc.RpcMethodHandler
    _InterceptorBase = aio.ServerInterceptor

_Behavior = Callable[[Any, _Context], Any]

_Parse = Callable[[bytes], Any]
_grpc: Any = grpc


class Calls(_InterceptorBase):
    """Every call of a server passes here.

    It checks the token, fills `distroml.rpc.caller()`, bounds unary calls in time, turns exceptions into statuses by
    the one table, and measures. Health checks need no token: they say nothing about anybody.
    """

    def __init__(self, token: str, tracing: Tracing) -> None:
        self._authorization = f"Bearer {token}".encode()
        self._tracing = tracing
        self._wrapped: dict[str, _Handler] = {}
        self._streams: set[asyncio.Task[Any]] = set()
        self._cut: set[asyncio.Task[Any]] = set()
        self._refusal_logged_at = float("-inf")

    @property
    def open_streams(self) -> int:
        """How many streams from this server run now."""
        return len(self._streams)

    def cut_streams(self) -> None:
        """End every open stream with `Unavailable`, so that callers dial another replica or wait for the next."""
        for task in self._streams - self._cut:
            self._cut.add(task)
            task.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """The method's handler, wrapped; None where there is no such method."""
        method = handler_call_details.method
        if (wrapped := self._wrapped.get(method)) is None:
            handler = cast("_Handler | None", await continuation(handler_call_details))
            if handler is None:
                return cast(_Handler, None)
            wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Any) -> _Handler:
        # Requests are parsed here, after the token check: whoever sends noise is told so, and fills no log.
        parse, made = handler.request_deserializer, handler.response_serializer
        if handler.request_streaming and handler.response_streaming:
            return _grpc.stream_stream_rpc_method_handler(
                self._streaming(method, _reading(handler.stream_stream, parse), None), None, made
            )
        if handler.response_streaming:
            return _grpc.unary_stream_rpc_method_handler(
                self._streaming(method, handler.unary_stream, parse), None, made
            )
        if handler.request_streaming:
            # An upload takes as long as its bytes do.
            return _grpc.stream_unary_rpc_method_handler(
                self._unary(method, _reading(handler.stream_unary, parse), None, None), None, made
            )
        return _grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary, parse, UNARY_DEADLINE_S), None, made
        )

    def _unary(self, method: str, behavior: _Behavior, parse: _Parse | None, default_s: float | None) -> _Behavior:
        async def call(request: Any, context: _Context) -> Any:
            async def work() -> Any:
                # A caller's own deadline is kept by gRPC.
                has_deadline = context.time_remaining() is not cast(float, None)
                async with asyncio.timeout(None if has_deadline else default_s):
                    return await behavior(_parsed(request, parse), context)

            return await self._answer(method, context, work, traced=True)

        return call

    def _streaming(self, method: str, behavior: _Behavior, parse: _Parse | None) -> _Behavior:
        # One coroutine that writes, not a generator: whatever ends the call, it ends here, in the call's own task.
        async def call(request: Any, context: _Context) -> None:
            task = cast("asyncio.Task[Any]", asyncio.current_task())

            async def work() -> None:
                try:
                    await _write_all(behavior(_parsed(request, parse), context), context)
                except asyncio.CancelledError:
                    if task not in self._cut:
                        raise
                    task.uncancel()
                    raise Unavailable("Draining", "the service is going down; call again") from None

            self._streams.add(task)
            try:
                # A stream lasts as long as an agent does: what happens in it has spans, the stream has none.
                await self._answer(method, context, work, traced=False)
            finally:
                self._streams.discard(task)
                self._cut.discard(task)

        return call

    async def _answer(self, method: str, context: _Context, work: Callable[[], Awaitable[Any]], *, traced: bool) -> Any:
        started, code = time.perf_counter(), StatusCode.CANCELLED.name
        _IN_FLIGHT.labels(method).inc()
        try:
            metadata = _metadata(context)
            self._check_token(method, metadata)
            caller = _read_caller(metadata)
            with self._serving(method, caller, context.time_remaining(), traced and not method.startswith(_PUBLIC)):
                answer = await work()
            code = _code_name(context)
            return answer
        except aio.AbortError:
            # The servicer speaks gRPC itself, and has said it.
            code = _code_name(context)
            raise
        except Exception as error:
            problem = problem_of(error) or _unforeseen(error)
            code = problem.code.name
            message, details = status.encode(problem)
            await context.abort(problem.code, message, (details,))
        finally:
            _IN_FLIGHT.labels(method).dec()
            _DURATION.labels(method, code).observe(time.perf_counter() - started)

    def _check_token(self, method: str, metadata: Mapping[str, str]) -> None:
        given = metadata.get(callers.AUTHORIZATION, "").encode()
        if hmac.compare_digest(given, self._authorization) or method.startswith(_PUBLIC):
            return
        now = time.monotonic()
        if now - self._refusal_logged_at > _REFUSAL_LOG_INTERVAL_S:
            self._refusal_logged_at = now
            log.warning("refused a call without the right token", method=method)
        raise Unauthenticated(
            "WrongToken",
            "the call carries no token, or one of another deployment; "
            "use the data folder of the control plane that you talk to (--data or DISTROML_DATA), or its token "
            "(DISTROML_TOKEN_FILE)",
        )

    @contextmanager
    def _serving(self, method: str, caller: Caller, deadline_s: float | None, traced: bool) -> Generator[None]:
        """Everything inside happens for `caller`, in its trace; with a span of its own where the call is `traced`."""
        above = trace.parse(caller.traceparent)
        with (
            self._span(method, caller, above) if traced else trace.use(above),
            bound(**{names.REQUEST_ID: caller.request_id}),
        ):
            here = trace.current()
            who = replace(caller, traceparent=here.traceparent if here else "")
            with callers.calling(who, deadline_s):
                try:
                    yield
                except Exception as error:
                    # Here, where the line still gets the ids of the call.
                    if not isinstance(error, aio.AbortError) and problem_of(error) is None:
                        log.exception("a call failed in a way that nobody foresaw", method=method.removeprefix("/"))
                    raise

    @contextmanager
    def _span(self, method: str, caller: Caller, above: trace.TraceContext | None) -> Generator[None]:
        attributes = spans.attributes_of(method) | {names.SPAN_ACTOR: caller.actor}
        name = method.removeprefix("/")
        with (
            trace.use(None),
            self._tracing.span(
                name, kind=SpanKind.SERVER, parent=above, attributes=attributes, fails=spans.is_servers_fault
            ) as span,
            spans.status_noted(span),
        ):
            yield


def _parsed(request: Any, parse: _Parse | None) -> Any:
    if parse is None:
        return request
    try:
        return parse(request)
    except DecodeError as error:
        raise InvalidArgument([("", f"the request cannot be read: {error}")], reason="Garbled") from None


def _reading(behavior: _Behavior, parse: _Parse) -> _Behavior:
    """`behavior` on a stream of requests that come unparsed."""

    async def parsed(requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for request in requests:
            yield _parsed(request, parse)

    return lambda requests, context: behavior(parsed(requests), context)


def _unforeseen(error: Exception) -> Problem:
    text = f"the service failed while answering ({type(error).__name__}); this is a defect: its log has the trace"
    return Problem(StatusCode.INTERNAL, "Unexpected", text)


def _code_name(context: _Context) -> str:
    code = cast("StatusCode | int | None", context.code())
    return code.name if isinstance(code, StatusCode) else str(code) if code else StatusCode.OK.name


def _metadata(context: _Context) -> dict[str, str]:
    pairs = cast("Sequence[tuple[str, str | bytes]]", context.invocation_metadata() or ())
    return {key: value for key, value in pairs if isinstance(value, str)}


def _read_caller(metadata: Mapping[str, str]) -> Caller:
    wrong = [
        (key, f"is longer than {_MAX_METADATA_CHARS} characters")
        for key in (callers.ACTOR, callers.PROJECT, callers.REQUEST_ID, callers.CORRELATION_ID)
        if len(metadata.get(key, "")) > _MAX_METADATA_CHARS
    ]
    if wrong:
        raise InvalidArgument(wrong, reason="WrongMetadata")
    request_id = metadata.get(callers.REQUEST_ID) or fresh_id("req")
    return Caller(
        actor=metadata.get(callers.ACTOR) or "unknown",
        project=metadata.get(callers.PROJECT) or callers.DEFAULT_PROJECT,
        request_id=request_id,
        traceparent=metadata.get(callers.TRACEPARENT, ""),
        correlation_id=metadata.get(callers.CORRELATION_ID) or request_id,
    )


async def _write_all(outcome: Any, context: _Context) -> None:
    """Send what the servicer yields; one that writes to the context itself is only awaited."""
    if not isinstance(outcome, AsyncIterator):
        await outcome
        return
    answers = cast("AsyncIterator[Any]", outcome)
    try:
        async for answer in answers:
            await context.write(answer)
    finally:
        if (close := getattr(answers, "aclose", None)) is not None:
            await close()
