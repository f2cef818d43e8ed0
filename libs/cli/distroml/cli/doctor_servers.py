"""What `doctor` says of the servers behind the ports: whether each serves this deployment, and what to do if not."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import time
from collections.abc import Iterator
from pathlib import Path

from distroml.cli import objects
from distroml.cli.errors import CliError
from distroml.cli.finding import Finding
from distroml.cli.plane.datafolder import DataFolder, Profile
from distroml.cli.plane.profile import CLOCKS, adopt, survey
from distroml.logstore import LogStoreDown
from distroml.logstore.settings import ENDPOINTS, ElasticSettings
from distroml.objectstore import ObjectStoreError
from distroml.objectstore.location import survey_location
from distroml.rpc import receiver
from distroml.rpc.clockreading import Now, Reading, of_objects, read, trouble
from distroml.rpc.postgres import POSTGRES, PostgresUnfit
from distroml.rpc.postgres import survey as survey_postgres

_STACK = "pip install 'distroml[stack]'"
_CLOCKS = "nothing is lost meanwhile; then run `distroml doctor` again"


def object_store(data: Path, now: Now = time.time) -> Iterator[Finding]:
    """Whether objects can be where `DISTROML_OBJECTS` says, and are no other deployment's."""
    try:
        location = objects.location_of(data)
        yield from _clock("the store of objects", of_objects(location, now))
        survey_location(location, objects.deployment_of(data))
    except CliError:
        return  # the data folder, or its servers, have a finding of their own
    except (ValueError, ObjectStoreError) as error:
        yield Finding(
            "objects", "problem", str(error), "services and workers need it; then run `distroml doctor` again"
        )
        return
    yield Finding("objects", "ok", location)


def servers(data: Path, now: Now = time.time) -> Iterator[Finding]:
    """Whether etcd and NATS serve a folder of the profile `stack`."""
    folder = DataFolder(data)
    try:
        if not (data / "format.json").exists() or folder.profile() is not Profile.STACK:
            return
        troubles = survey(folder, adopt(folder), now)
    except CliError as error:
        yield Finding("servers", "problem", error.message, error.hint)
        return
    if why := troubles.pop(CLOCKS):
        yield Finding(CLOCKS, "problem", why, _CLOCKS)
    for name, why in troubles.items():
        advice = "services wait for it; `make stack` starts one here, and then run `distroml doctor` again"
        yield Finding(name, "problem" if why else "ok", why or "serves this deployment", advice if why else "")


def history(_: Path, now: Now = time.time) -> Iterator[Finding]:
    """Whether history can be where `DISTROML_POSTGRES` says."""
    address = os.environ.get(POSTGRES, "")
    if not address:
        return
    if importlib.util.find_spec("psycopg") is None:
        text = f"{POSTGRES} is set and psycopg is not installed"
        yield Finding("history", "problem", text, _STACK)
        return
    try:
        facts = survey_postgres(address, now)
    except PostgresUnfit as error:
        advice = "telemetry serves without history until then, and catches up afterwards; jobs run on"
        yield Finding("history", "problem", str(error), advice)
        return
    yield Finding("history", "ok", f"PostgreSQL {facts.version} at {facts.place}")
    yield from _clock(f"PostgreSQL at {facts.place}", facts.clock)


def lines(data: Path, now: Now = time.time) -> Iterator[Finding]:
    """Whether lines of workers can go where `DISTROML_ELASTICSEARCH` says."""
    check, advice = "log store", "lines are in workers' files and in telemetry's own store; jobs run on"
    try:
        settings = ElasticSettings.read(
            os.environ, DataFolder(data).deployment() if (data / "format.json").exists() else ""
        )
        if settings is None:
            return
        version, clock = asyncio.run(_version_and_clock(settings, now))
    except CliError:
        return  # the data folder has a finding of its own
    except ModuleNotFoundError as error:
        yield Finding(check, "problem", f"{ENDPOINTS} is set and {error.name} is not installed", _STACK)
    except (ValueError, LogStoreDown) as error:
        yield Finding(check, "problem", str(error), advice)
    else:
        yield Finding(check, "ok", f"Elasticsearch {version} at {', '.join(settings.urls)}")
        yield from _clock("Elasticsearch", clock)


def traces(_: Path) -> Iterator[Finding]:
    """Whether somebody takes spans where `OTEL_EXPORTER_OTLP_ENDPOINT` says."""
    try:
        place = receiver.place(os.environ)
        why = receiver.survey(os.environ) if place else None
    except ValueError as error:
        yield Finding("traces", "problem", str(error), "services do not start with it")
        return
    if why:
        advice = "spans are dropped and counted until then; jobs run on"
        yield Finding("traces", "problem", why, advice)
    elif place:
        yield Finding("traces", "ok", f"spans are taken at {place}")


async def _version_and_clock(settings: ElasticSettings, now: Now) -> tuple[str, Reading | None]:
    from distroml.logstore.elastic import check_server, clock_s, connect

    async with connect(settings, timeout_s=5) as client:
        version, before_s = await check_server(client), now()
        try:
            return version, read(await clock_s(client), before_s, now(), step_s=1.0)
        except LogStoreDown:
            # A user that may not ask for it is good enough for lines.
            return version, None


def _clock(whose: str, reading: Reading | None) -> Iterator[Finding]:
    if reading is not None and (why := trouble(whose, reading)):
        yield Finding(CLOCKS, "problem", why, _CLOCKS)
