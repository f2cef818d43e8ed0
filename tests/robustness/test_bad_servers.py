"""Each kind of bad server, and what `distroml doctor` and the health of a service say of it: what, why, what to do.

Servers are real ones behind TLS and passwords where there is such a one (`imposters`).
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from deploy.stack import Launch, running
from deploy.stack.etcd import Etcd
from deploy.stack.nats import Nats
from distroml.cli.doctor import control_plane
from distroml.cli.plane.datafolder import DataFolder, Endpoints, Profile
from distroml.eventstore.conformance import append, commit_of
from distroml.eventstore.jetstream import JetStreamLog
from distroml.eventstore.jetstream.subjects import stream_name
from distroml.logstore.settings import ENDPOINTS
from distroml.objectstore import ObjectStoreRefused
from distroml.objectstore.location import open_location
from distroml.rpc import open_stores
from distroml.rpc.postgres import POSTGRES
from distroml.statestore import StateStore, StateStoreFull
from distroml.telemetry import clocks
from libs.objectstore.tests.servers import answering
from tests.robustness import imposters as bad
from tests.robustness.deployed import Deployment, Environ, jetstream, until_told, until_well
from tests.robustness.imposters import HOST, PASSWORD, USER, Authority, Elastic, Secured, secured

OTLP = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured(tmp_path_factory.mktemp("secured")) as found:
        yield found


@pytest.fixture
async def deployment(there: Secured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Deployment]:
    folder = DataFolder(tmp_path / "data")
    folder.prepare(Profile.STACK)
    database = f"d{secrets.token_hex(6)}"
    with psycopg.connect(there.environ[POSTGRES], autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
    made = Deployment(folder, there, tmp_path, monkeypatch)
    async with made.closing as closing:
        made.change(
            there.environ
            | {
                POSTGRES: there.environ[POSTGRES].replace("/postgres?", f"/{database}?"),
                "DISTROML_OBJECTS": f"s3://b-{secrets.token_hex(6)}",
                ENDPOINTS: closing.enter_context(answering(Elastic())),
                f"{ENDPOINTS}_USER": USER,
                f"{ENDPOINTS}_PASSWORD": PASSWORD,
                OTLP: closing.enter_context(answering(bad.receiver)),
                "OTEL_EXPORTER_OTLP_HEADERS": f"Authorization={bad.BASIC.replace(' ', '%20')}",
                "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
                "OTEL_BSP_SCHEDULE_DELAY": "50",
            }
        )
        open_location(made.location, deployment=folder.deployment()).close()
        yield made


async def wrong_credentials(one: Deployment) -> Environ:
    return {
        "DISTROML_ETCD_PASSWORD": "guess",
        "DISTROML_NATS_PASSWORD": "guess",
        "AWS_SECRET_ACCESS_KEY": "guess",
        POSTGRES: re.sub(r":[^:@]+@", ":guess@", os.environ[POSTGRES]),
        f"{ENDPOINTS}_PASSWORD": "guess",
        "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=guess",
    }


async def certificates_of_strangers(one: Deployment) -> Environ:
    (one.scratch / "strangers").mkdir()
    strangers = str(Authority(one.scratch / "strangers").ca)
    port = await one.closing.enter_async_context(bad.talking(bad.says_nothing, tls=one.there.authority.serving()))
    return {
        "DISTROML_ETCD_CA": strangers,
        "DISTROML_NATS_CA": strangers,
        "AWS_CA_BUNDLE": strangers,
        POSTGRES: re.sub(r"sslrootcert=.*", f"sslrootcert={strangers}", os.environ[POSTGRES]),
        ENDPOINTS: f"https://{HOST}:{port}",
        f"{ENDPOINTS}_CA": strangers,
        OTLP: f"https://{HOST}:{port}",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": strangers,
    }


async def another_protocol(one: Deployment) -> Environ:
    mail = bad.talking(bad.says_nothing, greeting=b"220 mail.example.org ready\r\n")
    place = f"{HOST}:{await one.closing.enter_async_context(mail)}"
    return {
        "DISTROML_ETCD_ENDPOINTS": f"http://{place}",
        "DISTROML_ETCD_CA": None,
        "DISTROML_NATS_SERVERS": f"nats://{place}",
        "DISTROML_NATS_CA": None,
        "AWS_ENDPOINT_URL_S3": f"http://{place}",
        POSTGRES: f"postgresql://{USER}:{PASSWORD}@{place}/jobs",
        ENDPOINTS: f"http://{place}",
        OTLP: f"http://{place}",
    }


async def unsupported_versions(one: Deployment) -> Environ:
    etcd = await one.closing.enter_async_context(bad.old_etcd())
    nats = await one.closing.enter_async_context(bad.talking(bad.old_nats, greeting=bad.OLD_NATS))
    postgres = await one.closing.enter_async_context(bad.talking(bad.old_postgres))
    return {
        "DISTROML_ETCD_ENDPOINTS": f"http://{HOST}:{etcd}",
        **dict.fromkeys(("DISTROML_ETCD_USER", "DISTROML_ETCD_PASSWORD", "DISTROML_ETCD_CA")),
        "DISTROML_NATS_SERVERS": f"nats://{HOST}:{nats}",
        "DISTROML_NATS_CA": None,
        POSTGRES: f"postgresql://{USER}:{PASSWORD}@{HOST}:{postgres}/jobs",
        ENDPOINTS: one.closing.enter_context(answering(Elastic(version="8.19.3"))),
    }


async def of_another_deployment(one: Deployment) -> Environ:
    async with jetstream(one) as connection:
        stream = stream_name(one.folder.deployment())
        await connection.client.jetstream().add_stream(name=stream, subjects=["theirs.>"])
    bucket = f"s3://b-{secrets.token_hex(6)}"
    open_location(f"{bucket}/{one.folder.deployment()}", deployment="dep-other").close()
    return {"DISTROML_OBJECTS": bucket}


async def fill(state: StateStore) -> None:
    for n in range(100):
        await state.cas(f"k{n}", b"x" * (256 << 10), expected=0)


async def a_full_etcd(one: Deployment) -> Environ:
    small = running(Etcd(options=("--quota-backend-bytes", str(2 << 20))), one.scratch / "small")
    port = one.closing.enter_context(small).port
    environ = {"DISTROML_ETCD_ENDPOINTS": f"http://{HOST}:{port}"}
    environ |= dict.fromkeys(("DISTROML_ETCD_USER", "DISTROML_ETCD_PASSWORD", "DISTROML_ETCD_CA"))
    one.change(environ)
    async with open_stores(one.settings) as stores:
        with pytest.raises(StateStoreFull, match="nothing was written"):
            await fill(stores.state)
    return environ


ROWS: Mapping[Callable[[Deployment], Awaitable[Environ]], Mapping[str, str]] = {
    wrong_credentials: {
        "etcd": "does not take this user and password",
        "nats": "Authorization Violation.*check the addresses, the password",
        "objects": "does not let us .*check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "history": "refuses our user or password; put the right one into DISTROML_POSTGRES",
        "log store": r"refuses the credentials \(401\): check DISTROML_ELASTICSEARCH_USER",
        "traces": r"refuses our credentials \(401\); OTEL_EXPORTER_OTLP_HEADERS",
    },
    certificates_of_strangers: {
        "etcd": r"no authority that we trust .*\(DISTROML_ETCD_CA\)",
        "nats": "certificate verify failed.*check .* the certificates",
        "objects": "certificate verify failed.*AWS_CA_BUNDLE",
        "history": "certificate verify failed.*sslrootcert",
        "log store": "certificate of Elasticsearch is refused.*check DISTROML_ELASTICSEARCH_CA",
        "traces": "certificate verify failed.*OTEL_EXPORTER_OTLP_CERTIFICATE",
    },
    another_protocol: {
        "etcd": "what answers there is no etcd",
        "nats": "empty response from server when expecting INFO.*check the addresses",
        "objects": "speaks no HTTP .*AWS_ENDPOINT_URL_S3",
        "history": "what answers there is no PostgreSQL server; check host and port in DISTROML_POSTGRES",
        "log store": "speaks another protocol; check the port",
        "traces": "speaks another protocol; check host and port in OTEL_EXPORTER_OTLP_ENDPOINT",
    },
    unsupported_versions: {
        "etcd": "is etcd 3.4.23, and at least 3.5 is needed: upgrade it",
        "nats": r"v2.11.9 at .* is too old or unknown: 2.12 or newer is needed.*upgrade nats-server",
        "history": "PostgreSQL 12.9 is too old: 13 or newer is needed; upgrade the server",
        "log store": "Elasticsearch 8.19.3 is not supported: DistroML needs Elasticsearch 9",
    },
    of_another_deployment: {
        "nats": "belongs to something else, this is dep-.*give this deployment another NATS account",
        "objects": "belongs to the deployment dep-other, this one is dep-.*give each its own bucket or prefix",
    },
    a_full_etcd: {"etcd": "has reached its quota and takes no commit: compact and defragment it"},
}
"""What is bad, and for each server concerned what is to be said of it, by its check and its part of health."""


@pytest.mark.parametrize("bad_input", ROWS, ids=lambda row: row.__name__)
async def test_doctor_and_health_say_what_is_bad_and_nothing_else(
    deployment: Deployment, bad_input: Callable[[Deployment], Awaitable[Environ]]
) -> None:
    said = ROWS[bad_input]
    deployment.change(await bad_input(deployment))
    async with deployment.service() as service:
        told, found = await asyncio.gather(until_told(service, said), deployment.doctor())
    problems = {check: one for check, (one, *_) in found.items() if one.verdict == "problem"}
    assert problems.keys() == said.keys(), problems
    for check, words in said.items():
        assert re.search(words, problems[check].text), problems[check]
        assert problems[check].advice
    assert "guess" not in f"{told}{found}"
    if "objects" in said and "belongs" in said["objects"]:
        # It does not begin to write there either.
        with pytest.raises(ObjectStoreRefused, match=said["objects"]):
            async with open_stores(replace(deployment.settings, objects=deployment.location)):
                pass


async def test_clocks_15_minutes_apart_are_told_by_whose_they_are(deployment: Deployment) -> None:
    assert {one.verdict for found in (await deployment.doctor()).values() for one in found} == {"ok"}
    async with jetstream(deployment) as connection:
        # Before there is a stream, NATS does not say its time.
        await JetStreamLog(connection, deployment.folder.deployment(), keep_bytes=1 << 20).tail()
    deployment.now = lambda: time.time() - 900
    ahead = "1[45] min \\d+ s ahead of this machine's: have both set by NTP"
    on_servers = f"NATS is {ahead}.*etcd at .* is {ahead}"
    elsewhere = f"PostgreSQL.* is {ahead}.*Elasticsearch is {ahead}"
    said = {"clocks": f"{on_servers}.*the store of objects is {ahead}", clocks.PART: elsewhere}
    async with deployment.service() as service:
        _, found = await asyncio.gather(until_told(service, said), deployment.doctor())
    text = " ".join(one.text for one in found.pop("clocks"))
    assert re.search(f"{on_servers}.*the store of objects is {ahead}.*{elsewhere}", text), text
    assert {one.verdict for several in found.values() for one in several} == {"ok"}


class LimitedNats(Nats):
    """A NATS that may store so much."""

    max_file = "512KB"

    def start(self, programs: Path, folder: Path, ports: Mapping[str, int]) -> Launch:
        limit = f"max_file: {self.max_file}"
        self._more = f'jetstream {{ store_dir: "{folder / "data"}", sync_interval: always, {limit} }}'
        return super().start(programs, folder, ports)


async def test_where_no_more_may_be_stored_it_is_told_and_nothing_is_lost(deployment: Deployment) -> None:
    disks = Elastic(flooded=True)
    limited = LimitedNats()
    small = deployment.closing.enter_context(running(limited, deployment.scratch / "small"))
    deployment.change(small.server.settings(small.ports))
    deployment.change({"DISTROML_NATS_CA": None, ENDPOINTS: deployment.closing.enter_context(answering(disks))})
    said = {
        "publishing": "may not store more.*raise max_file.*DISTROML_RELAY_KEEP_BYTES.*commits wait in the outbox",
        "log store": "disk usage exceeded.*make room on its disks",
    }
    folder = deployment.folder
    async with deployment.service(relays=True) as service, open_stores(deployment.settings) as stores:
        assert stores.servers is not None
        for version in range(3):
            await stores.events.commit(commit_of(append("s/a/1", version)))
        await until_told(service, said)
        lock = folder.lock()
        try:
            metrics = {"relay": f"{HOST}:{service.metrics_port}"}
            folder.write_endpoints(
                Endpoints(services={"relay": service.endpoint}, metrics=metrics, dashboard="", supervisor=os.getpid())
            )
            found = await asyncio.to_thread(lambda: [one for one in control_plane(folder.path) if one.check == "relay"])
        finally:
            os.close(lock)
        warned = {one.text.partition(": ")[0]: one.text for one in found if one.verdict == "warning"}
        assert warned.keys() == said.keys()
        assert all(re.search(words, warned[part]) for part, words in said.items())
        limited.max_file, disks.flooded = "2GB", False
        await asyncio.to_thread(small.restart)
        await until_well(service)
        info = await stores.servers.log.info()
        assert info is not None
        assert info.state.messages == 3
