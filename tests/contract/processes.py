"""Services as processes as users start them, each with a deployment of its own, in which nothing else writes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from distroml.logstore.settings import ElasticSettings
from distroml.rpc import ServiceSettings, Stores, open_stores
from tests.contract.inprocess import TOKEN

START_S = 60.0
STOP_S = 30.0
LATE = "did not answer in time"

Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Served:
    """A service that answers.

    Attributes:
        log_store: the server on which it searches lines; its own store where it is None.
    """

    deployment: str
    endpoint: str
    stores: Stores
    log_store: ElasticSettings | None


@dataclass
class Processes:
    """Starts a service when it is first asked for, and with it the relay where `servers` keep its stores.

    Attributes:
        folder: below it each service has its data folder.
        servers: the environment that names the servers; empty where stores are in data folders.
    """

    folder: Path
    servers: Mapping[str, str] = field(default_factory=dict[str, str])
    _endpoints: dict[str, str] = field(default_factory=dict[str, str])
    _running: dict[str, Process] = field(default_factory=dict[str, Process])

    @asynccontextmanager
    async def serving(self, service: str) -> AsyncIterator[Served]:
        """The service, and this test's own handles on what it keeps."""
        data = self.folder / service
        if not data.exists():
            _prepare(data, f"dep-{service}")
        environ = self._environ(service)
        # Clients of S3 find their credentials in the environment.
        with pytest.MonkeyPatch.context() as patch:
            for name in self.servers:
                patch.setenv(name, environ[name])
            settings = ServiceSettings.read(environ, service)
            async with open_stores(settings) as stores:
                if service not in self._endpoints:
                    self._start_all(service, environ)
                await self._until_serving(service)
                log_store = ElasticSettings.read(environ, settings.deployment)
                yield Served(settings.deployment, self._endpoints[service], stores, log_store)

    def _environ(self, service: str) -> dict[str, str]:
        environ = {**os.environ, **self.servers, "DISTROML_DATA": str(self.folder / service), "DISTROML_DRAIN_S": "1"}
        if objects := environ.get("DISTROML_OBJECTS"):
            environ["DISTROML_OBJECTS"] = f"{objects}/{service}"
        return environ

    def _start_all(self, service: str, environ: Mapping[str, str]) -> None:
        if self.servers:
            self._running[f"relay of {service}"] = self._start("relay", service, environ)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._endpoints[service] = f"127.0.0.1:{probe.getsockname()[1]}"
        self._running[service] = self._start(service, service, {**environ, "DISTROML_LISTEN": self._endpoints[service]})

    def _start(self, module: str, service: str, environ: Mapping[str, str]) -> Process:
        data = self.folder / service
        with (data / f"{module}.log").open("ab") as log:
            command = [sys.executable, "-m", f"distroml.{module}"]
            return subprocess.Popen(command, env=environ, cwd=data, stdout=log, stderr=log)

    def _log(self, name: str) -> str:
        module, _, service = name.partition(" of ")
        return (self.folder / (service or module) / f"{module}.log").read_text("utf-8", "replace")

    async def _until_serving(self, service: str) -> None:
        async with grpc.aio.insecure_channel(self._endpoints[service]) as channel, asyncio.timeout(START_S):
            stub = health_pb2_grpc.HealthStub(channel)
            while True:
                assert self._running[service].poll() is None, self._log(service)
                try:
                    await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.05)
                else:
                    return

    def close(self) -> None:
        """End all of them by SIGTERM; raises `AssertionError` where one does not drain as it should."""
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        wrong: list[str] = []
        for name, process in self._running.items():
            try:
                code = process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                code = None
            # A server that has no time to answer, on a busy machine, ends a task, which is begun again.
            crashes = [line for line in self._log(name).splitlines() if "Traceback" in line and LATE not in line]
            if code != 0 or crashes:
                wrong.append(f"{name} ended with {code}:\n{self._log(name)[-4000:]}")
        assert not wrong, "\n".join(wrong)


def _prepare(data: Path, deployment: str) -> None:
    data.mkdir()
    (data / "format.json").write_text(json.dumps({"format": 1, "deployment": deployment}))
    token = data / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
