"""One generation as a worker sees it, and the process group that carries it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import (  # torch.distributed has them, but does not export them
    HashStore,
    PrefixStore,
    Store,
    TCPStore,
)

from distroml.runtime.comm.backends import BackEnd, choose_backend, make_backend, now_in, with_mpirun
from distroml.workerlink import CheckpointRef, Generation, environment


@dataclass(frozen=True, slots=True)
class World:
    """This process's place in a generation; a run that no agent started is generation 0."""

    generation: int
    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    store: tuple[str, int] | None
    # Keeps the keys of one generation (or of one torchrun restart) from the next one's in the same store.
    prefix: str
    restore: CheckpointRef | None = None
    # Who carries the collectives: one of `comm.backends.NAMES`.
    backend: str = "gloo"
    # W3C trace context of the span in which the generation formed, and when this process heard of it.
    traceparent: str = ""
    known_ns: int = field(default_factory=time.time_ns, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which speaks for all."""
        return self.rank == 0


def choose_device(local_rank: int, wanted: str | None) -> torch.device:
    """`wanted`, or this worker's GPU, or the CPU where there is none."""
    if wanted is not None and wanted != "cuda":
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    if wanted == "cuda":
        raise RuntimeError("device='cuda' was asked for, but torch sees no GPU here; leave `device` out to use the CPU")
    return torch.device("cpu")


def parse_restore(text: str) -> CheckpointRef | None:
    """`STEP:MANIFEST_HASH` as the agent writes it; empty means none."""
    if not text:
        return None
    step, _, manifest_hash = text.partition(":")
    if not step.isdigit() or not manifest_hash:
        raise ValueError(f"{environment.RESTORE} must read STEP:MANIFEST_HASH, got {text!r}")
    return CheckpointRef(step=int(step), manifest_hash=manifest_hash)


def number_of(environ: Mapping[str, str], name: str, default: int = 0) -> int:
    """The whole number in a variable, `default` where it is not set; raises `ValueError` where it is none."""
    text = environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise ValueError(f"{name} must be a whole number, got {text!r}") from None


def world_of_environment(environ: Mapping[str, str], device: str | None, backend: str | None = None) -> World:
    """The first generation: torchrun's variables and ours, or mpirun's, or one process where there are none.

    Raises:
        ValueError: a variable cannot be read, or there is no such rank in a world of that size.
        RuntimeError: a GPU is wanted, and there is none.
    """
    environ = with_mpirun(environ)
    local_rank = number_of(environ, environment.LOCAL_RANK)
    generation = number_of(environ, environment.GENERATION)
    rank, world_size = number_of(environ, environment.RANK), number_of(environ, environment.WORLD_SIZE, 1)
    if not 0 <= rank < world_size:
        raise ValueError(
            f"{environment.RANK} is {rank} and {environment.WORLD_SIZE} {world_size}: ranks are 0 to "
            f"{environment.WORLD_SIZE} - 1; set both, or neither for one process alone"
        )
    restarts = "" if environment.GENERATION in environ else environ.get(environment.TORCHELASTIC_RESTART_COUNT, "")
    address, port = environ.get(environment.MASTER_ADDR), environ.get(environment.MASTER_PORT)
    chosen = choose_device(local_rank, device)
    return World(
        generation=generation,
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        device=chosen,
        store=(address, number_of(environ, environment.MASTER_PORT)) if address and port else None,
        prefix=f"gen{generation}" + (f"/restart{restarts}" if restarts else ""),
        restore=parse_restore(environ.get(environment.RESTORE, "")),
        backend=choose_backend(backend, environ, chosen),
        traceparent=environ.get(environment.TRACEPARENT, ""),
    )


def world_of_generation(generation: Generation, device: str | None, backend: str) -> World:
    """A later generation, as the agent hands it over the link."""
    return World(
        generation=generation.number,
        rank=generation.rank,
        world_size=generation.world_size,
        local_rank=generation.local_rank,
        device=choose_device(generation.local_rank, device),
        store=(generation.store_host, generation.store_port),
        prefix=f"gen{generation.number}",
        restore=generation.restore,
        backend=backend,
        traceparent=generation.traceparent,
    )


def export_environment(world: World) -> None:
    """Put `world` into this process's environment, for the user's code that reads torchrun's variables."""
    os.environ[environment.RANK] = str(world.rank)
    os.environ[environment.WORLD_SIZE] = str(world.world_size)
    os.environ[environment.LOCAL_RANK] = str(world.local_rank)
    os.environ[environment.GENERATION] = str(world.generation)
    if world.store is not None:
        os.environ[environment.MASTER_ADDR], os.environ[environment.MASTER_PORT] = world.store[0], str(world.store[1])


class ProcessGroup:
    """The default process group of one generation, and the means to cut it from another thread."""

    def __init__(self, world: World, *, agent_store: bool, setup_timeout_s: float, collective_timeout_s: float) -> None:
        self._world = world
        self._agent_store = agent_store
        self._setup_timeout = timedelta(seconds=setup_timeout_s)
        self._timeout = timedelta(seconds=collective_timeout_s)
        self._closing = threading.Lock()
        self._closed = False
        # One process needs no group, and so no back end either.
        self._backend: BackEnd | None = make_backend(world.backend) if world.world_size > 1 else None

    @property
    def device(self) -> torch.device:
        """Where this process's tensors live."""
        return self._world.device

    @property
    def reforms(self) -> bool:
        """Whether this process may open another generation's group after this one broke."""
        return self._backend is None or self._backend.reforms

    def open(self) -> None:
        """Connect to every other rank. One process needs no group.

        Raises:
            BackEndUnavailable: the back end cannot serve this process.
            RuntimeError and torch's communication errors: a rank did not come within the set-up timeout, or left.
        """
        world = self._world
        if world.device.type == "cuda":
            torch.cuda.set_device(world.device)
        now_in(self._backend)
        if self._backend is None:
            return
        self._backend.check(world)
        self._backend.open(world, self._store(), self._setup_timeout)
        group = dist.group.WORLD
        if group is not None:
            group.set_timeout(self._timeout)

    def _store(self) -> Store | None:
        world = self._world
        if world.store is None:
            return None
        store = TCPStore(
            world.store[0],
            world.store[1],
            world.world_size,
            is_master=not self._agent_store and world.rank == 0,
            timeout=self._setup_timeout,
            wait_for_workers=False,
        )
        return PrefixStore(world.prefix, store)

    @contextmanager
    def connecting(self) -> Generator[None]:
        """Within it, connections that are made (by further groups of this world) are cut with the world's own."""
        with self._backend.connecting() if self._backend is not None else nullcontext():
            yield

    def sever(self) -> None:
        """Free any thread that waits in this group; from any thread, repeatable. Nothing once it is closed.

        A back end may look for groups in torch's own list: those of the next world are not to be found there.
        """
        with self._closing:
            if self._backend is not None and not self._closed:
                self._backend.sever()

    def close(self, *, broken: bool) -> None:
        """Tear the group down; after an error the connections go first, so that peers are freed at once."""
        now_in(None)
        if broken:
            self.sever()
        with self._closing:
            self._closed = True
        if not dist.is_initialized() and self._world.world_size > 1:
            # A set-up that failed half-way leaves torch's count of groups raised, and with it the names of the next
            # ones: ranks that were there would wait for keys that newcomers never write. Ending a group resets it.
            dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        if dist.is_initialized():
            if broken and self._backend is not None:
                self._backend.outlive()
            dist.destroy_process_group()
            if self._backend is not None and not broken:
                self._backend.settle()
