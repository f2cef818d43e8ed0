"""What the kernel says about processes, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import msgspec

from distroml.agent.launch import boot_id, start_time


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """`identity.json` of a worker's folder, see `launch.Identity`."""

    worker: str
    incarnation: int
    boot_id: str
    holder_pid: int
    holder_start: int
    worker_pid: int
    worker_start: int
    started_at_ms: int

    @property
    def holder_lives(self) -> bool:
        """The holder itself, never another process that got its number."""
        return self.boot_id == boot_id() and start_time(self.holder_pid) == self.holder_start

    @property
    def worker_lives(self) -> bool:
        """The worker itself."""
        return self.boot_id == boot_id() and start_time(self.worker_pid) == self.worker_start


def read_identity(folder: Path) -> Identity | None:
    """Who runs in `folder`, None where nobody ever did."""
    try:
        return msgspec.json.decode((folder / "identity.json").read_bytes(), type=Identity)
    except (OSError, msgspec.MsgspecError):
        return None


def process_state(pid: int) -> tuple[str, int]:
    """State letter (`T` is stopped) and CPU clock ticks used; an empty letter where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return "", 0
    return fields[0].decode(), int(fields[11]) + int(fields[12])


def kill_session(session: int, marker: str) -> int:
    """SIGKILL to every process of a session that carries `marker` in its environment; how many there were.

    For what a worker left behind when its holder died with it. The marker keeps strangers safe.
    """
    killed = 0
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
            if int(stat[3]) != session or marker.encode() not in Path(entry.path, "environ").read_bytes():
                continue
            os.kill(int(entry.name), signal.SIGKILL)
            killed += 1
        except OSError:
            continue
    return killed


def write_whole(path: Path, data: bytes) -> None:
    """Replace the file's content: all of it or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        # A disk that is nearly full takes a part; the rest is refused.
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)
    os.rename(temporary, path)


def tail(path: Path, size: int = 64 * 1024) -> str:
    """The last bytes of a file as text; empty where there is none."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read().decode(errors="replace")
    return ""
