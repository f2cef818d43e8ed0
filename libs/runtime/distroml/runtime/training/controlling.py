"""What a generation has of compression beyond the exchange: its controller, or a hint where `auto` would help."""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distroml.runtime.compress.control import LADDER, TOLD, Record, Setting, gain, link_of
from distroml.runtime.compress.parse import parse_scheme
from distroml.runtime.elastic import World
from distroml.runtime.link import Link
from distroml.runtime.parallel import ParallelModel
from distroml.runtime.parallel.buckets import Start
from distroml.runtime.parallel.buffers import Measured
from distroml.runtime.parallel.compressed import Asked, CompressedExchange
from distroml.runtime.profile.codecs import codec_slows
from distroml.runtime.training.adapting import Adapting
from distroml.runtime.training.offers import codec_costs, layout_of, setting_of
from distroml.runtime.training.places import Recorded, leads, newest, pack, place_of, share, unpack
from distroml.runtime.training.recording import SchemeRecord
from distroml.runtime.training.step import to_device
from distroml.runtime.training.types import StepInfo
from distroml.workerlink import CompressionAdvised

log = logging.getLogger("distroml.runtime.train")

# A backward pass takes about twice as long as the forward pass: a step's computing before any was made.
_PASSES = 3
# A hint is of the median of so many steps after the first few, and looked into again after so many more.
SKIPPED, COUNTED, AGAIN = 3, 20, 200
# A hint is not worth more time than this many elements take to try.
_HINT_ELEMENTS = 1 << 18


@dataclass(frozen=True, slots=True)
class _Adaptable:
    """An exchange as the controller sees it: buckets by their place, those that are empty left out."""

    exchange: CompressedExchange
    numbers: tuple[int, ...]

    def set_timed(self, timed: bool) -> None:
        """See `Adaptable`."""
        self.exchange.set_timed(timed)

    def set_sampled(self, bucket: int | None) -> None:
        """See `Adaptable`."""
        self.exchange.set_sampled(None if bucket is None else self.numbers[bucket])

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
    parallel: ParallelModel, link: Link, world: World, recorded: Recorded, record: SchemeRecord
) -> Adapting | None:
    """The controller of this rank's place; None where no other rank has the same gradients. Collective.

    `recorded` becomes what any rank remembers of earlier generations, or `record` has of them. Buckets that ranks of
    several places hold alike stay as they are: their controllers see other links, and what is held alike would part.

    Raises:
        PeerLost: another rank is gone.
    """
    exchange, plan = parallel.exchange, parallel.plan
    if exchange is None or plan.dp_replicate == 1:
        return None
    here, leading = place_of(plan, world.rank), leads(plan, world.rank)
    if leading:
        # What it remembers may be of before it was at this place.
        recorded[here] = newest([recorded.get(here, Record()), record.read()])
    share(recorded, parallel.collectives)
    alike = parallel.gradients.alike
    starts = [start for start in parallel.gradients.starts if start.spec.numel and start.number not in alike]
    layouts = [layout_of(start.spec) for start in starts]
    mine = codec_costs(layouts, exchange.world_size, world.device) if layouts else {}
    told = parallel.collectives.gather((mine, codec_slows(world)))
    place = {axis: at for axis, at in plan.coordinate(world.rank).items() if axis != "dp_replicate"}
    peers = [told[rank] for rank in range(world.world_size) if place.items() <= plan.coordinate(rank).items()]
    costs = {
        scheme: (rounds, statistics.fmean(costs[scheme][1] for costs, _ in peers))
        for scheme, (rounds, _) in peers[0][0].items()
    }
    adaptable = _Adaptable(exchange, tuple(start.number for start in starts))
    return Adapting(
        adaptable,
        adaptable.set_scheme,
        _setting(parallel, starts, costs, max(slows for _, slows in peers)),
        recorded.setdefault(here, Record()),
        str(plan),
        link.send if leading else None,
        world.generation,
        record.write if leading else None,
        here,
    )


def _setting(
    parallel: ParallelModel, starts: Sequence[Start], costs: Mapping[str, tuple[int, float]], slows: float
) -> Setting:
    """What there is to choose of these exchanges under the model's plan."""
    plan = parallel.plan
    return setting_of(
        [layout_of(start.spec) for start in starts],
        plan.dp_replicate,
        costs,
        slows,
        late=[start.late for start in starts],
        microbatches=plan.grad_accum_steps,
    )


def start(adapting: Adapting, parallel: ParallelModel, sample: Any, share: int, step: int, kept: str) -> None:
    """Choose what holds after `step`. Collective.

    Args:
        adapting: of this generation.
        parallel: that is trained; where nothing is kept, its forward pass is timed, which changes nothing.
        sample: one microbatch.
        share: microbatches of a step on one rank.
        step: the last one that was made.
        kept: what `kept_by` gave then.
    """
    here = place_of(parallel.plan, parallel.mesh.world.rank)
    kept = unpack(kept, here)
    # The pass that is timed where one begins anew takes all ranks: where one place does, all do.
    if here and not all(parallel.collectives.gather(adapting.fits(kept))):
        kept = ""
    adapting.start(step, kept, lambda: _PASSES * share * _forward_s(parallel, sample))


def kept_by(adapting: Adapting | None, parallel: ParallelModel) -> str:
    """What a checkpoint has of all places' controllers; empty where there are none. Collective."""
    if adapting is None:
        return ""
    return pack(adapting.keep(), place_of(parallel.plan, parallel.mesh.world.rank), parallel.collectives)


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
    """Says on rank 0 what `auto` would gain a run that compresses nothing and waits for its gradients.

    It looks at the first steps, and again now and then: a link may become slow, or fast. Of each step the wait of the
    rank counts that waited least: the others waited for its computing, too, and a slow rank is no slow link. The event
    is sent once a generation; `hint` says how things stand, and is empty where there is nothing to gain.
    """

    def __init__(self, parallel: ParallelModel, link: Link, world: World) -> None:
        self._parallel = parallel
        self._link = link
        self._world = world
        self._steps: deque[tuple[float, float]] = deque(maxlen=COUNTED)
        self._next = SKIPPED + COUNTED
        self._watches = parallel.exchange is None and parallel.plan.dp_replicate > 1
        self._setting: Setting | None = None
        self._told = False
        self.hint = ""

    def step(self, info: StepInfo) -> None:
        """Count a step; once enough are known, say what there is to say. Collective then. Raises `PeerLost`."""
        if not self._watches:
            return
        self._steps.append((info.step_s, info.comm_wait_s))
        self._next -= 1
        if self._next > 0:
            return
        self._next = AGAIN
        waits = self._parallel.collectives.gather([waited_s for _, waited_s in self._steps])
        if not self._world.is_main:
            return
        step_s = statistics.median(step_s for step_s, _ in self._steps)
        exposed_s = statistics.median(min(one) for one in zip(*waits, strict=True))
        self.hint = self._advice(info.step, step_s, exposed_s) if exposed_s > TOLD * step_s else ""

    def _advice(self, step: int, step_s: float, exposed_s: float) -> str:
        setting = self._setting = self._setting or self._tried()
        found = gain(setting, link_of(setting, step_s, exposed_s), step_s, exposed_s)
        if found is None:
            return ""
        if not self._told:
            self._told = True
            order = [rung.scheme for rung in LADDER if rung.scheme in found.schemes]
            self._link.send(
                CompressionAdvised(
                    generation=self._world.generation,
                    step=step,
                    step_seconds=step_s,
                    exposed_seconds=exposed_s,
                    predicted_step_seconds=found.auto_step_s,
                    faster=found.faster,
                    schemes=", ".join(order),
                )
            )
        return (
            f"{100 * found.exposed:.0f} % of a step waits for communication: --compress auto would reach a loss "
            f"{found.faster:.2g} times faster"
        )

    def _tried(self) -> Setting:
        starts = [start for start in self._parallel.gradients.starts if start.spec.numel]
        layouts = [layout_of(start.spec) for start in starts]
        costs = codec_costs(layouts, self._parallel.plan.dp_replicate, self._world.device, _HINT_ELEMENTS)
        return _setting(self._parallel, starts, costs, codec_slows(self._world))
