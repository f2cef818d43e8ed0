"""One process of a worker, as the agent knows it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import msgspec

from distroml.agent.adapters.held import Held
from distroml.agent.adapters.lines import Tail
from distroml.agent.adapters.processes import process_state, write_whole
from distroml.agent.adapters.usage import Usage, usage_of
from distroml.agent.domain.exits import ExitRecord, Failure
from distroml.agent.domain.silence import Hang, Seen, forgive, judge
from distroml.workerlink import Heartbeat, Hello, Samples, Stopping, ToAgent, WorkerFailed


class Facts(msgspec.Struct, kw_only=True):
    """`worker.json`: what a new agent must know to take the process over."""

    worker: str
    incarnation: int
    generation: int
    rank: int
    managed: bool = False
    stopping: bool = False
    """It said that it obeys `Stop`: code 0 is then no end of the work."""


class Listener(Protocol):
    """Whoever decides about the worker."""

    def on_hello(self, running: Running, hello: Hello) -> None:
        """The worker is on the link."""
        ...

    def on_message(self, running: Running, message: ToAgent) -> None:
        """The worker said something."""
        ...

    def on_link_lost(self, running: Running) -> None:
        """The worker's connection ended."""
        ...

    def on_ended(self, running: Running, record: ExitRecord) -> None:
        """The process ended."""
        ...


class Running:
    """Made before the process starts; `attach` follows when it runs."""

    def __init__(
        self,
        folder: Path,
        facts: Facts,
        listener: Listener,
        output: Tail,
    ) -> None:
        self.folder = folder
        self.facts = facts
        self.held: Held | None = None
        self.said: Failure | None = None
        self.step = 0
        self.total_steps = 0
        self.dropped_by_worker = 0
        self.dropped_spans = 0
        self.output = output
        self.link_gone = asyncio.Event()
        self.link_gone.set()
        self._listener = listener
        self._ending: tuple[float, str] | None = None
        self._phase = ""
        self._cpu_ticks = 0
        self._usage: tuple[float, Usage] | None = None
        now = time.monotonic()
        self.seen = Seen(managed=False, heard_at=now, progress_at=now, cpu_at=now, running_at=now)

    def attach(self, held: Held) -> None:
        """The process runs under this holder."""
        self.held = held
        if self._ending is not None:
            held.end(*self._ending)
        held.ended.add_done_callback(self._ended)

    def end(self, grace_s: float, why: str) -> None:
        """SIGTERM, then SIGKILL after `grace_s`; one that is still being started gets it as soon as it runs."""
        self._ending = (grace_s, why)
        if self.held is not None:
            self.held.end(grace_s, why)

    def save_facts(self) -> None:
        """Keep what a new agent must know."""
        # A full disk costs the next agent some knowledge, not this one its worker.
        with contextlib.suppress(OSError):
            write_whole(self.folder / "worker.json", msgspec.json.encode(self.facts))

    # ---- link

    def on_hello(self, hello: Hello) -> None:
        """See `link.Peer`."""
        self.link_gone.clear()
        self.facts.managed = hello.managed
        self.save_facts()
        self._heard(progress=True)
        self.seen = replace(self.seen, managed=hello.managed)
        self._listener.on_hello(self, hello)

    def on_message(self, message: ToAgent) -> None:
        """See `link.Peer`."""
        match message:
            case Heartbeat(step=step, phase=phase):
                self._heard(progress=(step, phase) != (self.step, self._phase))
                self.step, self._phase = max(step, self.step), phase
                self.seen = replace(self.seen, last_step=self.step, idle=phase == "idle")
            case Samples(steps=steps):
                self._heard(progress=bool(steps))
                for sample in steps:
                    self.step = max(self.step, sample.step)
                    self.total_steps = max(self.total_steps, sample.total_steps)
            case WorkerFailed():
                self._heard(progress=True)
                self.said = Failure(
                    category=message.category,
                    message=message.message,
                    traceback=message.traceback,
                    last_step=message.last_step,
                )
            case Stopping():
                self.facts.stopping = True
                self.save_facts()
                self._heard(progress=True)
            case _:
                self._heard(progress=False)
        self._listener.on_message(self, message)

    def on_link_lost(self) -> None:
        """See `link.Peer`."""
        self.link_gone.set()
        self._listener.on_link_lost(self)

    def _heard(self, *, progress: bool) -> None:
        now = time.monotonic()
        self.seen = replace(self.seen, heard_at=now, progress_at=now if progress else self.seen.progress_at)

    # ---- looking after it

    def look(self, hang_timeout_s: float, *, idle: bool, standstill_s: float) -> Hang | None:
        """Look at the process; whether it hangs."""
        if self.held is None:
            return None
        now = time.monotonic()
        state, ticks = process_state(self.held.identity.worker_pid)
        if not state:
            return None
        seen = forgive(self.seen, standstill_s) if standstill_s else self.seen
        if state != "T":
            seen = replace(seen, running_at=now)
        if ticks != self._cpu_ticks:
            self._cpu_ticks = ticks
            seen = replace(seen, cpu_at=now)
        if not seen.managed:
            seen = replace(seen, progress_at=max(seen.progress_at, self.output.grown_at))
        self.seen = seen
        return judge(now, replace(seen, idle=seen.idle or idle), hang_timeout_s)

    def usage(self) -> tuple[float, int] | None:
        """Share of one CPU used since the last look, and resident bytes; None at the first look."""
        if self.held is None:
            return None
        now, usage = time.monotonic(), usage_of(self.held.identity.worker_pid)
        before, self._usage = self._usage, (now, usage)
        if before is None or now <= before[0]:
            return None
        return max(0.0, (usage.cpu_s - before[1].cpu_s) / (now - before[0])), usage.rss_bytes

    def _ended(self, ended: asyncio.Future[ExitRecord]) -> None:
        if not ended.cancelled():
            self._listener.on_ended(self, ended.result())


def read_facts(folder: Path) -> Facts | None:
    """What an earlier agent left about the process in `folder`."""
    try:
        return msgspec.json.decode((folder / "worker.json").read_bytes(), type=Facts)
    except (OSError, msgspec.MsgspecError):
        return None


def was_reported(folder: Path) -> bool:
    """Whether the end of the process in `folder` was handed to the spool."""
    return os.path.exists(folder / "reported")


def mark_reported(folder: Path) -> None:
    """The end is in the spool; no agent needs to look at it again."""
    with contextlib.suppress(OSError):
        (folder / "reported").touch()
