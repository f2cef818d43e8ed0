"""What a control plane runs on: all in its data folder (`embedded`), or real servers (`stack`).

The servers are those that the environment names, else those of `.distroml/stack/environment` in the working folder,
which `make stack` writes. Two control planes may share servers: keys, subjects and objects begin with the deployment's
id.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from distroml.cli.errors import CliError, UsageError
from distroml.cli.plane.datafolder import DataFolder, Profile
from distroml.objectstore import ObjectStoreError
from distroml.objectstore.location import open_location
from distroml.rpc.clockreading import Now
from distroml.rpc.servers import ETCD, NATS, PREFIXES, Servers

FILE: Final = Path(".distroml/stack/environment")
OBJECTS: Final = "DISTROML_OBJECTS"
CLOCKS: Final = "clocks"
"""Among what `survey` finds: they keep nothing from starting."""
_ADVICE = (
    "start them with `make stack`, or set DISTROML_ETCD_*, DISTROML_NATS_* and DISTROML_OBJECTS as the README says"
)


def environment_of(folder: DataFolder, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment in which this folder's services run; raises `UsageError` where its servers are not named."""
    if folder.profile() is Profile.EMBEDDED:
        return {name: value for name, value in environ.items() if not name.startswith(PREFIXES)}
    found = _named(environ)
    servers_in(found)
    if location := found.get(OBJECTS):
        path, mark, options = location.partition("?")
        found[OBJECTS] = f"{path.rstrip('/')}/{folder.deployment()}{mark}{options}"
    return found


def servers_in(environ: Mapping[str, str]) -> Servers:
    """The servers that an environment names; raises `UsageError` where it names none, or names them wrongly."""
    problems: list[str] = []
    servers = Servers.read(environ, problems)
    if problems:
        raise UsageError("; ".join(problems), hint=_ADVICE)
    if servers is None:
        raise UsageError(f"neither the environment nor {FILE} says where etcd and NATS are", hint=_ADVICE)
    return servers


def check(folder: DataFolder) -> None:
    """Find out that every server serves this folder's deployment, and claim its place for objects.

    Raises:
        UsageError: the servers are not named.
        CliError: names every server that does not serve us, and why.
    """
    if folder.profile() is Profile.STACK:
        environ = adopt(folder)
        troubles = {name: why for name, why in survey(folder, environ).items() if why and name != CLOCKS}
        location = environ.get(OBJECTS, (folder.path / "objects").as_uri())
        try:
            open_location(location, deployment=folder.deployment()).close()
        except (ValueError, ObjectStoreError) as error:
            troubles["objects"] = str(error)
        if troubles:
            raise CliError("\n".join(f"{name}: {why}" for name, why in troubles.items()), hint=_ADVICE)


def survey(folder: DataFolder, environ: Mapping[str, str], now: Now = time.time) -> dict[str, str | None]:
    """What keeps etcd and NATS from serving this folder's deployment; raises `UsageError`."""
    try:
        from distroml.rpc import serverstores
    except ModuleNotFoundError as error:
        raise UsageError(
            f"etcd and NATS need the package {error.name}, which is not installed", hint="pip install 'distroml[stack]'"
        ) from error
    return asyncio.run(serverstores.survey(servers_in(environ), folder.deployment(), now))


def adopt(folder: DataFolder) -> dict[str, str]:
    """As `environment_of`, for this process too: clients find their credentials where they always look."""
    if folder.profile() is Profile.STACK:
        # As it was named: the place of objects becomes the deployment's own for services, not here.
        os.environ.update(_named(os.environ))
    return environment_of(folder)


def _named(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment, with the servers of the file where it names none itself."""
    return dict(environ) if environ.get(ETCD) or environ.get(NATS) else {**environ, **_read(FILE)}


def _read(path: Path) -> dict[str, str]:
    """Variables of a file of `export NAME=VALUE` lines; none where there is no file."""
    try:
        words = shlex.split(path.read_text("utf-8"), comments=True)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}", hint="`make stack` writes it anew") from error
    return dict(word.split("=", 1) for word in words if "=" in word)
