"""Which servers keep the deployment's state and log, as the environment names them; without them all is embedded.

    DISTROML_ETCD_ENDPOINTS  http://HOST:2379, several with commas; https:// for TLS
    DISTROML_NATS_SERVERS    nats://HOST:4222, several with commas; tls:// for TLS

and for each, with `ETCD` or `NATS` for the first word: `DISTROML_ETCD_USER`, `_PASSWORD`, and the files `_CA`, `_CERT`
and `_KEY`. The objects of such a deployment are where `DISTROML_OBJECTS` says, in S3 as soon as it is on several
machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

ETCD: Final = "DISTROML_ETCD_ENDPOINTS"
NATS: Final = "DISTROML_NATS_SERVERS"
PREFIXES: Final = ("DISTROML_ETCD_", "DISTROML_NATS_")
"""What the names of all these variables begin with."""

_SCHEMES = {ETCD: ("http", "https"), NATS: ("nats", "tls")}
_DETAILS = ("USER", "PASSWORD", "CA", "CERT", "KEY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Addresses of one kind of server, any of which will do, and who we are there."""

    addresses: tuple[str, ...]
    user: str = ""
    password: str = field(default="", repr=False)
    ca: Path | None = None
    """Certificates to trust."""
    cert: Path | None = None
    """Our own certificate."""
    key: Path | None = None
    """Its private key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """etcd, which holds state and takes commits, and NATS, whose JetStream holds the recent part of the log."""

    etcd: Access
    nats: Access

    @classmethod
    def read(cls, environ: Mapping[str, str], problems: list[str]) -> Servers | None:
        """The servers of an environment, None where it names none; what is wrong is added to `problems`."""
        etcd, nats = _access(environ, ETCD, problems), _access(environ, NATS, problems)
        if etcd is None and nats is None:
            return None
        for missing, there, why in (
            (etcd is None and NATS, ETCD, "decisions are committed there, before NATS hears of them"),
            (nats is None and ETCD, NATS, "what is committed in etcd is published there"),
        ):
            if missing:
                problems.append(f"{missing} is set, but not {there}: {why}; set both, or none of them to be embedded")
        return cls(etcd=etcd, nats=nats) if etcd and nats else None


def _access(environ: Mapping[str, str], name: str, problems: list[str]) -> Access | None:
    """One kind of server by the name of its addresses' variable."""
    prefix = name[: name.index("_", len("DISTROML_")) + 1]
    found = {detail: value for detail in _DETAILS if (value := environ.get(prefix + detail))}
    addresses = tuple(part.strip() for part in environ.get(name, "").split(",") if part.strip())
    if not addresses:
        if found:
            given = ", ".join(prefix + detail for detail in found)
            problems.append(f"{given} is set, but not {name}, which says where the server is")
        return None
    before = len(problems)
    problems += [problem for address in addresses if (problem := _wrong_address(name, address))]
    if len({urlsplit(address).scheme for address in addresses}) > 1 and len(problems) == before:
        problems.append(f"{name} mixes addresses with and without TLS: {', '.join(addresses)}")
    for one, other in (("USER", "PASSWORD"), ("CERT", "KEY")):
        if (one in found) != (other in found):
            given, lacking = (one, other) if one in found else (other, one)
            problems.append(f"{prefix}{given} is set, but not {prefix}{lacking}: they belong together")
    files = {detail: Path(found[detail]) for detail in ("CA", "CERT", "KEY") if detail in found}
    for detail, path in files.items():
        try:
            path.read_bytes()
        except OSError as error:
            problems.append(f"{prefix}{detail}: {path} cannot be read: {error.strerror}")
    if files and all(urlsplit(address).scheme == "http" for address in addresses):
        given = ", ".join(prefix + detail for detail in files)
        problems.append(f"{given} is set, but {name} names http://, which is not encrypted: name it https://")
    return Access(
        addresses=addresses,
        user=found.get("USER", ""),
        password=found.get("PASSWORD", ""),
        ca=files.get("CA"),
        cert=files.get("CERT"),
        key=files.get("KEY"),
    )


def _wrong_address(name: str, address: str) -> str | None:
    schemes = _SCHEMES[name]
    parts = urlsplit(address)
    if parts.username is not None or parts.password is not None:
        # Not with the address itself: it holds a secret.
        user = name[: name.index("_", len("DISTROML_"))]
        return f"{name}: an address holds a user or a password; give them as {user}_USER and {user}_PASSWORD"
    try:
        fits = parts.scheme in schemes and bool(parts.hostname) and not parts.path.strip("/") and parts.port != 0
    except ValueError:
        fits = False
    if fits:
        return None
    return f"{name}: {address!r} is no address; expected {' or '.join(f'{scheme}://HOST:PORT' for scheme in schemes)}"
