"""Channels to services: authenticated, bounded in time and size, and quick to find a restarted peer again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import grpc.aio as aio
from grpc.aio import AioRpcError, ClientCallDetails, Metadata

from distroml.events import fresh_id
from distroml.observability import names, trace
from distroml.rpc import callers, status
from distroml.rpc.errors import RemoteError

if TYPE_CHECKING:
    from distroml.observability.tracing import Tracing

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
UNARY_DEADLINE_S: Final = 10.0
UPLOAD_DEADLINE_S: Final = 300.0

Option = tuple[str, int | str]

CLIENT_OPTIONS: Final[tuple[Option, ...]] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A stopped peer (SIGSTOP, a pulled cable) is noticed on a quiet stream too.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A restarted peer is found within two seconds; gRPC's own back-off goes up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # The control plane is never behind the user's web proxy.
    ("grpc.enable_http_proxy", 0),
)

Request = TypeVar("Request")
Response = TypeVar("Response")


def connect(
    endpoint: str,
    token: str,
    *,
    actor: str = "",
    project: str = "",
    deadline_s: float = UNARY_DEADLINE_S,
    options: Sequence[Option] = (),
    tracing: Tracing | None = None,
) -> aio.Channel:
    """A channel to the service at `endpoint` (`host:port`); it dials when first used, and again when it is lost.

    Every call carries the token, the actor and project (of the call being served, where there is one), a request id
    and the trace context; with `tracing`, a unary call has a span, a stream none. A unary call without a timeout gets
    `deadline_s`, an upload `UPLOAD_DEADLINE_S`, never more than the call being served has left; streams from the server
    are not limited. Every failure is a `RemoteError`.

    The channel belongs to the running event loop; make it after a fork.
    """
    shared = _Shared(endpoint, token, actor, project, deadline_s, tracing)
    interceptors = [_UnaryUnary(shared), _UnaryStream(shared), _StreamUnary(shared), _StreamStream(shared)]
    return aio.insecure_channel(endpoint, options=[*CLIENT_OPTIONS, *options], interceptors=cast(Any, interceptors))


class _Shared:
    """What the four kinds of interceptors have in common."""

    def __init__(
        self, endpoint: str, token: str, actor: str, project: str, deadline_s: float, tracing: Tracing | None
    ) -> None:
        self._endpoint, self._actor, self._project = endpoint, actor, project
        self._tracing = tracing
        self._authorization = f"Bearer {token}"
        self.deadline_s = deadline_s

    def details(self, details: ClientCallDetails, default_s: float | None) -> ClientCallDetails:
        """The call's details with our metadata and, where it has no timeout, the default one."""
        metadata = Metadata(*(details.metadata or ()))
        for key, value in self._metadata():
            if value and key not in metadata:
                metadata.add(key, value)
        timeout = details.timeout
        if timeout is None and default_s is not None:
            left = callers.time_left_s()
            timeout = default_s if left is None else min(default_s, left)
        return ClientCallDetails(details.method, timeout, metadata, details.credentials, details.wait_for_ready)

    def _metadata(self) -> list[tuple[str, str]]:
        serving = callers.in_call()
        span = trace.current()
        return [
            (callers.AUTHORIZATION, self._authorization),
            (callers.ACTOR, self._actor or (serving.actor if serving else "")),
            (callers.PROJECT, self._project or (serving.project if serving else "")),
            (callers.REQUEST_ID, fresh_id("req")),
            (callers.CORRELATION_ID, serving.correlation_id if serving else ""),
            (callers.TRACEPARENT, span.traceparent if span else ""),
        ]

    def span(self, method: str | bytes) -> AbstractContextManager[object]:
        """Around one call: in a span of its own where this process has any."""
        if self._tracing is None:
            return nullcontext()
        return _span(self._tracing, method if isinstance(method, str) else method.decode(), self._endpoint)

    def error(self, error: AioRpcError) -> RemoteError:
        return status.decode(error, self._endpoint)

    async def awaited(self, call: Awaitable[Response]) -> Response:
        """The call's answer, its failure in our words."""
        try:
            return await call
        except AioRpcError as error:
            raise self.error(error) from None

    async def iterated(self, call: AsyncIterable[Response]) -> AsyncGenerator[Response]:
        """The call's answers, its failure in our words."""
        try:
            async for response in call:
                yield response
        except AioRpcError as error:
            raise self.error(error) from None


@contextmanager
def _span(tracing: Tracing, method: str, endpoint: str) -> Generator[None]:
    # Here and not above: a command line without spans loads no SDK.
    from opentelemetry.trace import SpanKind

    from distroml.rpc import spans

    host, _, port = endpoint.rpartition(":")
    attributes = {
        **spans.attributes_of(method),
        names.SPAN_SERVER_ADDRESS: host,
        **({names.SPAN_SERVER_PORT: int(port)} if port.isdigit() else {}),
    }
    with (
        tracing.span(method.removeprefix("/"), kind=SpanKind.CLIENT, attributes=attributes) as span,
        spans.status_noted(span),
    ):
        yield


# Generic in the stubs only.
if TYPE_CHECKING:
    _UnaryUnaryBase = aio.UnaryUnaryClientInterceptor[Any, Any]
    _UnaryStreamBase = aio.UnaryStreamClientInterceptor[Any, Any]
    _StreamUnaryBase = aio.StreamUnaryClientInterceptor[Any, Any]
    _StreamStreamBase = aio.StreamStreamClientInterceptor[Any, Any]
else:
    _UnaryUnaryBase = aio.UnaryUnaryClientInterceptor
    _UnaryStreamBase = aio.UnaryStreamClientInterceptor
    _StreamUnaryBase = aio.StreamUnaryClientInterceptor
    _StreamStreamBase = aio.StreamStreamClientInterceptor

# The stubs give the continuation no awaitable result, though gRPC awaits it: hence Any for it.
_Continuation = Callable[[ClientCallDetails, Any], Awaitable[Any]]


class _UnaryUnary(_UnaryUnaryBase):
    def __init__(self, shared: _Shared) -> None:
        self._shared = shared

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request: Any
    ) -> Any:
        with self._shared.span(client_call_details.method):
            details = self._shared.details(client_call_details, self._shared.deadline_s)
            call = await cast(_Continuation, continuation)(details, request)
            return await self._shared.awaited(call)


class _UnaryStream(_UnaryStreamBase):
    def __init__(self, shared: _Shared) -> None:
        self._shared = shared

    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request: Any
    ) -> Any:
        call = await cast(_Continuation, continuation)(self._shared.details(client_call_details, None), request)
        return self._shared.iterated(call)


class _StreamUnary(_StreamUnaryBase):
    def __init__(self, shared: _Shared) -> None:
        self._shared = shared

    async def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request_iterator: Any
    ) -> Any:
        details = self._shared.details(client_call_details, UPLOAD_DEADLINE_S)
        return _Upload(await cast(_Continuation, continuation)(details, request_iterator), self._shared)


class _Upload:
    """A call whose answer is awaited by its owner; gRPC expects everything else of it too."""

    def __init__(self, call: Any, shared: _Shared) -> None:
        self._call, self._shared = call, shared

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._shared.awaited(self._call).__await__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


class _StreamStream(_StreamStreamBase):
    def __init__(self, shared: _Shared) -> None:
        self._shared = shared

    async def intercept_stream_stream(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request_iterator: Any
    ) -> Any:
        details = self._shared.details(client_call_details, None)
        call = await cast(_Continuation, continuation)(details, request_iterator)
        return self._shared.iterated(call)
