"""The client of the agent's unix socket: one thread, so that training never waits for the agent."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from distroml.runtime.link.outbox import Outbox
from distroml.runtime.link.port import Durable, P, Pushed
from distroml.workerlink import (
    PROTOCOL,
    AskLatest,
    AwaitGeneration,
    CorruptionFound,
    Frames,
    Generation,
    Heartbeat,
    Hello,
    Latest,
    LinkError,
    Message,
    Span,
    StepSample,
    ToWorker,
    decode_to_worker,
    encode,
)

log = logging.getLogger("distroml.runtime.link")

HEARTBEAT_S = 1.0
BATCH_S = 0.2
_BACKOFF_S = (0.05, 1.0)
_CONNECT_S = 2.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this process is to its agent."""

    worker: str
    incarnation: int
    generation: int


class AgentLink:
    """Connects, and for ever connects again; says `Hello`, a heartbeat a second, and what is queued.

    A connection that is down costs the training thread nothing: queues are bounded, nothing blocks.
    """

    def __init__(self, path: str, identity: Identity) -> None:
        self._path = path
        self._identity = identity
        self._outbox = Outbox()
        self._generation = identity.generation
        self._step = 0
        self._phase = "setup"
        self._handlers: dict[type[Pushed], Callable[[Pushed], None]] = {}
        self._news = threading.Condition()
        self._newest: Generation | None = None
        self._latest: Latest | None = None
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="distroml-link", daemon=True)

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    @property
    def attached(self) -> bool:
        """True: an agent started this process."""
        return True

    @property
    def dropped(self) -> int:
        """Step samples dropped since the start."""
        return self._outbox.dropped

    def cpu_s(self) -> float:
        """CPU seconds that the link's thread has used."""
        ident = self._thread.ident
        if ident is None or not self._thread.is_alive():
            return 0.0
        return time.clock_gettime(time.pthread_getcpuclockid(ident))

    def entered(self, generation: int) -> None:
        """See `Link`."""
        self._generation = generation

    def progress(self, *, step: int, phase: str) -> None:
        """See `Link`."""
        self._step, self._phase = step, phase

    def sample(self, sample: StepSample) -> None:
        """See `Link`. Wakes nobody: the link's thread looks for samples a few times a second."""
        self._outbox.sample(sample)

    def span(self, span: Span) -> None:
        """See `Link`. Wakes nobody, as `sample`."""
        self._outbox.span(span)

    def send(self, message: Durable) -> None:
        """See `Link`."""
        self._put(message)

    def subscribe(self, kind: type[P], callback: Callable[[P], None]) -> None:
        """See `Link`."""
        self._handlers[kind] = cast("Callable[[Pushed], None]", callback)

    def leave(self, generation: int, error: str) -> None:
        """See `Link`."""
        self._outbox.forget_saves()
        self._put(AwaitGeneration(after=generation, error=error))

    def wait_generation(self, after: int, timeout_s: float) -> Generation | None:
        """See `Link`."""
        with self._news:
            self._news.wait_for(lambda: self._newest is not None and self._newest.number > after, timeout_s)
            found = self._newest
        return found if found is not None and found.number > after else None

    def ask(self, question: AskLatest | CorruptionFound, timeout_s: float) -> Latest | None:
        """See `Link`."""
        with self._news:
            self._latest = None
        self._put(question)
        with self._news:
            self._news.wait_for(lambda: self._latest is not None, timeout_s)
            return self._latest

    def flush(self, timeout_s: float) -> bool:
        """See `Link`."""
        deadline = time.monotonic() + timeout_s
        self._wake()
        while not self._outbox.empty:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        return True

    def close(self, timeout_s: float) -> None:
        """See `Link`."""
        self._closing.set()
        self._wake()
        self._thread.join(timeout_s)

    def _put(self, message: Message) -> None:
        self._outbox.put(message)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full of wake-ups already
            os.write(self._wake_write, b"x")

    # ---- the link's thread

    def _run(self) -> None:
        backoff = _BACKOFF_S[0]
        while not (self._closing.is_set() and self._outbox.empty):
            connection = self._connect()
            if connection is None:
                if self._closing.is_set():
                    return
                self._pause(backoff)
                backoff = min(2 * backoff, _BACKOFF_S[1])
                continue
            backoff = _BACKOFF_S[0]
            with connection:
                try:
                    self._talk(connection)
                except (OSError, LinkError) as error:
                    log.info("lost the agent's link (%s); training goes on, connecting again", error)

    def _connect(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_CONNECT_S)
        try:
            connection.connect(self._path)
        except OSError:
            connection.close()
            return None
        connection.setblocking(False)
        return connection

    def _pause(self, seconds: float) -> None:
        select.select([self._wake_read], [], [], seconds)
        self._drain_wakes()

    def _drain_wakes(self) -> None:
        try:
            while len(os.read(self._wake_read, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass

    def _talk(self, connection: socket.socket) -> None:
        hello = Hello(
            protocol=PROTOCOL,
            worker=self._identity.worker,
            incarnation=self._identity.incarnation,
            pid=os.getpid(),
            generation=self._generation,
            managed=True,
        )
        self._outbox.reconnected()
        out = bytearray(encode(hello))
        frames = Frames()
        beat_at = batch_at = time.monotonic()
        while True:
            now = time.monotonic()
            if not out:
                self._outbox.sent()
                message: Message | None
                if now >= beat_at:
                    beat_at = now + HEARTBEAT_S
                    message = Heartbeat(generation=self._generation, step=self._step, phase=self._phase)
                else:
                    due = now >= batch_at or self._closing.is_set()
                    message = self._outbox.take(samples=due)
                    if due:
                        batch_at = now + BATCH_S
                if message is not None:
                    out += encode(message)
                elif self._closing.is_set() and self._outbox.empty:
                    return
            wait_s = 0.0 if out else max(0.0, min(beat_at, batch_at) - now)
            readable, writable, _ = select.select(
                [connection, self._wake_read], [connection] if out else [], [], None if out else wait_s
            )
            if self._wake_read in readable:
                self._drain_wakes()
            if writable:
                del out[: connection.send(out)]
            if connection in readable:
                data = connection.recv(1 << 16)
                if not data:
                    raise LinkError("the agent closed the connection")
                for body in frames.feed(data):
                    self._received(decode_to_worker(body))

    def _received(self, message: ToWorker) -> None:
        self._outbox.answered(message)
        with self._news:
            if isinstance(message, Generation) and (self._newest is None or message.number > self._newest.number):
                self._newest = message
            elif isinstance(message, Latest):
                self._latest = message
            self._news.notify_all()
        handler = self._handlers.get(type(message))  # pyright: ignore[reportArgumentType]
        if handler is not None:
            try:
                handler(cast("Pushed", message))
            except Exception:
                log.exception("a handler of %s failed", type(message).__name__)
