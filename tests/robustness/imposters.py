"""Servers that are not what a deployment needs, and real ones behind TLS and passwords, on loopback.

What a real server would say is said by stand-ins only where none of that kind can be had: old versions, servers of
another protocol, an Elasticsearch with security, a receiver of spans.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import trustme

from deploy.stack import Launch, Running, health, running
from deploy.stack.minio import Minio
from deploy.stack.nats import Nats
from deploy.stack.postgres import Postgres
from libs.objectstore.tests.servers import Answer, Request
from libs.statestore.tests.etcds import OldEtcd, TlsEtcd

HOST = "127.0.0.1"
USER, PASSWORD = "root", "opensesame"
BASIC = "Basic cm9vdDpvcGVuc2VzYW1l"
"""USER and PASSWORD as HTTP has them."""


class Authority:
    """Files of an authority, and of a certificate of its own for this host."""

    def __init__(self, folder: Path) -> None:
        made = trustme.CA()
        issued = made.issue_cert(HOST)
        self.ca, self.certificate, self.key = folder / "ca.pem", folder / "public.crt", folder / "private.key"
        made.cert_pem.write_to_path(self.ca)
        issued.cert_chain_pems[0].write_to_path(self.certificate)
        issued.private_key_pem.write_to_path(self.key)
        self.key.chmod(0o600)
        self.folder = folder

    def serving(self) -> ssl.SSLContext:
        """For a server of our own."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


class TlsMinio(Minio):
    """A MinIO whose clients' port speaks TLS."""

    def __init__(self, authority: Authority) -> None:
        self._folder = authority.folder

    def start(self, programs: Path, folder: Path, ports: Mapping[str, int]) -> Launch:
        launch = super().start(programs, folder, ports)
        return replace(launch, command=(*launch.command, "--certs-dir", str(self._folder)))

    def ready(self, ports: Mapping[str, int]) -> bool:
        return health.accepts(ports["client"])


class TlsPostgres(Postgres):
    """A PostgreSQL that can be spoken to by TLS."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    def start(self, programs: Path, folder: Path, ports: Mapping[str, int]) -> Launch:
        launch = super().start(programs, folder, ports)
        files = {"ssl_cert_file": self._authority.certificate, "ssl_key_file": self._authority.key}
        options = (word for name, value in ({"ssl": "on"} | files).items() for word in ("-c", f"{name}={value}"))
        return replace(launch, command=(*launch.command, *options))


@dataclass(frozen=True)
class Secured:
    """Real servers with certificates of `authority`, and what a deployment's environment says of them."""

    etcd: Running
    nats: Running
    minio: Running
    postgres: Running
    authority: Authority

    @property
    def environ(self) -> dict[str, str]:
        ca = str(self.authority.ca)
        database = self.postgres.server.settings(self.postgres.ports)["DISTROML_POSTGRES"]
        return {
            "DISTROML_ETCD_ENDPOINTS": f"https://{HOST}:{self.etcd.port}",
            "DISTROML_ETCD_USER": USER,
            "DISTROML_ETCD_PASSWORD": PASSWORD,
            "DISTROML_ETCD_CA": ca,
            **self.nats.server.settings(self.nats.ports),
            "DISTROML_NATS_SERVERS": f"tls://{HOST}:{self.nats.port}",
            "DISTROML_NATS_CA": ca,
            **self.minio.server.settings(self.minio.ports),
            "AWS_ENDPOINT_URL_S3": f"https://{HOST}:{self.minio.port}",
            "AWS_CA_BUNDLE": ca,
            "DISTROML_POSTGRES": f"{database}?sslmode=verify-full&sslrootcert={ca}",
        }


@contextmanager
def secured(folder: Path) -> Iterator[Secured]:
    """All of them, ready."""
    (folder / "authority").mkdir()
    authority = Authority(folder / "authority")
    pair = f'cert_file: "{authority.certificate}", key_file: "{authority.key}"'
    servers = (
        TlsEtcd("--cert-file", str(authority.certificate), "--key-file", str(authority.key)),
        *(Nats(more=f"tls {{ {pair} }}"), TlsMinio(authority), TlsPostgres(authority)),
    )
    with ExitStack() as begun:
        found = Secured(*(begun.enter_context(running(one, folder / one.name)) for one in servers), authority=authority)
        _guard(found.etcd, authority)
        yield found
        # Its data goes with it: an end in order would write it out first.
        found.postgres.kill()


def _guard(etcd: Running, authority: Authority) -> None:
    """Turn authentication on."""
    place = (f"--endpoints=https://{HOST}:{etcd.port}", f"--cacert={authority.ca}")
    for words in (("user", "add", f"{USER}:{PASSWORD}"), ("user", "grant-role", USER, "root"), ("auth", "enable")):
        subprocess.run([etcd.programs / "etcdctl", *place, *words], check=True, capture_output=True, timeout=30)


# ---- Stand-ins.

Say = Callable[[bytes], bytes]
"""What to say to what came in; nothing ends the connection."""


@asynccontextmanager
async def talking(say: Say, greeting: bytes = b"", tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that greets whoever comes and then answers, at the port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(greeting)
            while data := await reader.read(65536):
                said = say(data)
                writer.write(said)
                await writer.drain()
                if not said:
                    break
        except OSError:
            pass  # the other side has hung up
        finally:
            writer.close()

    server = await asyncio.start_server(serve, HOST, 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def says_nothing(_: bytes) -> bytes:
    """Hangs up at the first word."""
    return b""


def old_nats(data: bytes) -> bytes:
    """NATS 2.11.9, which says so in its greeting."""
    return b"PONG\r\n" if b"PING" in data else b"+OK\r\n"


OLD_NATS = (
    b"INFO "
    + json.dumps({"server_id": "x", "version": "2.11.9", "max_payload": 1 << 20, "headers": True, "proto": 1}).encode()
    + b"\r\n"
)


def old_postgres(data: bytes) -> bytes:
    """PostgreSQL 12.9: no encryption, no password, and ready for a query that it won't get."""
    if len(data) == 8:
        return b"N"
    if data.startswith(b"X"):
        return b""
    version = b"server_version\x0012.9\x00"
    return b"".join(
        kind + struct.pack("!i", 4 + len(body)) + body
        for kind, body in ((b"R", struct.pack("!i", 0)), (b"S", version), (b"Z", b"I"))
    )


@asynccontextmanager
async def old_etcd() -> AsyncIterator[int]:
    """etcd 3.4.23."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((OldEtcd("3.4.23"),))
    port = server.add_insecure_port(f"{HOST}:0")
    await server.start()
    yield port
    await server.stop(0)


@dataclass
class Elastic:
    """What an Elasticsearch with security says to what telemetry and `doctor` ask of it.

    Attributes:
        version: its number; before 9 it knows no request of our client's form.
        flooded: its disks are full.
    """

    version: str = "9.5.3"
    flooded: bool = False

    def __call__(self, asked: Request) -> Answer:
        """Answer one request."""
        path = asked.path
        if _header(asked, "authorization") != BASIC:
            return _json(401, {"error": {"type": "security_exception", "reason": "unable to authenticate"}})
        if "compatible-with=9" in _header(asked, "accept") and not self.version.startswith("9."):
            return _json(400, {"error": {"type": "media_type_header_exception", "reason": "Invalid media-type"}})
        if path == "/":
            return _json(200, {"name": "n", "version": {"number": self.version}})
        if path.startswith("/_cat/health"):
            return _json(200, [{"epoch": str(int(time.time()))}])
        if path.startswith("/_resolve"):
            return _json(200, {"indices": [], "aliases": [], "data_streams": []})
        if asked.method == "GET":
            return _json(404, {"found": False})
        if self.flooded:
            reason = (
                "index [distroml-leases] blocked by: [TOO_MANY_REQUESTS/12/disk usage exceeded flood-stage watermark, "
                "index has read-only-allow-delete block];"
            )
            return _json(429, {"error": {"type": "cluster_block_exception", "reason": reason}})
        return _json(201, {"result": "created"})


def receiver(asked: Request) -> Answer:
    """A receiver of spans that knows USER and nobody else."""
    return Answer(200 if _header(asked, "authorization") == BASIC else 401)


def _header(asked: Request, name: str) -> str:
    return next((value for one, value in asked.headers.items() if one.lower() == name), "")


def _json(status: int, body: Any) -> Answer:
    headers = {"X-Elastic-Product": "Elasticsearch", "Content-Type": "application/json"}
    return Answer(status, json.dumps(body).encode(), headers)
