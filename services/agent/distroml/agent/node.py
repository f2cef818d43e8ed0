"""What all attempts of a node share."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import msgspec
from grpc.aio import Channel

from distroml.agent.adapters.bundles import Bundles
from distroml.agent.adapters.gpus import Gpus
from distroml.agent.adapters.lines import Lines
from distroml.agent.adapters.node import NodeStream
from distroml.agent.adapters.processes import write_whole
from distroml.agent.adapters.telemetry import TelemetryPush
from distroml.agent.domain.environment import (
    Identity,
    Rank,
    base_environment,
    default_threads,
    worker_environment,
)
from distroml.agent.domain.gang import Formed
from distroml.agent.launcher import Launcher
from distroml.agent.link import LinkServer
from distroml.agent.settings import AgentSettings
from distroml.agent.spool import Spool
from distroml.agent.worker import Facts
from distroml.api.scheduler.v1 import jobs_pb2 as jobs
from distroml.api.scheduler.v1 import nodes_pb2 as nodes
from distroml.events import fresh_id
from distroml.observability.tracing import Tracing
from distroml.workerlink import CheckpointRef
from distroml.workerlink.cores import usable_cores


@dataclass(frozen=True, kw_only=True)
class Node:
    """The node and the agent's connections; made once per agent."""

    id: str
    agent_id: str
    settings: AgentSettings
    folder: Path
    environ: dict[str, str]
    slots: tuple[jobs.Slot, ...]
    gpus: Gpus
    launcher: Launcher
    link: LinkServer
    spool: Spool
    stream: NodeStream
    telemetry: TelemetryPush
    lines: Lines
    bundles: Bundles
    rendezvous: Channel
    checkpoint: Channel
    tracing: Tracing

    @property
    def workers(self) -> Path:
        """Where the attempts' folders are."""
        return self.folder / "workers"

    @property
    def objects(self) -> str:
        """Where workers put checkpoints."""
        return self.settings.objects_location

    def environment(self, spec: dict[str, str]) -> dict[str, str]:
        """What a job's workers get, whatever their rank; raises `MissingSecret`."""
        return base_env(self.environ, spec, self.folder, self.settings, len(self.slots))


def base_env(
    environ: dict[str, str], spec: dict[str, str], folder: Path, settings: AgentSettings, slots: int
) -> dict[str, str]:
    """See `Node.environment`."""
    env = dict(environ)
    if settings.address.startswith("127.") and "GLOO_SOCKET_IFNAME" not in env:
        # Gloo otherwise looks the host's name up, which many a machine cannot resolve.
        env["GLOO_SOCKET_IFNAME"] = "lo"
    threads = default_threads(usable_cores(), slots)
    return base_environment(env, spec, secrets=Secrets(folder / "secrets"), threads=threads)


def environment_of(
    node: Node,
    desired: nodes.DesiredAttempt,
    base: dict[str, str],
    facts: Facts,
    formed: Formed,
    restore: CheckpointRef | None,
) -> dict[str, str]:
    """The environment of one process of a worker in a generation."""
    member = formed.member(facts.worker)
    assert member is not None
    held = set(desired.slots)
    devices = [slot.device for slot in node.slots if slot.id in held and slot.kind == "cuda"]
    identity = Identity(
        job=desired.job,
        project=desired.spec.project,
        attempt=desired.attempt,
        node=node.id,
        worker=facts.worker,
        incarnation=facts.incarnation,
        link=str(node.link.path),
        objects=node.objects,
        compress=desired.spec.compress,
        sync_every=desired.spec.sync_every,
        backend=desired.spec.backend,
    )
    rank = Rank(
        generation=formed.number,
        rank=member.rank,
        local_rank=member.local_rank,
        node_rank=formed.node_ranks[member.node],
        world_size=formed.world_size,
        local_world_size=formed.local_world_sizes[member.node],
        nodes=len(formed.node_ranks),
        store_host=formed.store_host,
        store_port=formed.store_port,
        restore=f"{restore.step}:{restore.manifest_hash}" if restore is not None else "",
    )
    traceparent = formed.traceparent or desired.traceparent
    return worker_environment(base, identity, rank, devices=",".join(devices), traceparent=traceparent)


class Secrets(dict[str, str]):
    """Files of a folder by name, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and "/" not in name and (self._folder / name).is_file()

    def __getitem__(self, name: str) -> str:
        return (self._folder / name).read_text().rstrip("\n")


class _Identity(msgspec.Struct, frozen=True):
    node: str


def node_id(folder: Path) -> str:
    """This node's id: made at the first start, kept in its folder."""
    path = folder / "identity.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Identity).node
    except (OSError, msgspec.MsgspecError):
        identity = _Identity(fresh_id("node"))
        write_whole(path, msgspec.json.encode(identity))
        return identity.node


def offered_slots(settings: AgentSettings, gpus: Gpus) -> tuple[jobs.Slot, ...]:
    """A slot per GPU that this process may use; where there is none, or a number was asked for, CPU slots."""
    if gpus.found and not settings.slots:
        return tuple(jobs.Slot(id=f"cuda-{gpu.device}", kind="cuda", device=gpu.device) for gpu in gpus.found)
    count = settings.slots or usable_cores()
    return tuple(jobs.Slot(id=f"cpu-{index}", kind="cpu", device="cpu") for index in range(count))


def node_labels() -> dict[str, str]:
    """For people, and for placement by label."""
    return {"host": socket.gethostname(), "machine": os.uname().machine}
