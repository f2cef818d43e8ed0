"""A control plane on real servers whose disks can be filled, and a job on it that trains through whatever happens."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from deploy.stack import Running
from distroml.cli import doctor
from distroml.cli.plane import control
from distroml.cli.plane.datafolder import DataFolder, Profile
from distroml.cli.plane.profile import environment_of
from distroml.eventstore import StoreDown
from distroml.eventstore.jetstream import NatsConnection
from distroml.rpc import ServiceSettings, open_stores
from distroml.rpc.serverstores import ServerStores
from tests.e2e.conftest import Cli, Plane, tails, wait_for
from tests.robustness.pace import RANKS, Pace
from tests.robustness.record import Record, Trained

JOBS = Path(__file__).parent / "jobs"
DISK_BYTES = (1 << 30) if os.environ.get("SOAK_S") else (256 << 20)
"""Room for what minutes leave, or hours: etcd alone keeps 64 MB of its log five times."""
STEPS = 1_000_000
WORKERS = 2
LONGEST_S = 3.0
"""What may pass between two steps of a job at ten steps a second: a third of what the shortest silence lasts."""
_WARM = 5
REPLICATED = ("relay", "scheduler", "rendezvous", "checkpoint")
"""Services of which one replica works under a lease."""


@contextmanager
def disk(folder: Path) -> Iterator[Disk]:
    """A small file system of its own at `folder`; needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    done = subprocess.run(["mount", *options], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise RuntimeError(f"disks that are full are small ones, and to mount them needs root: {done.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], timeout=20, check=True)


@dataclass(frozen=True)
class Disk:
    """One mounted file system."""

    folder: Path

    @contextmanager
    def full(self) -> Iterator[None]:
        """Without a free block as long as the block lasts, whatever its users delete meanwhile."""
        with self.nearly_full(0):
            yield

    @contextmanager
    def nearly_full(self, free_bytes: int) -> Iterator[Callable[[], None]]:
        """With so much free space as long as the block lasts, or with none once what is given was called."""
        ballast = self.folder / "ballast"
        with ballast.open("wb", buffering=0) as file:
            self._fill(file.fileno(), free_bytes)
            try:
                yield lambda: self._fill(file.fileno(), 0)
            finally:
                ballast.unlink()

    def _fill(self, descriptor: int, free_bytes: int) -> None:
        for size in (1 << 20, 4096):
            with suppress(OSError):
                while self._free_bytes() - size >= free_bytes and os.write(descriptor, bytes(size)) == size:
                    continue

    def _free_bytes(self) -> int:
        return psutil.disk_usage(str(self.folder)).free


@dataclass
class Stack:
    """The servers by name, each with a disk of its own."""

    servers: dict[str, Running]
    disks: dict[str, Disk]

    def processes(self, name: str) -> list[psutil.Process]:
        """The server and all that it started."""
        root = psutil.Process(self.servers[name].pid)
        return [root, *root.children(recursive=True)]

    @contextmanager
    def stopped(self, *names: str) -> Iterator[None]:
        """The servers stand still as long as the block lasts."""
        processes = [process for name in names for process in self.processes(name)]
        with standing_still(processes):
            yield


@contextmanager
def control_plane(folder: Path) -> Iterator[Plane]:
    """A control plane on the servers that the environment names, with two slots."""
    data = DataFolder(folder)
    endpoints = control.start(data, slots=2, profile=Profile.STACK)
    try:
        yield Plane(data, endpoints, Cli(data.path))
    finally:
        control.stop(data)


@contextmanager
def standing_still(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """SIGSTOP of them, and SIGCONT of those that still live."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def metrics_answer(address: str, path: str) -> str:
    """What a service answers over HTTP; empty where it does not."""
    with suppress(OSError), urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
        return answer.read().decode()
    return ""


def troubles(plane: Plane, service: str) -> dict[str, str]:
    """Parts of a service that do not work and why, as its health tells; `process` where it does not answer."""
    answer = metrics_answer(plane.endpoints.metrics[service], "/healthz")
    parts = json.loads(answer)["parts"] if answer else {"process": {"serving": False, "why": "no answer"}}
    return {name: str(part) for name, part in parts.items() if not part["serving"]}


def told_by_doctor(plane: Plane) -> str:
    """What `distroml doctor` finds amiss in the control plane."""
    return "\n".join(one.text for one in doctor.control_plane(plane.folder.path) if one.verdict != "ok")


def all_well(plane: Plane) -> bool:
    """Whether every service says that all of its parts work."""
    return not any(troubles(plane, service) for service in plane.folder.services())


def relay_metric(plane: Plane, name: str) -> float:
    """A number that the relay tells, -1 where it tells none just now."""
    lines = metrics_answer(plane.endpoints.metrics["relay"], "/metrics").splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith(name)), -1.0)


def environment_of_process(pid: int) -> dict[str, str]:
    """What a process was given."""
    pairs = (pair.partition("=") for pair in Path(f"/proc/{pid}/environ").read_text().split("\0") if pair)
    return {name: value for name, _, value in pairs}


@asynccontextmanager
async def stores_of(plane: Plane) -> AsyncIterator[ServerStores]:
    """This test's own handles on the deployment's stores, connected to NATS."""
    environ = {**environment_of(plane.folder, os.environ), "DISTROML_DATA": str(plane.folder.path)}
    async with open_stores(ServiceSettings.read(environ, "telemetry")) as stores:
        assert stores.servers is not None
        async with asyncio.timeout(30):
            while not connected(stores.servers.connection):
                await asyncio.sleep(0.05)
        yield stores.servers


def connected(connection: NatsConnection) -> bool:
    """Whether NATS can be asked now."""
    try:
        return connection.client.is_connected
    except StoreDown:
        return False


@dataclass
class Training:
    """A job of two workers that trains until it is cancelled, and a clerk who gives it orders all the time.

    One of few steps ends by itself.
    """

    plane: Plane
    folder: Path
    steps: int = STEPS
    job: str = ""
    clerk: subprocess.Popen[bytes] | None = None
    usual_s: float = 0.0
    """The longest time between two steps before anything befell it."""
    saved: int = 0
    """The step of the last committed checkpoint, as far as it was asked for."""
    record: Record = field(default_factory=Record)

    @property
    def pace(self) -> Pace:
        """When it makes its steps."""
        return Pace(self.folder)

    def submit(self) -> None:
        """Give the job to the control plane."""
        self.job = self.plane.cli.submit(
            "--workers", f"{WORKERS}", "steady.py", str(self.folder), str(self.steps), cwd=JOBS
        )

    def cancel(self) -> None:
        """End it."""
        self.plane.cli("job", "cancel", self.job)
        assert self.plane.cli.wait_state(self.job, "CANCELLED", "FAILED", "SUCCEEDED", timeout=60) == "CANCELLED"

    def start(self) -> None:
        """Begin to train, and to give orders; returns after the first checkpoint."""
        self.submit()
        self.ask_at(self.plane.endpoints.services["scheduler"])
        command = [sys.executable, "-m", "tests.robustness.clerk", str(self.folder), str(self.plane.folder.token_file)]
        with (self.folder / "clerk.log").open("ab") as log:
            self.clerk = subprocess.Popen([*command, self.job], stdout=log, stderr=log)
        wait_for(lambda: self.committed() and self.accepted(), 120, self.words)
        # The first steps are those of a process that warms up.
        self.usual_s = self.pace.longest_s(dict.fromkeys(RANKS, _WARM))

    def ask_at(self, *addresses: str) -> None:
        """Schedulers whom the clerk may ask."""
        fresh = self.folder / "addresses.new"
        fresh.write_text("\n".join(addresses))
        fresh.rename(self.folder / "addresses")

    def lead(self, until: int) -> None:
        """Let it make the steps up to this one, and wait there."""
        fresh = self.folder / "until.new"
        fresh.write_text(f"{until}")
        fresh.rename(self.folder / "until")

    def goes_on(self, steps: int = 10) -> None:
        """Wait until it has made so many more."""
        at = self.pace.slowest()
        wait_for(lambda: self.pace.slowest() >= at + steps, 60 + steps, self.words)

    def accepted(self) -> int:
        """The last order that was accepted."""
        lines = (self.folder / "accepted").read_text().split() if (self.folder / "accepted").exists() else []
        return int(lines[-1]) if lines else 0

    def orders_go_on(self, orders: int = 2) -> None:
        """Wait until so many more orders were accepted."""
        at = self.accepted()
        wait_for(lambda: self.accepted() >= at + orders, 60, self.words)

    def data(self, name: str) -> list[dict[str, Any]]:
        """Events of one kind."""
        return [e["data"] for e in self.plane.cli.events(self.job) if e["type"].endswith("." + name)]

    def committed(self) -> int:
        """The step of the last committed checkpoint."""
        self.saved = max((int(e["step"]) for e in self.data("Committed")), default=0)
        return self.saved

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Whatever the block does: no step waits for it; afterwards all is well, and reports and orders arrive."""
        since = self.pace.made()
        try:
            yield
            wait_for(lambda: all_well(self.plane), 90, self.words)
            at = self.committed()
            wait_for(lambda: self.committed() > at, 90, self.words)
            self.orders_go_on()
            assert [int(e["attempt"]) for e in self.data("AttemptStarted")] == [1], self.words()
            assert len(self.data("GenerationFormed")) == 1, self.words()
            assert self.data("MemberLost") == [], self.words()
            assert not (self.folder / "refused").read_text()
        finally:
            longest_s = self._note(since)
        assert self.pace.lost() == 0, self.words()
        assert longest_s < LONGEST_S, f"steps waited; {self.usual_s:.2f} s was the longest before: {self.words()}"

    def _note(self, since: Mapping[int, int]) -> float:
        """Tell what became of it; returns the longest time between two steps since then."""
        longest_s = self.pace.longest_s(since)
        print(f"longest time between two steps: {longest_s:.2f} s ({self.usual_s:.2f} s before anything happened)")
        now = Trained(
            steps=self.pace.slowest(),
            lost=self.pace.lost(),
            checkpoint=self.saved,
            orders=self.accepted(),
            longest_s=longest_s,
            usual_s=self.usual_s,
        )
        self.record.trained(self.job, now)
        return longest_s

    def words(self) -> str:
        """What there is to say when it fails."""
        ill = {service: troubles(self.plane, service) for service in self.plane.folder.services()}
        clerk = (self.folder / "clerk.log").read_text()[-1000:] if (self.folder / "clerk.log").exists() else ""
        return f"steps {self.pace.made()}, troubles {ill}\n{clerk}\n{tails(self.plane.folder)}"

    def end_clerk(self) -> None:
        """Give no more orders."""
        if self.clerk is not None:
            self.clerk.kill()
            self.clerk.wait()


def pid_of(plane: Plane, service: str) -> int:
    """The service's process, 0 where there is none just now."""
    try:
        return plane.pid(service)
    except AssertionError:
        return 0
