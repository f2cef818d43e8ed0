"""Second replicas of services, who take their roles over while the first ones stand still."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from distroml.cli.plane.ports import free_ports
from distroml.statestore.etcd import EtcdClient, EtcdSettings, open_state_store
from tests.e2e.conftest import Plane, wait_for
from tests.robustness.stack import REPLICATED, environment_of_process, metrics_answer


@contextmanager
def replicas(plane: Plane) -> Iterator[Mapping[str, str]]:
    """One more process of each replicated service, ready; name -> address of each."""
    addresses: dict[str, str] = {}
    with ExitStack() as begun:
        metrics: dict[str, str] = {}
        for service in REPLICATED:
            listen, told = (f"127.0.0.1:{port}" for port in free_ports(2))
            environ = environment_of_process(plane.pid(service))
            environ |= {"DISTROML_LISTEN": listen, "DISTROML_METRICS_LISTEN": told}
            with (plane.folder.logs / f"second-{service}.log").open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", f"distroml.{service}"], env=environ, stdout=log, stderr=log
                )
            begun.callback(_end, process)
            addresses[service], metrics[service] = listen, told
        for told in metrics.values():
            wait_for(lambda told=told: metrics_answer(told, "/healthz"), 60)
        yield addresses


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    finally:
        process.kill()
        process.wait()


async def roles(plane: Plane) -> dict[str, int]:
    """Every role that a replica holds now, and the revision at which it was taken: its fence."""
    endpoints = os.environ["DISTROML_ETCD_ENDPOINTS"].split(",")
    state = open_state_store(EtcdClient(EtcdSettings(endpoints=tuple(endpoints))), plane.folder.deployment())
    try:
        found = [await state.list(f"leases/{service}") for service in REPLICATED]
        return {entry.key: entry.revision for listing in found for entry in listing.entries}
    finally:
        await state.close()
