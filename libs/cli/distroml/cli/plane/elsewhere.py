"""A control plane that no supervisor on a data folder runs, as in containers: named by the environment.

The names are those by which services find one another: `DISTROML_SCHEDULER`, `DISTROML_RENDEZVOUS`,
`DISTROML_CHECKPOINT` and `DISTROML_TELEMETRY`, each HOST:PORT, and `DISTROML_TOKEN_FILE`; `DISTROML_DASHBOARD` is the
dashboard's URL.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from distroml.cli.errors import UsageError
from distroml.cli.plane.datafolder import Endpoints
from distroml.rpc.settings import PEERS


@dataclasses.dataclass(frozen=True, slots=True)
class Elsewhere:
    """Where its services are, and what opens them."""

    endpoints: Endpoints
    token: str = dataclasses.field(repr=False)


def named(environ: Mapping[str, str]) -> Elsewhere | None:
    """What the environment names; None where it names no service, and so the data folder says where they are.

    Raises:
        UsageError: a part of it is missing.
    """
    services = {name: address for name in PEERS if (address := environ.get(f"DISTROML_{name.upper()}"))}
    if not services:
        return None
    missing = [f"DISTROML_{name.upper()}" for name in PEERS if name not in services]
    if not (file := environ.get("DISTROML_TOKEN_FILE")):
        missing.append("DISTROML_TOKEN_FILE")
    if missing:
        given = ", ".join(f"DISTROML_{name.upper()}" for name in services)
        raise UsageError(
            f"{given} says where a control plane is, but {', '.join(missing)} is not set",
            hint="set all of them, or none to use the control plane of the data folder",
        )
    try:
        token = Path(str(file)).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"DISTROML_TOKEN_FILE: {file} cannot be read: {error}") from error
    dashboard = environ.get("DISTROML_DASHBOARD", "")
    return Elsewhere(Endpoints(services=services, metrics={}, dashboard=dashboard, supervisor=0), token)
