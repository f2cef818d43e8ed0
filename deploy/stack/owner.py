"""Who serves a data folder: a file beside the data names the process so that no other is ever taken for it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

STOP_S = 20.0
_KILLED_S = 10.0
_POLL_S = 0.02
_FILE = "owner.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The process that serves a folder, and where."""

    pid: int
    begun: str
    """This boot of the machine and the process's start within it: a process number alone is given again."""
    ports: Mapping[str, int]
    stop_signal: int

    @property
    def alive(self) -> bool:
        """Whether that very process is still there."""
        return bool(self.begun) and _begun(self.pid) == self.begun

    def end(self) -> None:
        """End the process in order, by force after 20 s; nothing where it has ended."""
        for sent, patience_s in ((self.stop_signal, STOP_S), (signal.SIGKILL, _KILLED_S)):
            self._signal(sent)
            # A stopped process takes no signal but these before it goes on.
            self._signal(signal.SIGCONT)
            deadline = time.monotonic() + patience_s
            while self.alive and time.monotonic() < deadline:
                time.sleep(_POLL_S)

    def _signal(self, number: int) -> None:
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def record(folder: Path, *, pid: int, ports: Mapping[str, int], stop_signal: int) -> Owner:
    """Note that the living process `pid` serves `folder`."""
    owner = Owner(pid=pid, begun=_begun(pid), ports=dict(ports), stop_signal=int(stop_signal))
    temporary = folder / f".{_FILE}.new"
    temporary.write_text(json.dumps(asdict(owner)))
    temporary.replace(folder / _FILE)
    return owner


def owner_of(folder: Path) -> Owner | None:
    """Who serves the folder or did last; None where nobody ever did."""
    try:
        return Owner(**json.loads((folder / _FILE).read_text()))
    except FileNotFoundError:
        return None


def _begun(pid: int) -> str:
    """What tells the process from any other of its number; empty where there is none or it has ended."""
    try:
        # The name before it is in parentheses and may hold anything. State is field 3, threads are 20, the start is 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    # Its first thread is a zombie as soon as that has ended; the last one to end closes files and frees ports.
    return "" if fields[0] in "ZX" and int(fields[17]) <= 1 else f"{boot} {fields[19]}"
