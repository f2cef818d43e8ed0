"""A connection to NATS that goes on through failovers, and refuses a server that cannot keep the log's promises."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nats.aio.client import Client
from nats.errors import UnexpectedEOF

from distroml.eventstore.port import StoreDown

MIN_VERSION = (2, 12)
"""Expected sequences are sound in clusters from here on, also with several publishes in flight."""

_RECONNECT_WAIT_S = 0.2
_PING_INTERVAL_S = 5
_CANCEL_AGAIN_S = 0.1
_AGAIN_S = 1.0
_CUT = (BrokenPipeError, ConnectionResetError, TimeoutError, UnexpectedEOF)
_CHECK = "check the addresses, the password and the certificates"


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsSettings:
    """Where NATS is, and who we are there.

    Attributes:
        servers: URLs such as `nats://host:4222` or `tls://host:4222`; any one of them will do at a time.
        user: for servers with passwords.
        password: belongs to `user`.
        ca_file: certificates to trust for TLS; with it every connection must be encrypted.
        cert_file: our own certificate, for servers that verify clients.
        key_file: its private key.
        timeout_s: how long to wait for a connection, and for the answer to one request.
        name: what the server's operator sees of us.
    """

    servers: tuple[str, ...]
    user: str = ""
    password: str = field(default="", repr=False)
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    timeout_s: float = 5.0
    name: str = "distroml"

    def __post_init__(self) -> None:
        """Raise `ValueError` for settings that cannot work."""
        if not self.servers:
            raise ValueError("no NATS server is named; expected URLs such as nats://127.0.0.1:4222")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("a certificate for NATS and its private key are given together or not at all")


class NatsConnection:
    """One connection at a time to one of several servers; made by `connect`, ended by `close`."""

    def __init__(self, settings: NatsSettings) -> None:
        self.settings = settings
        self._client = Client()
        self._trouble: Exception | None = None
        self._fit = ""

    @property
    def client(self) -> Client:
        """The client, for a request now; raises `StoreDown` while nothing fit is connected."""
        if not self._client.is_connected:
            raise StoreDown(
                f"NATS is not connected{self._why()}; it is tried again at {self._servers()}. Where it stays so,"
                f" {_CHECK}"
            )
        self._check_server()
        return self._client

    @property
    def is_connected(self) -> bool:
        """Whether a server is connected now, fit or not."""
        return self._client.is_connected

    async def connect(self) -> None:
        """Connect to the first server that answers.

        Raises:
            StoreDown: none did within the time, or the one that did is older than `MIN_VERSION` or has no JetStream.
        """
        settings = self.settings
        # One that failed, or gave up, cannot begin anew.
        self._client = Client()
        connecting = asyncio.ensure_future(
            self._client.connect(
                list(settings.servers),
                name=settings.name,
                user=settings.user or None,
                password=settings.password or None,
                tls=self._tls(),
                error_cb=self._note,
                reconnected_cb=self._reconnected,
                max_reconnect_attempts=-1,
                reconnect_time_wait=_RECONNECT_WAIT_S,  # pyright: ignore[reportArgumentType]
                connect_timeout=max(1, round(settings.timeout_s / 2)),
                ping_interval=_PING_INTERVAL_S,
            )
        )
        try:
            await asyncio.wait({connecting}, timeout=settings.timeout_s)
        finally:
            # The client tries on for ever, and waits in ways that can lose a cancellation (`asyncio.wait_for`).
            while not connecting.done():
                connecting.cancel()
                await asyncio.wait({connecting}, timeout=_CANCEL_AGAIN_S)
        if not connecting.cancelled() and connecting.exception() is None:
            try:
                self._check_server()
            except StoreDown as error:
                await self.close()
                self._trouble = error
                raise
            self._trouble = None
            return
        await self.close()
        cause = None if connecting.cancelled() else connecting.exception()
        if isinstance(cause, Exception):
            await self._note(cause)
        raise StoreDown(
            f"no NATS server could be used within {settings.timeout_s:g} s at {self._servers()}{self._why()}; {_CHECK}"
        ) from cause

    async def keep(self) -> None:
        """Be connected whenever a server can be used, until cancelled; meanwhile `client` tells why there is none.

        The client itself goes on through failovers; here it is begun anew where none could be used at first, or where
        it gave up, as it does when it is refused.
        """
        while True:
            try:
                await self.connect()
            except StoreDown:
                await asyncio.sleep(_AGAIN_S)
                continue
            while not self._client.is_closed:
                await asyncio.sleep(_AGAIN_S)

    async def close(self) -> None:
        """Let go of the connection; nothing waits for answers any more."""
        with suppress(Exception):
            await self._client.close()

    def _tls(self) -> ssl.SSLContext | None:
        settings = self.settings
        if settings.ca_file is None and settings.cert_file is None:
            return None
        try:
            context = ssl.create_default_context(cafile=settings.ca_file)
            if settings.cert_file is not None:
                context.load_cert_chain(settings.cert_file, settings.key_file)
        except OSError as error:
            files = [str(file) for file in (settings.ca_file, settings.cert_file, settings.key_file) if file]
            raise StoreDown(f"the certificates for NATS cannot be read ({error}): {', '.join(files)}") from error
        return context

    def _check_server(self) -> None:
        """A failover may lead to an older server: looked at with every use."""
        version = self._client.connected_server_version
        shown = repr(version)
        if shown == self._fit:
            return
        try:
            fit = (version.major, version.minor) >= MIN_VERSION
        except ValueError:
            fit = False
        if not fit:
            least = ".".join(map(str, MIN_VERSION))
            raise StoreDown(
                f"{shown.strip('<>')} at {self._address()} is too old or unknown: {least} or newer is needed, because"
                " older ones do not keep the order of a log; upgrade nats-server"
            )
        self._fit = shown

    async def _note(self, error: Exception) -> None:
        # A server that refuses us says so and hangs up: that it hung up, or is silent then, says less.
        if self._trouble is None or not isinstance(error, _CUT):
            self._trouble = error

    async def _reconnected(self) -> None:
        self._trouble = None

    def _address(self) -> str:
        url = self._client.connected_url
        return url.netloc.rpartition("@")[2] if url else "?"

    def _servers(self) -> str:
        return ", ".join(server.rpartition("@")[2].removeprefix("nats://") for server in self.settings.servers)

    def _why(self) -> str:
        if self._trouble is None:
            return ""
        return f" (the last trouble: {str(self._trouble) or type(self._trouble).__name__})"
