"""A worker's life across generations: enter one, leave it when it breaks, wait for the next in the same process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from distroml.runtime.elastic.collectives import check_sums
from distroml.runtime.elastic.errors import GenerationLeft, NoGeneration, is_communication_error
from distroml.runtime.elastic.world import (
    ProcessGroup,
    World,
    export_environment,
    world_of_environment,
    world_of_generation,
)
from distroml.runtime.link import Link
from distroml.workerlink import Drain, Generation, GenerationBroken, Stop, environment

log = logging.getLogger("distroml.runtime.elastic")

_SEVER_AGAIN_S = 0.2


class Membership:
    """Which generation this process is in. `enter`, `check` and `leave` are the training thread's.

    Args:
        link: to the agent; without one there is a single generation, from the environment.
        environ: where the first generation's place is read.
        device: as in `Trainer`.
        backend: as in `Trainer`.
        setup_timeout_s: how long the other ranks have to connect.
        wait_s: how long a survivor waits for the next generation.
        collective_timeout_s: how long a collective may take before the generation counts as broken.
    """

    def __init__(
        self,
        link: Link,
        environ: Mapping[str, str],
        *,
        device: str | None = None,
        backend: str | None = None,
        setup_timeout_s: float = 120.0,
        wait_s: float = 600.0,
        collective_timeout_s: float = 1800.0,
    ) -> None:
        self._link = link
        self._device = device
        self._setup_timeout_s = setup_timeout_s
        self._wait_s = wait_s
        self._collective_timeout_s = collective_timeout_s
        self._agent_store = link.attached or environ.get(environment.TORCHELASTIC_USE_AGENT_STORE) == "True"
        first = world_of_environment(environ, device, backend)
        self._next: World | None = first
        self._backend = first.backend
        self._left = first.generation
        self._lock = threading.Lock()
        self._current: World | None = None
        self._group: ProcessGroup | None = None
        self._broken: str | None = None
        self._broken_up_to = -1
        self._drain: Drain | None = None
        self._stop: Stop | None = None
        link.subscribe(GenerationBroken, self._on_broken)
        link.subscribe(Generation, self._on_generation)
        link.subscribe(Drain, self._on_drain)
        link.subscribe(Stop, self._on_stop)

    @property
    def world(self) -> World | None:
        """The world that was entered, or that `enter` sets up without waiting; None between two generations."""
        return self._current or self._next

    @property
    def reforms(self) -> bool:
        """Whether this process can take part in another generation after the current one broke."""
        group = self._group
        return group is None or group.reforms

    @property
    def draining(self) -> bool:
        """Whether this generation is to be left after the current step."""
        drain, world = self._drain, self._current
        return drain is not None and world is not None and drain.number >= world.generation

    @property
    def stop(self) -> Stop | None:
        """The order to end, once it came."""
        return self._stop

    def enter(self) -> World:
        """Set up the next generation's process group, waiting for the generation where it has not formed yet.

        Raises:
            NoGeneration: none formed in time.
            GenerationLeft: a `Stop` came while waiting.
            PeerLost, RuntimeError: without an agent, the other ranks did not come.
        """
        while True:
            world = self._next or self._await_next()
            self._next = None
            group = ProcessGroup(
                world,
                agent_store=self._agent_store,
                setup_timeout_s=self._setup_timeout_s,
                collective_timeout_s=self._collective_timeout_s,
            )
            with self._lock:
                self._current, self._group, self._broken = world, group, None
            export_environment(world)
            self._link.entered(world.generation)
            self._notice_older_news(world)
            try:
                self.check()
                group.open()
            except Exception as error:
                if not self._link.attached or not (is_communication_error(error) or self._broken is not None):
                    raise
                self.leave(f"set-up failed: {error}")
                continue
            return world

    @contextmanager
    def connecting(self) -> Generator[None]:
        """Within it, further process groups of the current generation may be made."""
        group = self._group
        if group is None:
            yield
            return
        with group.connecting():
            yield

    def check(self) -> None:
        """Raise `GenerationLeft` or `PeerLost` where this generation was broken: for moments without communication."""
        if self._broken is not None:
            raise GenerationLeft(self._broken)
        check_sums()

    def cut(self) -> None:
        """Free this generation's other ranks at once, before anything else is put in order here."""
        group = self._group
        if group is not None:
            group.sever()

    def leave(self, error: str) -> None:
        """Tear the process group down after a failure or a drain, and tell the agent that this worker is ready."""
        with self._lock:
            world, group = self._current, self._group
            self._current = self._group = None
        if world is None or group is None:
            return
        group.close(broken=bool(error))
        self._left = world.generation
        log.info("left generation %d: %s", world.generation, error or "drained")
        self._link.leave(world.generation, error[:2000])

    def close(self, *, broken: bool = False) -> None:
        """This process takes part in no further generation; `broken` frees peers that still wait for it."""
        with self._lock:
            group, self._current, self._group = self._group, None, None
        if group is not None:
            group.close(broken=broken)

    def _await_next(self) -> World:
        deadline = time.monotonic() + self._wait_s
        told_at = 0.0
        while True:
            now = time.monotonic()
            if self._stop is not None:
                raise GenerationLeft(f"told to stop while waiting: {self._stop.reason}")
            if now >= deadline:
                raise NoGeneration(
                    f"no new generation formed within {self._wait_s:.0f} s after generation {self._left}: the control "
                    "plane is away, or too few workers are left; start it again, or resume the job later"
                )
            if now >= told_at:
                log.info("waiting for the generation after %d (%.0f s left)", self._left, deadline - now)
                told_at = now + 30.0
            generation = self._link.wait_generation(self._left, min(0.5, deadline - now))
            if generation is not None:
                return world_of_generation(generation, self._device, self._backend)

    # ---- the link's thread

    def _notice_older_news(self, world: World) -> None:
        """Act on what came before this generation was entered."""
        newer = self._link.wait_generation(world.generation, 0.0)
        if newer is not None:
            self._on_generation(newer)
        self._break(self._broken_up_to, "it broke before this worker entered it")

    def _on_broken(self, message: GenerationBroken) -> None:
        self._break(message.number, message.cause)

    def _on_generation(self, message: Generation) -> None:
        # A newer generation says that ours is over, also where the message that it broke got lost with the agent.
        self._break(message.number - 1, f"generation {message.number} formed")

    def _break(self, up_to: int, cause: str) -> None:
        with self._lock:
            self._broken_up_to = max(self._broken_up_to, up_to)
            world, group = self._current, self._group
            if world is None or group is None or world.generation > up_to or self._broken is not None:
                return
            self._broken = cause
        threading.Thread(target=self._free, args=(group,), name="distroml-sever", daemon=True).start()

    def _free(self, group: ProcessGroup) -> None:
        """Cut the group's connections until the training thread has left it; a set-up may open more meanwhile."""
        while self._group is group:
            group.sever()
            time.sleep(_SEVER_AGAIN_S)

    def _on_drain(self, message: Drain) -> None:
        self._drain = message

    def _on_stop(self, message: Stop) -> None:
        self._stop = message
