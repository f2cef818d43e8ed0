"""What a generation has of compression beyond the exchange: its controller, or a hint where `auto` would help."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distroml.runtime.compress import Layout
from distroml.runtime.compress.control import LADDER, NONE, TOLD, Change, gain, link_of
from distroml.runtime.compress.parse import parse_scheme
from distroml.runtime.elastic import World
from distroml.runtime.link import Link
from distroml.runtime.parallel import ParallelModel
from distroml.runtime.parallel.buffers import Measured
from distroml.runtime.parallel.compressed import Asked, CompressedExchange
from distroml.runtime.parallel.reducer import GradientReducer
from distroml.runtime.profile.codecs import codec_slows
from distroml.runtime.training.adapting import Adapting
from distroml.runtime.training.offers import codec_costs, layout_of, setting_of
from distroml.runtime.training.recording import SchemeRecord
from distroml.runtime.training.step import to_device
from distroml.runtime.training.types import StepInfo
from distroml.workerlink import CompressionAdvised

log = logging.getLogger("distroml.runtime.train")

# A backward pass takes about twice as long as the forward pass: a step's computing before any was made.
_PASSES = 3
_SKIPPED, _COUNTED = 3, 20
# A hint is not worth more time than this many elements take to try.
_HINT_ELEMENTS = 1 << 18


@dataclass(frozen=True, slots=True)
class _Adaptable:
    """An exchange as the controller sees it: buckets by their place, those that are empty left out."""

    exchange: CompressedExchange
    numbers: tuple[int, ...]

    def ask(self, values: Sequence[float], *, probe_bytes: int = 0) -> Asked:
        """See `Adaptable`."""
        return self.exchange.ask(values, probe_bytes=probe_bytes)

    def measured(self) -> list[Measured]:
        """See `Adaptable`."""
        found = {one.bucket: one for one in self.exchange.measured()}
        return [found[number] for number in self.numbers]

    def set_scheme(self, bucket: int, scheme: str, from_step: int) -> None:
        """See `SetScheme`."""
        self.exchange.set_scheme(self.numbers[bucket], parse_scheme(scheme), from_step)


def adapting_of(
    parallel: ParallelModel, link: Link, world: World, recorded: list[Change], record: SchemeRecord
) -> Adapting | None:
    """The controller of this generation; None where no other rank has the same gradients. Collective.

    `recorded` becomes what any rank remembers of earlier generations, or `record` has of them.

    Raises:
        PeerLost: another rank is gone.
    """
    exchange, plan = parallel.exchange, parallel.plan
    if exchange is None:
        return None
    known = recorded or (record.read() if world.is_main else [])
    recorded[:] = max(parallel.collectives.gather(list(known)), key=len)
    buffers = [buffer for buffer in exchange.buffers if buffer.spec.numel]
    layouts = [buffer.layout for buffer in buffers]
    mine = codec_costs(layouts, exchange.world_size, world.device) if exchange.world_size > 1 and layouts else {}
    told = parallel.collectives.gather((mine, codec_slows(world)))
    if not mine:
        return None
    place = {axis: at for axis, at in plan.coordinate(world.rank).items() if axis != "dp_replicate"}
    peers = [told[rank] for rank in range(world.world_size) if place.items() <= plan.coordinate(rank).items()]
    costs = {
        scheme: (rounds, statistics.fmean(costs[scheme][1] for costs, _ in peers))
        for scheme, (rounds, _) in peers[0][0].items()
    }
    adaptable = _Adaptable(exchange, tuple(buffer.number for buffer in buffers))
    return Adapting(
        adaptable,
        adaptable.set_scheme,
        setting_of(layouts, exchange.world_size, costs, max(slows for _, slows in peers)),
        recorded,
        link.send if world.is_main else None,
        world.generation,
        record.write if world.is_main else None,
    )


def start(adapting: Adapting, parallel: ParallelModel, sample: Any, share: int, step: int, kept: str) -> None:
    """Choose what holds after `step`. Collective.

    Args:
        adapting: of this generation.
        parallel: that is trained; where nothing is kept, its forward pass is timed, which changes nothing.
        sample: one microbatch.
        share: microbatches of a step on one rank.
        step: the last one that was made.
        kept: what a checkpoint has of the controller.
    """
    adapting.start(step, kept, lambda: _PASSES * share * _forward_s(parallel, sample))


def _forward_s(parallel: ParallelModel, sample: Any) -> float:
    """Seconds of a microbatch's forward pass, the slowest rank's; the second one, since the first warms up."""
    device = parallel.mesh.world.device
    batch, spent_s = to_device(sample, device), 0.0
    was_training = parallel.module.training
    parallel.module.eval()
    try:
        for _ in range(2):
            started = time.perf_counter()
            total, _ = parallel.measure(batch)
            # Reading the value waits for the device.
            float(total)
            spent_s = time.perf_counter() - started
    finally:
        parallel.module.train(was_training)
    return max(parallel.collectives.gather(spent_s))


def wire_bytes(parallel: ParallelModel) -> dict[str, int]:
    """What this rank sent for gradients in the last step, by axis, level and scheme."""
    return {"/".join(way): sent for way, sent in parallel.sent().items()}


class Advisor:
    """Tells once, on rank 0, what `auto` would gain a run that compresses nothing and waits for its gradients."""

    def __init__(self, parallel: ParallelModel, link: Link, world: World) -> None:
        self._parallel = parallel
        self._link = link
        self._world = world
        self._steps: list[tuple[float, float]] = []
        self._watches = (
            world.is_main
            and parallel.exchange is None
            and parallel.plan.dp_replicate > 1
            and isinstance(parallel.gradients, GradientReducer)
        )
        self.hint = ""

    def step(self, info: StepInfo) -> None:
        """Count a step; once enough are known, say what there is to say."""
        if not self._watches:
            return
        self._steps.append((info.step_s, info.comm_wait_s))
        if len(self._steps) < _SKIPPED + _COUNTED:
            return
        self._watches = False
        counted = self._steps[_SKIPPED:]
        step_s, exposed_s = (statistics.median(one) for one in zip(*counted, strict=True))
        if exposed_s > TOLD * step_s:
            self._advise(info.step, step_s, exposed_s)

    def _advise(self, step: int, step_s: float, exposed_s: float) -> None:
        world, gradients = self._world, self._parallel.gradients
        assert isinstance(gradients, GradientReducer)
        layouts: list[Layout] = [layout_of(spec) for spec in gradients.layout if spec.numel]
        ranks = self._parallel.plan.dp_replicate
        costs = codec_costs(layouts, ranks, world.device, _HINT_ELEMENTS)
        setting = setting_of(layouts, ranks, costs, codec_slows(world))
        dense = sum(offer.sent_bytes for bucket in setting.buckets for offer in bucket.offers if offer.scheme == NONE)
        found = gain(setting, link_of(setting, dense, step_s, exposed_s), step_s, exposed_s)
        if found is None:
            return
        order = [rung.scheme for rung in LADDER if rung.scheme in found.schemes]
        self.hint = (
            f"{100 * found.exposed:.0f} % of a step waits for communication: --compress auto would reach a loss "
            f"{found.faster:.2g} times faster"
        )
        self._link.send(
            CompressionAdvised(
                generation=world.generation,
                step=step,
                step_seconds=step_s,
                exposed_seconds=exposed_s,
                predicted_step_seconds=found.auto_step_s,
                faster=found.faster,
                schemes=", ".join(order),
            )
        )
