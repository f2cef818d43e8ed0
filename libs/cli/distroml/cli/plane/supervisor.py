"""Keeps the services of one data folder running: `python -m distroml.cli.plane.supervisor`.

A service that ends is started again with back-off; one that is silent for `SILENT_S` is killed first. The
supervisor decides nothing else: every fact lives in the log, so ending it at any time loses nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from distroml.cli.errors import CliError
from distroml.cli.plane.datafolder import DataFolder, Endpoints
from distroml.cli.plane.failure import FAILURE
from distroml.cli.plane.ports import HOST, dashboard_port, free_ports, is_free
from distroml.cli.plane.process import ServiceProcess
from distroml.cli.plane.profile import environment_of
from distroml.cli.plane.targets import Targets
from distroml.observability import logger, setup

log = logger(__name__)

HealthCheck = grpc.aio.UnaryUnaryMultiCallable[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]
TICK_S = 0.25
HEALTH_EVERY_S = 1.0
SILENT_S = 10.0
# The first answer may take long on a cold machine: imports come from disk.
START_S = 120.0
STOP_S = 20.0
# A service that ends this often before its first good answer will not come up by itself.
HOPELESS = 3


class Supervisor:
    """The processes of one control plane."""

    def __init__(
        self, folder: DataFolder, *, slots: int | None, dashboard: int | None, environ: Mapping[str, str]
    ) -> None:
        self._folder = folder
        self._deployment = folder.prepare()
        self._names = folder.services()
        self._lock = folder.lock()
        self._token = folder.token()
        self._stopping = asyncio.Event()
        self._hopeless: ServiceProcess | None = None
        self._endpoints = self._choose_endpoints(dashboard)
        # Until `run` says so again nobody listens there.
        self._folder.forget_endpoints()
        common = {
            **environment_of(folder, environ),
            "DISTROML_DATA": str(folder.path),
            "DISTROML_DEPLOYMENT": self._deployment,
            **{f"DISTROML_{name.upper()}": self._endpoints.services[name] for name in self._names},
            "DISTROML_DASHBOARD_LISTEN": self._endpoints.dashboard.removeprefix("http://"),
        }
        if slots is not None:
            common["DISTROML_SLOTS"] = str(slots)
        self._targets = Targets(folder.path, self._deployment, common)
        self._services = [
            ServiceProcess(
                name,
                {
                    **common,
                    "DISTROML_LISTEN": self._endpoints.services[name],
                    "DISTROML_METRICS_LISTEN": self._endpoints.metrics[name],
                },
                folder.logs / f"{name}.log",
            )
            for name in self._names
        ]

    def _choose_endpoints(self, dashboard: int | None) -> Endpoints:
        # The ports of the last run, where they are free: agents and workers that outlived it find us again.
        old = self._folder.endpoints()
        wanted = [f"{kind}:{name}" for kind in ("services", "metrics") for name in self._names]
        chosen: dict[str, str] = {}
        if old is not None:
            for key in wanted:
                kind, name = key.split(":")
                table = old.services if kind == "services" else old.metrics
                address = table.get(name, "")
                if address and is_free(int(address.rpartition(":")[2])):
                    chosen[key] = address
        rest = [key for key in wanted if key not in chosen]
        chosen |= {key: f"{HOST}:{port}" for key, port in zip(rest, free_ports(len(rest)), strict=True)}
        return Endpoints(
            services={name: chosen[f"services:{name}"] for name in self._names},
            metrics={name: chosen[f"metrics:{name}"] for name in self._names},
            dashboard=f"http://{HOST}:{dashboard_port(dashboard)}",
            supervisor=os.getpid(),
        )

    async def run(self) -> None:
        """Start everything, watch it until `stop`, end it in order."""
        try:
            self._targets.write(self._endpoints.metrics)
        except OSError as error:
            log.warning("Prometheus is not told where the services are", error=str(error))
        log.info("starting", data=str(self._folder.path), deployment=self._deployment)
        for service in self._services:
            service.start(time.monotonic())
        watchers = [asyncio.create_task(self._watch(service)) for service in self._services]
        announce = asyncio.create_task(self._announce())
        await self._stopping.wait()
        for task in (*watchers, announce):
            task.cancel()
        await asyncio.gather(*watchers, announce, return_exceptions=True)
        await self._end()
        if self._hopeless is not None:
            name = self._hopeless.name
            raise CliError(f"{name} does not start: {self._hopeless.last_words()}", hint=f"see {self._hopeless.log}")

    def stop(self) -> None:
        """Ask `run` to end."""
        self._stopping.set()

    async def _announce(self) -> None:
        while not all(service.healthy_at for service in self._services):
            await asyncio.sleep(0.05)
        self._folder.write_endpoints(self._endpoints)
        log.info("ready", dashboard=self._endpoints.dashboard)

    async def _watch(self, service: ServiceProcess) -> None:
        """Restart `service` when it ended or fell silent.

        Its silence is judged by answers alone: a watcher that was itself stopped for a while asks first.
        """
        address = self._endpoints.services[service.name]
        last_look = time.monotonic()
        async with grpc.aio.insecure_channel(address, options=[("grpc.max_reconnect_backoff_ms", 1000)]) as channel:
            # The plain method: the package's own stub class is untyped.
            check = cast(
                "HealthCheck",
                channel.unary_unary(  # pyright: ignore[reportUnknownMemberType]
                    "/grpc.health.v1.Health/Check",
                    request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                    response_deserializer=health_pb2.HealthCheckResponse.FromString,
                ),
            )
            while True:
                now = time.monotonic()
                if now - last_look > SILENT_S / 3 and service.process is not None:
                    service.started_at = now
                last_look = now
                if (code := service.ended(now)) is not None:
                    log.warning("service ended", service=service.name, code=code, restart_in_s=service.not_before - now)
                if service.failures >= HOPELESS and not service.ever_healthy:
                    self._hopeless = service
                    self.stop()
                    return
                if service.process is None:
                    if now >= service.not_before:
                        service.start(now)
                    await asyncio.sleep(TICK_S / 5)
                    continue
                if await self._healthy(check):
                    service.healthy_at = time.monotonic()
                    service.ever_healthy = True
                limit = SILENT_S if service.healthy_at else START_S
                if service.silent_for(time.monotonic()) > limit:
                    log.warning("service is silent: killed", service=service.name, silent_s=limit)
                    service.signal(signal.SIGKILL)
                await asyncio.sleep(HEALTH_EVERY_S if service.healthy_at else TICK_S)

    async def _healthy(self, check: HealthCheck) -> bool:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.TimeoutError):
            answer = await check(
                health_pb2.HealthCheckRequest(),
                timeout=2.0,
                metadata=(("authorization", f"Bearer {self._token}"),),
            )
            return answer.status == health_pb2.HealthCheckResponse.SERVING
        return False

    async def _end(self) -> None:
        """End the agent with its workers first, while the services can still record what happens."""
        log.info("stopping")
        agent = next(service for service in self._services if service.name == "agent")
        down = self._folder.path / "node" / "down"
        down.parent.mkdir(exist_ok=True)
        down.touch()
        for group in ([agent], [service for service in self._services if service is not agent]):
            for service in group:
                service.signal(signal.SIGTERM)
                # A stopped process does not see SIGTERM before it goes on.
                service.signal(signal.SIGCONT)
            deadline = time.monotonic() + STOP_S
            while any(s.process and s.process.poll() is None for s in group) and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            for service in group:
                if service.process and service.process.poll() is None:
                    log.warning("service did not end: killed", service=service.name)
                    service.signal(signal.SIGKILL)
                    await asyncio.to_thread(service.process.wait)
            if group == [agent]:
                # Nothing is left to end where the agent was alive; one that was dead or killed leaves its workers.
                await self._end_workers(agent)
        down.unlink(missing_ok=True)
        self._targets.forget()
        log.info("stopped")

    async def _end_workers(self, agent: ServiceProcess) -> None:
        """End what the agent's holders still run, by the agent's own command, for no agent has to be there for it."""
        with agent.log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "distroml.agent", "--end-workers"),
                env=dict(agent.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            async with asyncio.timeout(STOP_S):
                code = await process.wait()
        except TimeoutError:
            process.kill()
            code = await process.wait()
        if code:
            log.warning("workers may be left: the agent's command to end them failed", code=code, log=str(agent.log))


async def _main(arguments: argparse.Namespace) -> None:
    supervisor = Supervisor(
        DataFolder(Path(arguments.data)),
        slots=arguments.slots,
        dashboard=arguments.dashboard_port,
        environ=os.environ,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    await supervisor.run()


def main() -> None:
    """Run the supervisor of one data folder in the foreground."""
    parser = argparse.ArgumentParser(prog="distroml-supervisor")
    parser.add_argument("--data", required=True)
    parser.add_argument("--slots", type=int)
    parser.add_argument("--dashboard-port", type=int)
    arguments = parser.parse_args()
    setup("supervisor")
    try:
        asyncio.run(_main(arguments))
    except CliError as error:
        log.error("failed", **{FAILURE: error.message, "hint": error.hint})
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
