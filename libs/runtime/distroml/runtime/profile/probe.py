"""What the links between live processes do: a short probe, kept and used again."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import cast

import msgspec
import torch
import torch.distributed as dist

from distroml.planner import Device, Sample, Topology, fit_levels
from distroml.planner.topology import Collective
from distroml.runtime.caching import write_down
from distroml.runtime.comm.algorithms import host_name
from distroml.runtime.elastic import Collectives, World, communication, heard
from distroml.runtime.profile.shards import time_shards

# Small enough to show latency, large enough to show rate; the largest are left out where a link is slow. Small ones
# vary most.
_REPEATS_OF = {4 << 10: 24, 128 << 10: 24, 1 << 20: 8, 4 << 20: 4}
_WORK = 384
_ON_CPU: tuple[Collective, ...] = ("all_reduce", "send")
_ON_GPU: tuple[Collective, ...] = (*_ON_CPU, "all_gather", "reduce_scatter")
_KEPT_S = 24 * 3600.0
# Another one where calls are timed in another way: what was kept then says something else.
_METHOD = 2


@dataclass(frozen=True, slots=True)
class Probed:
    """The links as they were measured.

    Attributes:
        levels: name and extent, innermost first.
        samples: by level.
        seconds: what probing took; 0 where an older probe of the same machines served.
        reused: whether it did.
    """

    levels: tuple[tuple[str, int], ...]
    samples: dict[str, tuple[Sample, ...]]
    seconds: float = 0.0
    reused: bool = False

    def topology(self, device: Device) -> Topology:
        """The machines, each a `device`, joined by these links."""
        return fit_levels(device, self.levels, self.samples)


def probe_links(world: World, *, budget_s: float = 2.0, cache: Path | None = None) -> Probed:
    """Time collectives between all ranks of `world`. Collective; equal on every rank.

    Args:
        world: of the default process group.
        budget_s: about how long it may take; slow links are tried with small messages only.
        cache: a folder for results, kept for a day by host names, back end and number of ranks; None: nothing kept.

    Raises:
        PeerLost: another rank is gone.
    """
    collectives = Collectives(world)
    hosts = collectives.gather(host_name())
    per_host = Counter(hosts)
    levels = _levels(world.world_size, per_host)
    if world.world_size == 1:
        return Probed(levels, {})
    path = cache / f"links-{_key(hosts, world)}.json" if cache is not None else None
    known = collectives.gather(_read(path) if path is not None and world.is_main else None)[0]
    if known is not None:
        return Probed(known.levels, known.samples, 0.0, True)
    started = time.monotonic()
    samples: dict[str, tuple[Sample, ...]] = {}
    for number, (name, _) in enumerate(levels):
        groups = _groups(world, levels, number)
        each_s = budget_s / len(levels) / max(1, len(groups))
        found = [sample for group, size in groups for sample in _measure(world, group, size, each_s)]
        if found:
            samples[name] = tuple(found)
    # Every rank took part; rank 0's clock is the one that counts.
    probed = collectives.gather(Probed(levels, samples, time.monotonic() - started))[0]
    if path is not None and world.is_main:
        _write(path, probed)
    return probed


def _levels(world_size: int, per_host: Counter[str]) -> tuple[tuple[str, int], ...]:
    inside = next(iter(per_host.values()))
    if len(per_host) == 1 or any(count != inside for count in per_host.values()):
        return (("node" if len(per_host) == 1 else "cluster", world_size),)
    return (("node", inside), ("cluster", len(per_host)))


def _groups(world: World, levels: Sequence[tuple[str, int]], number: int) -> list[tuple[dist.ProcessGroup, int]]:
    """This rank's groups along one level, with one member in each unit below it, and their sizes: all that axes have.

    Ranks of a host are neighbours. Every rank makes every group, all in the same order.
    """
    inside, extent = (1, levels[0][1]) if number == 0 else (levels[0][1], levels[1][1])
    nodes = world.world_size // inside // extent
    found: list[tuple[dist.ProcessGroup, int]] = []
    for size in range(2, extent + 1):
        if extent % size:
            continue
        if size == world.world_size:
            found.append((cast("dist.ProcessGroup", dist.group.WORLD), size))
            continue
        with communication():
            for node, place, first in product(range(nodes), range(inside), range(0, extent, size)):
                base = node * inside * extent + place
                ranks = [base + (first + member) * inside for member in range(size)]
                made = dist.new_group(ranks)
                if world.rank in ranks:
                    found.append((cast("dist.ProcessGroup", made), size))
    return found


def _measure(world: World, group: dist.ProcessGroup, size: int, budget_s: float) -> list[Sample]:
    samples: list[Sample] = []
    stop = torch.zeros(1, device=world.device)
    deadline = time.monotonic() + budget_s
    on_gpu = world.device.type == "cuda"
    work = _computation(world.device)
    asked = _ON_GPU if on_gpu else _ON_CPU
    for nbytes in _REPEATS_OF:
        for collective in asked:
            call = _call(collective, nbytes, size, group, world.device)
            seconds, busy_s = _time(call, work, _REPEATS_OF[nbytes])
            # A GPU computes while the processor sees to the links.
            samples.append(Sample(collective, nbytes, size, seconds, 0.0 if on_gpu else busy_s))
        if not on_gpu:
            shards = time_shards(nbytes, group)
            samples.append(Sample("all_gather", nbytes, size, shards.gather_s))
            samples.append(Sample("reduce_scatter", nbytes, size, shards.scatter_s))
        stop[0] = float(time.monotonic() > deadline)
        with communication():
            dist.all_reduce(stop, op=dist.ReduceOp.MAX)
        # Two sizes at least: one tells latency and rate not apart.
        if any(heard(stop)) and len({sample.bytes for sample in samples}) > 1:
            break
    return samples


def _call(
    collective: Collective, nbytes: int, size: int, group: dist.ProcessGroup, device: torch.device
) -> Callable[[], None]:
    count = max(size, nbytes // 4 // size * size)
    whole = torch.zeros(count, device=device)
    part = torch.zeros(count // size, device=device)
    me = dist.get_rank(group)
    right, left = (dist.get_global_rank(group, (me + way) % size) for way in (1, -1))
    other = torch.zeros(count, device=device)

    def call() -> None:
        with communication():
            if collective == "all_reduce":
                dist.all_reduce(whole, group=group)
            elif collective == "all_gather":
                dist.all_gather_into_tensor(whole, part, group=group)
            elif collective == "reduce_scatter":
                dist.reduce_scatter_tensor(part, whole, group=group)
            else:
                ring = [dist.P2POp(dist.isend, whole, right, group), dist.P2POp(dist.irecv, other, left, group)]
                for work in dist.batch_isend_irecv(ring):
                    work.wait()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return call


def _time(call: Callable[[], None], work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Seconds that a call adds to computation, and how long of them this process's threads kept a processor busy.

    Means, not medians: a step waits for each of many calls. And with computation between them: ranks that compute do
    not arrive at once, and find caches cold and processors asleep.
    """

    def together() -> None:
        work()
        call()

    together()
    (both_s, both_busy_s), (work_s, work_busy_s) = (_mean(run, repeats) for run in (together, work))
    seconds = max(both_s - work_s, 0.1 * both_s)
    return seconds, min(seconds, max(0.0, both_busy_s - work_busy_s))


def _mean(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    started, worked = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - started) / repeats, (time.process_time() - worked) / repeats


def _computation(device: torch.device) -> Callable[[], object]:
    """A few milliseconds of it on one core, as a block takes between two sums of tp."""
    a = torch.full((_WORK, _WORK), 1.0 / _WORK, device=device)

    def compute() -> object:
        product = a
        for _ in range(3):
            product = a @ product
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return product

    return compute


# ---- results of earlier probes


class _Kept(msgspec.Struct):
    """A probe on disk."""

    at_s: float
    levels: tuple[tuple[str, int], ...]
    samples: dict[str, tuple[Sample, ...]]


def _key(hosts: Sequence[str], world: World) -> str:
    text = "\n".join([*hosts, world.device.type, str(world.world_size), str(_METHOD)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> Probed | None:
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
    except (OSError, msgspec.DecodeError):
        return None  # not there, or of another release: it is measured again
    # A wall clock that was set back makes an old probe look young: then it serves a little longer, and that is all.
    return Probed(kept.levels, kept.samples) if time.time() - kept.at_s < _KEPT_S else None


def _write(path: Path, probed: Probed) -> None:
    write_down(path, msgspec.json.encode(_Kept(time.time(), probed.levels, probed.samples)))
