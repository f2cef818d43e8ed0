"""The life of a service process: start, serve, drain on SIGTERM, stop."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, TypeVar, cast

import grpc.aio as aio
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from distroml.observability import logger, names
from distroml.observability.exporter import Exporter
from distroml.observability.exporting import Exporting, exporting
from distroml.observability.metrics import REGISTRY, gauge
from distroml.observability.tracing import Tracing
from distroml.rpc import receiver
from distroml.rpc.channel import MAX_MESSAGE_BYTES, Option, connect
from distroml.rpc.serving import Calls
from distroml.rpc.settings import ServiceSettings, SettingsError, split_address
from distroml.rpc.tasks import Backoff, Work, supervise

log = logger(__name__)

SERVER_OPTIONS: Final[tuple[Option, ...]] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
    # A second process on the port is an error, not a silent sharer of its calls.
    ("grpc.so_reuseport", 0),
    # A caller that is gone without a word is noticed on a quiet stream too; callers may ping as they do.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)
MAX_CONCURRENT_CALLS: Final = 2048

STREAM_GRACE_S: Final = 0.5
"""How long open streams may take to end of themselves once `draining` is set; then they are cut."""
_TASK_GRACE_S: Final = 7.0
"""More than it takes to find out that a lease cannot be given back, since etcd does not answer."""
_CALLBACK_GRACE_S: Final = 10.0
TRACES_GRACE_S: Final = 2.0
"""How long the last spans may take to leave when the service ends."""
TRACES: Final = "traces"
"""The part of health that says whether spans can be exported."""

_INFO = gauge(names.SERVICE_INFO, "Always 1; its label says which service this is.", (names.LABEL_SERVICE,))
_PART_UP = gauge(
    names.SERVICE_PART_UP,
    "Whether a part of this service works (1) or not (0), a server that it needs among them: `etcd`, `nats`.",
    (names.LABEL_PART,),
)
_DATA_SIZE = gauge(names.DATA_SIZE_BYTES, "Size of the file system with the data folder.")
_DATA_FREE = gauge(names.DATA_FREE_BYTES, "What this service may still write on the file system with the data folder.")
_SERVING: Final = 1  # grpc.health.v1.HealthCheckResponse.ServingStatus
_NOT_SERVING: Final = 2

Servicer = TypeVar("Servicer")
AddToServer = Callable[[Servicer, Any], None]
Callback = Callable[[], Awaitable[object] | object]


class PortTaken(SettingsError):
    """Something else listens there."""

    def __init__(self, address: str, why: str) -> None:
        super().__init__([f"cannot listen on {address}: {why}; end what uses the port, or choose another one"])


class _Disk(NamedTuple):
    total: int
    used: int
    free: int


class _Health(Protocol):
    async def set(self, service: str, status: Any) -> None: ...

    async def enter_graceful_shutdown(self) -> None: ...


class Service:
    """One service process, from its settings to its end.

    As a context manager it makes sure that whatever was started is stopped in order, also when starting fails half
    way. `run` serves until SIGTERM or SIGINT and then drains: health says NOT_SERVING, `draining` is set and the
    `on_drain` callbacks run, new calls are refused while running ones get `drain_s` to end, background tasks are
    cancelled, and last the `on_close` callbacks run, newest first.
    """

    def __init__(self, settings: ServiceSettings, *, options: Sequence[Option] = ()) -> None:
        self.settings = settings
        self.draining = asyncio.Event()
        self._spans = _exporting(settings)
        self.tracing = Tracing(settings.service, [self._spans] if self._spans else [], deployment=settings.deployment)
        self._calls = Calls(settings.token, self.tracing)
        self._server: aio.Server = cast(Any, aio).server(
            interceptors=[self._calls],
            options=[*SERVER_OPTIONS, *options],
            maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
        )
        # The stubs know the synchronous servicer only.
        self._health: _Health = cast(Any, health).aio.HealthServicer()
        self._exporter = Exporter(REGISTRY, self._healthz)
        self._names: list[str] = []
        self._work: dict[str, tuple[Work, Backoff]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ill: dict[str, str] = {}
        self._reports: set[asyncio.Task[None]] = set()
        self._on_drain: list[Callback] = []
        self._on_close: list[Callback] = []
        self._stop = asyncio.Event()
        self._serving = False
        self.port = 0
        self.metrics_port = 0

    @property
    def endpoint(self) -> str:
        """host:port where it serves; known once started."""
        host, _ = split_address(self.settings.listen)
        return f"{host}:{self.port}"

    def add(self, add_to_server: AddToServer[Servicer], servicer: Servicer, full_name: str) -> None:
        """Serve `servicer`; `full_name` is its service in the contract, for health and reflection."""
        add_to_server(servicer, self._server)
        self._names.append(full_name)

    def background(self, name: str, work: Work, *, backoff: Backoff | None = None) -> None:
        """Run `work()` beside the calls, from start to drain.

        When it raises, that is logged and counted, health says NOT_SERVING for `name`, and it is started again after
        a growing wait. When it returns it is done.
        """
        if name in self._work:
            raise ValueError(f"there is a background task {name!r} already")
        self._work[name] = (work, backoff or Backoff())
        if self._serving:
            self._spawn(name)

    def on_drain(self, callback: Callback) -> None:
        """Call when the service is to go down, while calls and tasks still run: end long streams, hand over leases."""
        self._on_drain.append(callback)

    def on_close(self, callback: Callback) -> None:
        """Call when no call and no task runs any more, newest first: close stores and channels."""
        self._on_close.append(callback)

    def dial(self, peer: str) -> aio.Channel:
        """A channel to another service, by its name in the settings; closed with this service.

        Raises:
            SettingsError: the settings do not say where `peer` is.
        """
        channel = connect(
            self.settings.peer(peer), self.settings.token, actor=self.settings.service, tracing=self.tracing
        )
        self.on_close(lambda: channel.close(None))
        return channel

    def report(self, part: str, why: str | None) -> None:
        """Health of one part: why it does not work, None as soon as it does.

        It shows in `/healthz` and under its name in gRPC health; the service as a whole goes on serving.
        """
        if why is None:
            self._ill.pop(part, None)
        else:
            self._ill[part] = why
        _PART_UP.labels(part).set(why is None)
        task = asyncio.ensure_future(self._health.set(part, _SERVING if why is None else _NOT_SERVING))
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    async def __aenter__(self) -> Service:
        return self

    async def __aexit__(
        self, type_: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.drain()

    async def start(self) -> None:
        """Listen, serve, start the background tasks.

        Raises:
            PortTaken: an address cannot be had.
        """
        settings = self.settings
        health_pb2_grpc.add_HealthServicer_to_server(cast(Any, self._health), cast(Any, self._server))
        reflection.enable_server_reflection(
            [*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME], cast(Any, self._server)
        )
        try:
            self.port = self._server.add_insecure_port(settings.listen)
        except RuntimeError as error:
            raise PortTaken(settings.listen, str(error)) from None
        try:
            self.metrics_port = await self._exporter.start(*split_address(settings.metrics_listen))
        except OSError as error:
            raise PortTaken(settings.metrics_listen, error.strerror or str(error)) from None
        if self._spans is not None:
            loop = asyncio.get_running_loop()
            self._spans.trouble = partial(_tell, loop, self.report, TRACES, settings.otel)
        await self._server.start()
        for name in ("", *self._names):
            await self._health.set(name, _SERVING)
        self._serving = True
        _INFO.labels(settings.service).set(1)
        _DATA_SIZE.set_function(lambda: _disk(settings.data).total)
        _DATA_FREE.set_function(lambda: _disk(settings.data).free)
        for name in self._work:
            self._spawn(name)
        log.info("serving", endpoint=self.endpoint, metrics_port=self.metrics_port)

    def stop(self) -> None:
        """Let `run` come to its end, as SIGTERM does."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or `stop()`, then drain."""
        loop = asyncio.get_running_loop()
        for signal_ in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_, self.stop)
        try:
            await self.start()
            await self._stop.wait()
            await self.drain()
        finally:
            for signal_ in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(signal_)

    async def drain(self) -> None:
        """Go down in order; does nothing the second time."""
        if self.draining.is_set():
            return
        self.draining.set()
        self._serving = False
        log.info("draining", open_streams=self._calls.open_streams)
        await self._health.enter_graceful_shutdown()
        for callback in self._on_drain:
            await _call(callback, "drain")
        stopping = asyncio.ensure_future(self._server.stop(self.settings.drain_s))
        await asyncio.wait([stopping], timeout=min(STREAM_GRACE_S, self.settings.drain_s))
        self._calls.cut_streams()
        await stopping
        await self._end_tasks()
        await self._exporter.close()
        for callback in reversed(self._on_close):
            await _call(callback, "close")
        await asyncio.to_thread(self.tracing.close, TRACES_GRACE_S)
        if self._spans is not None:
            self._spans.abandon()
        log.info("stopped")

    def _spawn(self, name: str) -> None:
        work, backoff = self._work[name]
        self._tasks[name] = asyncio.create_task(supervise(name, work, self.report, backoff), name=name)

    async def _end_tasks(self) -> None:
        tasks = [task for task in (*self._tasks.values(), *self._reports) if not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=_TASK_GRACE_S)
            for task in left:
                log.error("a background task does not end; it is left behind", task=task.get_name())

    def _healthz(self) -> tuple[bool, object]:
        parts = {name: {"serving": name not in self._ill, "why": self._ill.get(name, "")} for name in self._work}
        parts |= {name: {"serving": False, "why": why} for name, why in self._ill.items()}
        status = "SERVING" if self._serving and not self._ill else "DEGRADED" if self._serving else "NOT_SERVING"
        return self._serving, {"service": self.settings.service, "status": status, "parts": parts}


def _exporting(settings: ServiceSettings) -> Exporting | None:
    try:
        return exporting(settings.otel)
    except ValueError as error:
        raise SettingsError([str(error)]) from None


def _tell(
    loop: asyncio.AbstractEventLoop,
    report: Callable[[str, str | None], None],
    part: str,
    otel: Mapping[str, str],
    why: str | None,
) -> None:
    """Report from another thread; a loop that has ended needs to know nothing any more."""
    if why is not None:
        # The exporter says only that it failed.
        why = receiver.survey(otel) or why
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(report, part, why)


def _disk(data: Path) -> _Disk:
    try:
        return _Disk(*shutil.disk_usage(data))
    except OSError:
        # The metrics page must not fail with the disk: nothing of it can be used.
        return _Disk(0, 0, 0)


async def _call(callback: Callback, when: str) -> None:
    """One failing or hanging callback must not keep the others from running."""
    try:
        async with asyncio.timeout(_CALLBACK_GRACE_S):
            outcome = callback()
            if inspect.isawaitable(outcome):
                await outcome
    except Exception:
        log.exception(f"a callback failed at {when}")
