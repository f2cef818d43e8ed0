"""The environment of a worker: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distroml.workerlink import environment as names

_SECRET = "secret:"
# The agent's own settings and keys are no business of a user's program.
_PRIVATE = ("DISTROML_", "OTEL_", "GRPC_")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class MissingSecret(Exception):
    """A job names a secret that this node does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a worker is, whatever generation it is in."""

    job: str
    project: str
    attempt: int
    node: str
    worker: str
    incarnation: int
    link: str
    objects: str
    compress: str = ""
    sync_every: int = 0
    backend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """A worker's place in a generation."""

    generation: int
    rank: int
    local_rank: int
    node_rank: int
    world_size: int
    local_world_size: int
    nodes: int
    store_host: str
    store_port: int
    restore: str
    """`STEP:MANIFEST_HASH`, or empty."""


def base_environment(
    own: Mapping[str, str], spec: Mapping[str, str], *, secrets: Mapping[str, str], threads: int
) -> dict[str, str]:
    """What all workers of a job get: the agent's environment without its private part, defaults, the job's own.

    Raises:
        MissingSecret: names every secret that is not in `secrets`.
    """
    env = {name: value for name, value in own.items() if not name.startswith(_PRIVATE)}
    # Output shows at once and is not lost with a killed process.
    defaults = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
    env.update({name: value for name, value in defaults.items() if name in _THREADS or name not in env})
    missing: list[str] = []
    for name, value in spec.items():
        if value.startswith(_SECRET):
            secret = value.removeprefix(_SECRET)
            if secret not in secrets:
                missing.append(f"{name}={value}")
                continue
            value = secrets[secret]
        env[name] = value
    if missing:
        raise MissingSecret(
            f"secrets that this node does not have: {', '.join(sorted(missing))}; "
            "put each in a file of its name in the agent's secrets folder"
        )
    return env


def worker_environment(
    base: Mapping[str, str], identity: Identity, rank: Rank, *, devices: str, traceparent: str = ""
) -> dict[str, str]:
    """`base` with torchrun's variables and ours; `devices`, as `nvidia-smi` counts, is what CUDA shows it."""
    env = {
        **base,
        names.RANK: str(rank.rank),
        names.LOCAL_RANK: str(rank.local_rank),
        names.WORLD_SIZE: str(rank.world_size),
        names.LOCAL_WORLD_SIZE: str(rank.local_world_size),
        names.GROUP_RANK: str(rank.node_rank),
        names.GROUP_WORLD_SIZE: str(rank.nodes),
        "ROLE_NAME": "default",
        "ROLE_RANK": str(rank.rank),
        "ROLE_WORLD_SIZE": str(rank.world_size),
        names.MASTER_ADDR: rank.store_host,
        names.MASTER_PORT: str(rank.store_port),
        names.TORCHELASTIC_USE_AGENT_STORE: "True",
        names.TORCHELASTIC_RESTART_COUNT: str(rank.generation),
        names.TORCHELASTIC_MAX_RESTARTS: str(1 << 20),
        names.TORCHELASTIC_RUN_ID: identity.job,
        names.LINK_SOCKET: identity.link,
        names.WORKER: identity.worker,
        names.INCARNATION: str(identity.incarnation),
        names.JOB: identity.job,
        names.PROJECT: identity.project,
        names.ATTEMPT: str(identity.attempt),
        names.NODE: identity.node,
        names.GENERATION: str(rank.generation),
        names.OBJECTS: identity.objects,
        # Those of the whole attempt on this node, alike for all: scripts pick theirs by LOCAL_RANK, as under torchrun.
        names.CUDA_VISIBLE_DEVICES: devices,
        # CUDA's own order is by speed, NVML's, from which the numbers are, by address.
        names.CUDA_DEVICE_ORDER: "PCI_BUS_ID",
    }
    if identity.compress:
        env[names.COMPRESS] = identity.compress
    if identity.sync_every:
        env[names.SYNC_EVERY] = str(identity.sync_every)
    if identity.backend:
        env[names.BACKEND] = identity.backend
    if rank.restore:
        env[names.RESTORE] = rank.restore
    if traceparent:
        env[names.TRACEPARENT] = traceparent
    return env


def default_threads(cpus: int, slots: int) -> int:
    """Threads of one worker when every slot is taken."""
    return max(1, cpus // max(1, slots))
