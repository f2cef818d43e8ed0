"""The holder: parent of exactly one worker, a program of its own, run by file path with `python -S -E -s`.

It owns the worker's output, waits for it, writes down how it ended, and ends it when no agent is left. It knows
nothing but the standard library, so that it stays small (about 10 MB) and nothing of ours can break it.

`launch.py` makes the worker and then becomes this program by `exec`, so the worker is its child. The only argument
is a JSON object, see `launch.HolderTask`. The holder's working directory is the worker's folder, where it leaves:

- `stdout`, `stderr`: the worker's output up to the cap; the rest is read, counted and thrown away;
- `holder.sock` (0600): one agent at a time talks JSON lines to it: `hello`, `heartbeat`, `status`, `kill`, `end`;
- `exit.json`: written whole or not at all, once the worker and everything it left running has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import cast
else:
    # `typing` and `types` cost a tenth of this program's memory and start.
    def cast(_, value):
        """Nothing at run time."""
        return value


# Run by path and without site-packages: the only thing of ours on the path is this distribution's own root.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from distroml.agent.evidence import oom_evidence, oom_kills  # noqa: E402
from distroml.agent.output import Output, write_whole  # noqa: E402

LINE_BYTES = 64 * 1024
# How long the holder reads on when a process that left the worker's group keeps its pipe open.
DRAIN_S = 2.0

Record = dict[str, object]


class Conversation:
    """The connection to the agent; a newer one takes its place."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self._buffer = b""

    def read(self) -> list[Record] | None:
        """Whole messages that arrived; None when the agent is gone or talks garbage."""
        try:
            data = self.connection.recv(LINE_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > LINE_BYTES:
            return None
        messages: list[Record] = []
        for line in lines:
            try:
                message: object = json.loads(line)
            except ValueError:
                return None
            if not isinstance(message, dict):
                return None
            messages.append(cast("Record", message))
        return messages

    def say(self, message: Record) -> None:
        """Best effort: an agent that does not read loses what the status and the exit record tell again."""
        with contextlib.suppress(OSError):
            self.connection.send(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        """End the connection."""
        self.connection.close()


class Holder:
    """The loop."""

    def __init__(self, task: Record) -> None:
        self._task = task
        self._pid = _int(task["worker_pid"])
        cap = _int(task["log_cap_bytes"])
        self._grace_s = float(str(task["orphan_grace_s"]))
        self._outputs = {
            output.fd: output
            for output in (
                Output("stdout", _int(task["stdout_fd"]), cap),
                Output("stderr", _int(task["stderr_fd"]), cap),
            )
        }
        self._all_outputs = list(self._outputs.values())
        self._oom_before = oom_kills()
        self._tick_s = max(0.02, min(5.0, self._grace_s / 4))
        self._contact = self._ticked = time.monotonic()
        self._kill_at: float | None = None
        self._ended_by = ""
        self._signals: list[int] = []
        self._agent: Conversation | None = None
        self._poll = select.poll()
        # Bound and listening since before the worker ran: an agent can connect as soon as it knows of us.
        self._listener = socket.socket(fileno=_int(task["listener_fd"]))
        self._listener.setblocking(False)
        self._wake = self._catch_signals()
        self._pidfd = os.pidfd_open(self._pid)
        for fd in (*self._outputs, self._listener.fileno(), self._wake, self._pidfd):
            self._poll.register(fd, select.POLLIN)

    def run(self) -> None:
        """Until the worker has ended and its exit record is on disk."""
        handlers: dict[int, Callable[[], None]] = {
            self._listener.fileno(): self._accept,
            self._wake: self._asked_to_end,
        }
        while True:
            for fd, _ in self._wait():
                if fd == self._pidfd:
                    self._finish()
                    return
                if fd in self._outputs:
                    self._pump(fd)
                elif self._agent is not None and fd == self._agent.connection.fileno():
                    self._hear()
                elif fd in handlers:
                    handlers[fd]()
            self._keep_time()

    def _wait(self) -> list[tuple[int, int]]:
        until = self._ticked + self._tick_s
        if self._kill_at is not None:
            until = min(until, self._kill_at)
        return self._poll.poll(max(0.0, until - time.monotonic()) * 1000)

    # ---- time

    def _keep_time(self) -> None:
        now = time.monotonic()
        gap = now - self._ticked
        if gap < self._tick_s and (self._kill_at is None or now < self._kill_at):
            return
        self._ticked = now
        if gap > 3 * self._tick_s + 1.0:
            # This process stood still: the agent gets the time that nobody could have used.
            self._contact += gap
        self._reap_strays()
        if self._kill_at is not None and now >= self._kill_at:
            self._signal(signal.SIGKILL)
            self._kill_at = None
        if now - self._contact > self._grace_s and not self._ended_by:
            self._end("orphan", min(10.0, self._grace_s))

    def _end(self, why: str, grace_s: float) -> None:
        self._ended_by = self._ended_by or why
        if grace_s > 0:
            self._signal(signal.SIGTERM)
            # A stopped process takes its SIGTERM only when it continues.
            self._signal(signal.SIGCONT, told=False)
            at = time.monotonic() + grace_s
            self._kill_at = at if self._kill_at is None else min(self._kill_at, at)
        else:
            self._signal(signal.SIGKILL)

    def _signal(self, number: int, *, told: bool = True) -> None:
        if told:
            self._signals.append(int(number))
        with contextlib.suppress(OSError):
            os.killpg(self._pid, number)
        # The worker may have moved itself to another group.
        with contextlib.suppress(OSError):
            os.kill(self._pid, number) if os.getpgid(self._pid) != self._pid else None

    # ---- agent

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            self._drop_agent()
            self._agent = Conversation(connection)
            self._poll.register(connection.fileno(), select.POLLIN)

    def _drop_agent(self) -> None:
        if self._agent is not None:
            self._poll.unregister(self._agent.connection.fileno())
            self._agent.close()
            self._agent = None

    def _hear(self) -> None:
        assert self._agent is not None
        messages = self._agent.read()
        if messages is None:
            self._drop_agent()
            return
        for message in messages:
            self._contact = time.monotonic()
            try:
                self._obey(message)
            except (KeyError, TypeError, ValueError):
                self._drop_agent()
                return

    def _obey(self, message: Record) -> None:
        match message.get("op"):
            case "hello" | "status":
                self._say({"op": "status", **self._status()})
            case "heartbeat":
                pass
            case "kill":
                self._ended_by = str(message.get("why", "")) or self._ended_by
                self._signal(_int(message["signal"]))
            case "end":
                self._end(str(message.get("why", "agent")), float(str(message["grace_s"])))
            case other:
                raise ValueError(other)

    def _say(self, message: Record) -> None:
        if self._agent is not None:
            self._agent.say(message)

    def _status(self) -> Record:
        return {
            "holder_pid": os.getpid(),
            "worker_pid": self._pid,
            "worker_start": self._task["worker_start"],
            "worker": self._task["worker"],
            "incarnation": self._task["incarnation"],
        }

    # ---- the worker

    def _catch_signals(self) -> int:
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write)
        signal.signal(signal.SIGTERM, _ignore)
        for ignored in (signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        return read

    def _asked_to_end(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if signal.SIGTERM in os.read(self._wake, 64):
                self._end("holder told to end", 10.0)

    def _pump(self, fd: int) -> None:
        if not self._outputs[fd].pump():
            self._poll.unregister(fd)
            os.close(fd)
            del self._outputs[fd]

    def _finish(self) -> None:
        ended_at_ms = time.time_ns() // 1_000_000
        # While the worker is a zombie its number cannot belong to a stranger.
        with contextlib.suppress(OSError):
            os.killpg(self._pid, signal.SIGKILL)
        _, status, usage = os.wait4(self._pid, 0)
        self._poll.unregister(self._pidfd)
        stray = self._end_strays()
        self._drain()
        code = os.waitstatus_to_exitcode(status)
        unasked = code == -signal.SIGKILL and not self._signals
        evidence = oom_evidence(self._pid, self._oom_before, oom_kills()) if unasked else ""
        record = {
            **self._status(),
            "boot_id": self._task["boot_id"],
            "code": max(code, 0),
            "signal": max(-code, 0),
            "oom": evidence,
            "ended_by": self._ended_by,
            "category": "orphan" if self._ended_by == "orphan" else "",
            "signals_sent": self._signals,
            "strays_killed": stray,
            "started_at_ms": self._task["started_at_ms"],
            "ended_at_ms": ended_at_ms,
            "user_s": usage.ru_utime,
            "system_s": usage.ru_stime,
            "max_rss_bytes": usage.ru_maxrss * 1024,
            "output": {o.name: {"kept_bytes": o.kept, "dropped_bytes": o.dropped} for o in self._all_outputs},
        }
        with contextlib.suppress(OSError):
            # On a full disk the record still reaches an agent that listens.
            write_whole("exit.json", json.dumps(record).encode())
        self._say({"op": "exited", "record": record})
        with contextlib.suppress(OSError):
            os.unlink("holder.sock")

    def _drain(self) -> None:
        until = time.monotonic() + DRAIN_S
        while self._outputs and (left := until - time.monotonic()) > 0:
            ready = [fd for fd, _ in self._poll.poll(left * 1000) if fd in self._outputs]
            for fd in ready:
                self._pump(fd)
            if not ready:
                # Only the listener or the agent woke us; they wait for the exit record.
                time.sleep(0.005)

    def _strays(self) -> list[int]:
        """Children other than the worker: orphans of its, which the kernel gave to us as their subreaper."""
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                return [pid for pid in map(int, file.read().split()) if pid != self._pid]
        except OSError:
            return []

    def _reap_strays(self) -> None:
        for pid in self._strays():
            with contextlib.suppress(OSError):
                os.waitpid(pid, os.WNOHANG)

    def _end_strays(self) -> int:
        """Kill what the worker left, level by level: a killed one's own children come to us next."""
        killed = 0
        for _ in range(64):
            strays = self._strays()
            if not strays:
                break
            for pid in strays:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(OSError):
                    os.waitpid(pid, 0)
                    killed += 1
        return killed


def _ignore(number: int, frame: FrameType | None) -> None:
    """The wake-up descriptor carries the signal to the loop."""


def _int(value: object) -> int:
    return int(str(value))


def main() -> None:
    """Hold the worker that the argument describes."""
    Holder(json.loads(sys.argv[1])).run()


if __name__ == "__main__":
    main()
