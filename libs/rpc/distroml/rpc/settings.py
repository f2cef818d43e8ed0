"""What every service is told from outside: read from the environment once, checked whole, frozen."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import json
import stat
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self, cast

from distroml.objectstore import ObjectStoreRefused
from distroml.objectstore.location import check_location
from distroml.observability.destination import destination, queue_size
from distroml.rpc.servers import ETCD, NATS, Servers

FORMAT: Final = 1
"""The layout of a data folder that this release reads and writes."""

PEERS: Final = ("scheduler", "rendezvous", "checkpoint", "telemetry")
_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")


class SettingsError(Exception):
    """The environment or the data folder does not let the process start; names everything that is wrong."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """What every service needs. A service's own settings are a subclass with more fields, each with a default.

    A field `cycle_s` of the scheduler's subclass is read from `DISTROML_SCHEDULER_CYCLE_S`.
    """

    service: str
    data: Path
    """The deployment's data folder (`DISTROML_DATA`, else `~/.distroml`)."""
    token: str = field(repr=False)
    """What every gRPC call must carry; from the data folder's `token`, or the file `DISTROML_TOKEN_FILE` names."""
    deployment: str
    """Id of the installation, from the data folder's `format.json` or `DISTROML_DEPLOYMENT`."""
    listen: str = "127.0.0.1:0"
    """host:port of the gRPC server (`DISTROML_LISTEN`); port 0 takes a free one."""
    metrics_listen: str = "127.0.0.1:0"
    """host:port of `/metrics` and `/healthz` (`DISTROML_METRICS_LISTEN`)."""
    peers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Other services' host:port by name (`DISTROML_SCHEDULER` and so on)."""
    expose: bool = False
    """Allow addresses other than loopback (`DISTROML_EXPOSE=1`): calls carry their token unencrypted."""
    drain_s: float = 5.0
    """How long running calls may take to end after SIGTERM (`DISTROML_DRAIN_S`), seconds."""
    retire_after_s: int = 3600
    """How long after a job's end its streams stay in the live state (`DISTROML_RETIRE_AFTER_S`), seconds."""
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR (`DISTROML_LOG_LEVEL`)."""
    objects: str = ""
    """Where objects are: `file:///FOLDER` or `s3://BUCKET/PREFIX`; empty for the data folder's `objects`
    (`DISTROML_OBJECTS`). Credentials for S3 are found where every S3 client looks for them."""
    servers: Servers | None = None
    """What keeps state and log instead of the data folder (`DISTROML_ETCD_*` and `DISTROML_NATS_*`)."""
    otel: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """OpenTelemetry's standard variables (`OTEL_*`); headers with a secret may be among them."""

    def __post_init__(self) -> None:
        problems = [
            problem
            for name, address in (("listen", self.listen), ("metrics_listen", self.metrics_listen))
            if (problem := _wrong_address(name, address, self.expose))
        ]
        if not self.token:
            problems.append("the token is empty; `distroml up` writes one into the data folder")
        if self.log_level not in _LEVELS:
            problems.append(f"log level {self.log_level!r} is unknown; use one of {', '.join(_LEVELS)}")
        if self.objects:
            try:
                check_location(self.objects)
            except (ValueError, ObjectStoreRefused) as error:
                problems.append(f"DISTROML_OBJECTS: {error}")
        if self.servers and not self.objects.startswith("s3://") and (elsewhere := self._elsewhere()):
            problems.append(
                f"{ETCD} is set and objects are in {self.objects_location}, which {elsewhere} cannot read; services on "
                "several machines need DISTROML_OBJECTS=s3://BUCKET/PREFIX"
            )
        try:
            destination(self.otel)
            queue_size(self.otel)
        except ValueError as error:
            problems.append(str(error))
        if self.retire_after_s < 1:
            problems.append(
                f"DISTROML_RETIRE_AFTER_S is {self.retire_after_s}; it is a whole number of seconds, at least 1"
            )
        if self.drain_s < 0:
            problems.append(f"drain_s is {self.drain_s}; it is a number of seconds, 0 or more")
        if problems:
            raise SettingsError(problems)

    @property
    def objects_location(self) -> str:
        """Where objects are, whatever was said."""
        return self.objects or (self.data / "objects").as_uri()

    def _elsewhere(self) -> str:
        """What of the deployment is, or may be, on another machine; empty where all is on this one."""
        for name, address in self.peers.items():
            with contextlib.suppress(ValueError):
                if not is_loopback(split_address(address)[0]):
                    return f"{name} at {address}"
        return "whoever reaches this service from elsewhere" if self.expose else ""

    def peer(self, service: str) -> str:
        """Where `service` is; raises `SettingsError` where nobody said so."""
        try:
            return self.peers[service]
        except KeyError:
            name = f"DISTROML_{service.upper()}"
            raise SettingsError([f"{name} is not set; it says where {service} is, as host:port"]) from None

    @classmethod
    def read(cls, environ: Mapping[str, str], service: str) -> Self:
        """The settings of `service` from its environment and data folder.

        Raises:
            SettingsError: names everything that is missing or malformed, and what to do.
        """
        problems: list[str] = []
        data = Path(environ.get("DISTROML_DATA") or "~/.distroml").expanduser().absolute()
        values: dict[str, object] = {
            "service": service,
            "data": data,
            "token": _read_token(environ, data, problems),
            "deployment": _read_deployment(environ, data, problems),
            "otel": {name: value for name, value in environ.items() if name.startswith("OTEL_")},
            "peers": {peer: value for peer in PEERS if (value := environ.get(f"DISTROML_{peer.upper()}"))},
            "servers": Servers.read(environ, problems),
        }
        _check_profile(data, values["servers"], problems)
        base = {f.name for f in dataclasses.fields(ServiceSettings)}
        hints = typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            own = f.name not in base
            name = f"DISTROML_{service}_{f.name}".upper() if own else f"DISTROML_{f.name}".upper()
            if f.name in values or not (text := environ.get(name)):
                continue
            try:
                values[f.name] = _parse(text, hints[f.name])
            except ValueError as error:
                problems.append(f"{name}={text!r}: {error}")
        if problems:
            raise SettingsError(problems)
        return cls(**values)  # pyright: ignore[reportArgumentType] - checked field by field above


def split_address(text: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`; raises `ValueError`."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is no address; expected HOST:PORT, such as 127.0.0.1:7070")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _wrong_address(name: str, address: str, expose: bool) -> str | None:
    try:
        host, _ = split_address(address)
    except ValueError as error:
        return f"{name}: {error}"
    if is_loopback(host) or expose:
        return None
    return (
        f"{name}: {host} can be reached from other machines, and calls are not encrypted; listen on 127.0.0.1, "
        "or set DISTROML_EXPOSE=1 in a network that you trust"
    )


def _read_token(environ: Mapping[str, str], data: Path, problems: list[str]) -> str:
    path = Path(environ.get("DISTROML_TOKEN_FILE") or data / "token")
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            problems.append(f"{path} can be read by others; it opens every service: `chmod 600 {path}`")
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"no token: {error}; `distroml up` makes the data folder, DISTROML_DATA names it")
        return ""
    if not token.isascii() or not token.isprintable():
        problems.append(f"{path} holds no token; delete it and run `distroml up`, which writes a new one")
    return token


def _read_deployment(environ: Mapping[str, str], data: Path, problems: list[str]) -> str:
    if given := environ.get("DISTROML_DEPLOYMENT"):
        return given
    path = data / "format.json"
    try:
        document: object = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        problems.append(f"no deployment: {path}: {error}; `distroml up` makes the data folder, DISTROML_DATA names it")
        return ""
    stored = cast("dict[str, object]", document) if isinstance(document, dict) else {}
    if stored.get("format") != FORMAT:
        problems.append(
            f"{data} has format {stored.get('format')!r}, this release reads format {FORMAT}; "
            "use the release that made it, or another folder (DISTROML_DATA)"
        )
    deployment = stored.get("deployment")
    if not isinstance(deployment, str) or not deployment:
        problems.append(f"{path} names no deployment")
        return ""
    return deployment


def _check_profile(data: Path, servers: object, problems: list[str]) -> None:
    """A folder whose log is on servers has no other one: without them a service would begin a second log in it."""
    try:
        made = cast("object", json.loads((data / "format.json").read_text()))
    except (OSError, ValueError):
        return
    if isinstance(made, dict) and cast("dict[str, object]", made).get("profile") == "stack" and servers is None:
        problems.append(
            f"{data} was made for real servers (profile stack), and {ETCD} and {NATS} do not say where they are; "
            "set both"
        )


def _parse(text: str, type_: object) -> object:
    if type_ is bool:
        if text.lower() not in ("1", "0", "true", "false"):
            raise ValueError("expected 1 or 0")
        return text.lower() in ("1", "true")
    if type_ is int or type_ is float:
        try:
            return int(text) if type_ is int else float(text)
        except ValueError:
            raise ValueError("expected a whole number" if type_ is int else "expected a number") from None
    return Path(text) if type_ is Path else text
