"""The members of a cluster as one client sees them: a channel each, and which of them is spoken to now.

A member is used only once it has said that it is an etcd we know; after a failure it has to say so again, for it may
have come back as something else.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import grpc.aio as aio

from distroml.statestore.etcd import wire
from distroml.statestore.etcd.messages import (
    AUTHENTICATE,
    STATUS,
    AuthenticateRequest,
    Method,
    Request,
    Response,
    StatusRequest,
)
from distroml.statestore.etcd.settings import EtcdSettings, target
from distroml.statestore.port import StateStoreDown

MINIMUM_VERSION = (3, 5)

# etcd cuts off clients that ping more often than every 5 s; a peer that is gone without a word is noticed by this.
_KEEPALIVE_S, _KEEPALIVE_TIMEOUT_S = 10, 3
_RECONNECT_MIN_MS, _RECONNECT_MAX_MS = 50, 1000
_OPTIONS = (
    ("grpc.keepalive_time_ms", _KEEPALIVE_S * 1000),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_S * 1000),
    ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_S * 1000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MIN_MS),
    ("grpc.min_reconnect_backoff_ms", _RECONNECT_MIN_MS),
    ("grpc.max_reconnect_backoff_ms", _RECONNECT_MAX_MS),
    # A listing is as large as what is listed; what may be written is bounded by etcd.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Two clients of one process may have different credentials: connections are not shared.
    ("grpc.use_local_subchannel_pool", 1),
)
_REQUIRE_LEADER = ("hasleader", "true")


class Member:
    """One endpoint and the channel to it."""

    def __init__(self, url: str, settings: EtcdSettings) -> None:
        self.url = url
        self.checked = False
        self._closed = False
        self.checking = asyncio.Lock()
        self._calls: dict[str, Any] = {}
        # The stubs want serializers, which are optional and would get in our way.
        make = cast(Any, aio)
        if settings.tls:
            credentials = grpc.ssl_channel_credentials(settings.ca, settings.key, settings.certificate)
            self._channel = make.secure_channel(target(url), credentials, options=_OPTIONS)
        else:
            self._channel = make.insecure_channel(target(url), options=_OPTIONS)

    async def call(
        self, method: Method[Request, Response], request: Request, *, token: str, timeout_s: float
    ) -> Response:
        """Send one request and wait for its answer.

        Raises:
            aio.AioRpcError: it failed.
            ValueError: the answer is none of etcd's.
            StateStoreDown: the channel was closed meanwhile.
        """
        # Messages are encoded here, not by gRPC, which hides what goes wrong in there.
        try:
            return wire.decode(method.returns, await self._exchange(method, wire.encode(request), token, timeout_s))
        except (asyncio.CancelledError, aio.UsageError) as error:
            task = asyncio.current_task()
            if not self._closed or (task and task.cancelling()):
                raise
            raise StateStoreDown("the store is closed") from error

    async def _exchange(self, method: Method[Any, Any], data: bytes, token: str, timeout_s: float) -> bytes:
        if not method.streaming:
            if (call := self._calls.get(method.path)) is None:
                call = self._calls[method.path] = self._channel.unary_unary(method.path)
            return await call(data, timeout=timeout_s, metadata=metadata(token))
        stream = self.stream(method, token, timeout_s=timeout_s)
        try:
            await stream.write(data)
            answer = await stream.read()
        finally:
            stream.cancel()
        if not isinstance(answer, bytes):
            # As a member that is being stopped ends its streams.
            raise _failure(grpc.StatusCode.UNAVAILABLE, f"{method.path} ended without an answer")
        return answer

    def stream(self, method: Method[Any, Any], token: str, *, timeout_s: float | None = None) -> Any:
        """Begin a call of streams in both directions, of bytes."""
        return self._channel.stream_stream(method.path)(timeout=timeout_s, metadata=metadata(token))

    async def close(self) -> None:
        """Close the channel; calls that are under way fail."""
        self._closed = True
        await self._channel.close(None)


@asynccontextmanager
async def _turn(lock: asyncio.Lock, ends: float) -> AsyncGenerator[float]:
    """Hold a lock, and say how many seconds are left then; raises `aio.AioRpcError` where none are."""
    try:
        async with asyncio.timeout_at(ends):
            await lock.acquire()
    except TimeoutError as error:
        raise _failure(grpc.StatusCode.DEADLINE_EXCEEDED, "others waited for it in vain") from error
    try:
        yield max(ends - asyncio.get_running_loop().time(), 0.001)
    finally:
        lock.release()


def _failure(code: grpc.StatusCode, details: str) -> aio.AioRpcError:
    return aio.AioRpcError(code, aio.Metadata(), aio.Metadata(), details=details, debug_error_string=None)


def metadata(token: str) -> tuple[tuple[str, str], ...]:
    """What is sent with every call: a member cut off from the others must refuse, and whom we are."""
    return (_REQUIRE_LEADER, ("token", token)) if token else (_REQUIRE_LEADER,)


class Members:
    """All members, the current one, and the token that any of them takes. Belongs to one event loop."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._settings = settings
        self._members = [Member(url, settings) for url in settings.endpoints]
        self._current = 0
        self._token = ""
        self._authenticating = asyncio.Lock()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._members)

    @property
    def token(self) -> str:
        """Sent with every call; empty without a user."""
        return self._token

    @property
    def current(self) -> Member:
        """The member to speak to."""
        return self._members[self._current]

    def prepared(self, member: Member) -> bool:
        """Whether `prepare` has nothing to do."""
        return member.checked and (bool(self._token) or not self._settings.user)

    async def prepare(self, member: Member, timeout_s: float) -> None:
        """Have a token, and have `member` checked; raises `aio.AioRpcError`, or `StateStoreDown` for a wrong server.

        One call does it for all that wait, and none of them waits for longer than its own time.
        """
        ends = asyncio.get_running_loop().time() + timeout_s
        if self._settings.user and not self._token:
            async with _turn(self._authenticating, ends) as left_s:
                if not self._token:
                    self._token = await self._authenticate(member, left_s)
        if not member.checked:
            async with _turn(member.checking, ends) as left_s:
                if not member.checked:
                    status = await member.call(STATUS, StatusRequest(), token=self._token, timeout_s=left_s)
                    check_version(member.url, status.version)
                    member.checked = True

    def failed(self, member: Member) -> None:
        """Speak to the next member from now on, where `member` is still the one spoken to."""
        member.checked = False
        if self.current is member:
            self._current = (self._current + 1) % len(self._members)

    def forget_token(self, token: str) -> None:
        """Authenticate anew before the next call, unless that was done since `token` was given out."""
        if self._token == token:
            self._token = ""

    async def close(self) -> None:
        """Close every channel."""
        for member in self._members:
            await member.close()

    async def _authenticate(self, member: Member, timeout_s: float) -> str:
        request = AuthenticateRequest(name=self._settings.user, password=self._settings.password)
        return (await member.call(AUTHENTICATE, request, token="", timeout_s=timeout_s)).token


def check_version(url: str, version: str) -> None:
    """Raise `StateStoreDown` unless `version` is one that we work with."""
    numbers = re.match(r"(\d+)\.(\d+)\.", version)
    if numbers is None:
        raise StateStoreDown(f"{url} does not say which version of etcd it is ({version!r}): check host and port")
    if (int(numbers[1]), int(numbers[2])) < MINIMUM_VERSION:
        wanted = ".".join(map(str, MINIMUM_VERSION))
        raise StateStoreDown(f"{url} is etcd {version}, and at least {wanted} is needed: upgrade it")
