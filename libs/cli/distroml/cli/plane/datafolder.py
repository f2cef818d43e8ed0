"""The folder that holds everything of an embedded deployment."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, cast

from distroml.cli.errors import UsageError

FORMAT = 1
_LOOKING_S: Final = 5.0
"""For how long who only looks may hold a folder: far longer than it does, unless it was stopped."""
SERVICES = ("scheduler", "rendezvous", "checkpoint", "telemetry", "agent")


class Profile(StrEnum):
    """What a control plane keeps its state and log in: its data folder, or real servers."""

    EMBEDDED = "embedded"
    STACK = "stack"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Where the services of a running control plane listen.

    Attributes:
        services: name to gRPC `host:port`.
        metrics: name to the `host:port` of `/metrics`.
        dashboard: URL of the dashboard, without the token.
        supervisor: process id of the supervisor.
    """

    services: dict[str, str]
    metrics: dict[str, str]
    dashboard: str
    supervisor: int


@dataclass(frozen=True, slots=True)
class DataFolder:
    """Paths and identity of one data folder."""

    path: Path

    @property
    def token_file(self) -> Path:
        """The secret that every call carries, readable by its owner only."""
        return self.path / "token"

    @property
    def logs(self) -> Path:
        """One log file per service."""
        return self.path / "logs"

    def prepare(self, profile: Profile | None = None) -> str:
        """Create the folder or check it; returns the deployment id.

        Args:
            profile: what it is for, None for what it was made for; a new one is made `embedded`.

        Raises:
            UsageError: no permission, not a DistroML folder, or one of another format or profile.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.logs.mkdir(exist_ok=True)
            probe = self.path / ".write-probe"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise UsageError(
                f"cannot write to the data folder {self.path}: {error.strerror}",
                hint="give another one with --data or DISTROML_DATA, or mend its permissions",
            ) from error
        if not (self.path / "format.json").exists():
            self._refuse_foreign()
            identity = {"format": FORMAT, "deployment": f"dep-{secrets.token_hex(4)}"}
            identity |= {"profile": profile} if profile is Profile.STACK else {}
            _write_private(self.path / "format.json", json.dumps(identity).encode())
        deployment = self.deployment()
        self.check_profile(profile)
        if not self.token_file.exists():
            _write_private(self.token_file, secrets.token_urlsafe(32).encode())
        return deployment

    def deployment(self) -> str:
        """The deployment's id; raises `UsageError` where the folder is of another format or damaged."""
        return str(self._identity().get("deployment", ""))

    def profile(self) -> Profile:
        """What the folder was made for; raises `UsageError` as `deployment` does."""
        made = self._identity().get("profile", Profile.EMBEDDED)
        try:
            return Profile(str(made))
        except ValueError as error:
            raise UsageError(
                f"{self.path} was made with the profile {made!r}, which this release does not know",
                hint="use the release that made it, or another data folder with --data",
            ) from error

    def check_profile(self, profile: Profile | None) -> None:
        """Raise `UsageError` where the folder was made for another profile."""
        if profile not in (None, made := self.profile()):
            raise UsageError(
                f"{self.path} was made with the profile {made}, and its log is there; {profile} is another one",
                hint=f"leave --profile out, or give another folder with --data for {profile}",
            )

    def services(self) -> tuple[str, ...]:
        """Names of the services that run on it."""
        return ("relay", *SERVICES) if self.profile() is Profile.STACK else SERVICES

    def _identity(self) -> dict[str, object]:
        file = self.path / "format.json"
        try:
            identity = cast("object", json.loads(file.read_bytes()))
        except (OSError, ValueError) as error:
            raise UsageError(f"{file} cannot be read: {error}", hint="is this a DistroML data folder?") from error
        if not isinstance(identity, dict):
            raise UsageError(f"{file} is damaged", hint="restore it from a copy, or use another data folder")
        fields = cast("dict[str, object]", identity)
        if fields.get("format") != FORMAT:
            raise UsageError(
                f"the data folder {self.path} has format {fields.get('format')!r}; this release reads format {FORMAT}",
                hint="use the release that made it, or another data folder with --data",
            )
        return fields

    def _refuse_foreign(self) -> None:
        ours = {"logs", "lock", ".write-probe", "supervisor.log"}
        others = sorted(entry.name for entry in self.path.iterdir() if entry.name not in ours)
        if others:
            raise UsageError(
                f"{self.path} is not empty and no DistroML data folder (it holds {', '.join(others[:3])})",
                hint="give an empty or a new folder with --data",
            )

    def check_readable(self) -> None:
        """Raise `UsageError` where there is a folder into which this user may not look."""
        try:
            (self.path / "endpoints.json").open("rb").close()
        except PermissionError as error:
            raise UsageError(
                f"the data folder {self.path} may not be read by this user: {error.strerror}",
                hint="ask its owner, or give another one with --data or DISTROML_DATA",
            ) from error
        except OSError:
            return

    def token(self) -> str:
        """The deployment's token; raises `UsageError` where it cannot be read."""
        try:
            return self.token_file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the token {self.token_file}: {error}") from error

    def lock(self, *, sleep: Callable[[float], None] = time.sleep) -> int:
        """Take the folder for this process until it ends; returns the descriptor that holds the lock.

        Who only looks whether it is taken (`kept_free`) is waited for.

        Raises:
            UsageError: another control plane runs on this folder.
        """
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until = time.monotonic() + _LOOKING_S
        while not _taken(descriptor, fcntl.LOCK_EX):
            if not _taken(descriptor, fcntl.LOCK_SH) or time.monotonic() > until:
                os.close(descriptor)
                raise UsageError(
                    f"another control plane runs on {self.path}",
                    hint="use it, end it with `distroml down`, or give another folder with --data",
                )
            # Of two that wait so neither may keep the other from taking it.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            sleep(0.01)
        return descriptor

    @contextmanager
    def kept_free(self) -> Generator[bool]:
        """Whether no supervisor holds the folder; as long as the block lasts none can take it then. Be quick."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            # There is nothing that a supervisor could hold.
            yield True
            return
        try:
            # Shared: of several that look none takes another one for a supervisor.
            yield _taken(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def is_locked(self) -> bool:
        """Whether a supervisor holds the folder now."""
        with self.kept_free() as free:
            return not free

    def write_endpoints(self, endpoints: Endpoints) -> None:
        """Publish where the services listen."""
        fields = {name: getattr(endpoints, name) for name in Endpoints.__dataclass_fields__}
        _write_private(self.path / "endpoints.json", json.dumps(fields, indent=1).encode())

    def endpoints(self) -> Endpoints | None:
        """What a supervisor published last, or None."""
        try:
            fields = json.loads((self.path / "endpoints.json").read_bytes())
            return Endpoints(**fields)
        except (OSError, ValueError, TypeError):
            return None

    def forget_endpoints(self) -> None:
        """No service listens any more."""
        (self.path / "endpoints.json").unlink(missing_ok=True)


def default_data() -> Path:
    """`$DISTROML_DATA`, else `~/.distroml`."""
    return Path(os.environ.get("DISTROML_DATA") or Path.home() / ".distroml").absolute()


def _taken(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_private(path: Path, data: bytes) -> None:
    scratch = path.with_name(path.name + ".new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
