"""Makes the rounds of an exchange over the ranks of an axis, and counts what they put on the wire by level.

The only place where a scheme's generator meets a process group: training, measurements on live ranks and trials on
one rank drive the same loop, and differ in who answers.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from distroml.runtime.comm.algorithms import AllReduce, Arrangement, Flat
from distroml.runtime.comm.moves import ring_gather, swap
from distroml.runtime.comm.wire import Kind, sent_bytes
from distroml.runtime.compress.scheme import Round, TakenBack
from distroml.runtime.elastic import Pending, communication


@dataclass(frozen=True, slots=True)
class Driven:
    """One exchange.

    Attributes:
        rounds: how many it had.
        computing_s: that this rank computed before, in, between and after them, by the clock that was given.
        answering_s: seconds from handing in each round to its answer, less those in which it filled its payload.
    """

    rounds: int
    computing_s: float
    answering_s: float


def drive(
    steps: Generator[Round, torch.Tensor],
    answer: Callable[[Round], torch.Tensor],
    settle: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Driven:
    """Run a scheme's generator to its end.

    Args:
        steps: the generator.
        answer: makes one round, and returns what comes back.
        settle: returns once a device has done what it was told, so that seconds are those of the right part.
        clock: of computing: the thread's own, where what others do on its processor is not to count.

    Raises:
        TakenBack: `answer` did; the generator has taken back what it did.
    """
    computing_s, answering_s, rounds = 0.0, 0.0, 0

    def timed(fill: Callable[[], None]) -> None:
        nonlocal computing_s, answering_s
        began, started = time.perf_counter(), clock()
        fill()
        settle()
        computing_s += clock() - started
        answering_s -= time.perf_counter() - began

    back: torch.Tensor | None = None
    while True:
        started = clock()
        try:
            wanted = next(steps) if back is None else steps.send(back)
        except StopIteration:
            wanted = None
        # The scheme has made of it what it wanted: two rounds' answers need not be there at once.
        back = None
        settle()
        computing_s += clock() - started
        handed_in = time.perf_counter()
        if wanted is None:
            return Driven(rounds, computing_s, answering_s)
        if wanted.fill is not None:
            wanted = replace(wanted, fill=functools.partial(timed, wanted.fill))
        try:
            back = answer(wanted)
        except TakenBack as for_nothing:
            steps.throw(for_nothing)
            raise
        del wanted
        settle()
        answering_s += time.perf_counter() - handed_in
        rounds += 1


class Peers:
    """The ranks of an axis, among which one thread at a time makes rounds. What comes back of sums is bit-equal.

    Args:
        group: theirs, in the axis's order; None: this rank is the only one.
        sums: how they are summed, on groups of no other user; None: as the back end does.
        arrangement: of them on nodes, by which bytes are counted; None: they share a node.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        sums: AllReduce | None = None,
        arrangement: Arrangement | None = None,
    ) -> None:
        self.group = group
        self.rank = group.rank() if group is not None else 0
        self.world_size = group.size() if group is not None else 1
        self._arrangement = arrangement
        self._sums = sums if sums is not None or group is None else Flat(group)
        self._sent: Counter[str] = Counter()

    def take(self) -> Counter[str]:
        """Bytes that this rank sent by level since the last call."""
        sent, self._sent = self._sent, Counter()
        return sent

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor`, replaced by its sum over the ranks. Raises `PeerLost`."""
        if self._sums is not None and tensor.numel():
            self._sums.sum(tensor)
            self._sent.update(self._sums.sent_bytes(tensor.nbytes))
        return tensor

    def start(self, tensor: torch.Tensor) -> Pending:
        """Begin what `sum` does. `wait()` raises `PeerLost`."""
        if self._sums is None or not tensor.numel():
            return Pending(None)
        self._sent.update(self._sums.sent_bytes(tensor.nbytes))
        return self._sums.start(tensor)

    def tell(self, tensor: torch.Tensor) -> Pending:
        """Begin to sum a few numbers, over the group itself: a sum that is begun after it may be under way, too."""
        if self.group is None:
            return Pending(None)
        self._sent.update(self.bytes_of("sum", tensor.nbytes))
        return Flat(self.group).start(tensor)

    def make(self, wanted: Round) -> torch.Tensor:
        """Make one round. Returns what `Round` says that comes back. Raises `PeerLost`."""
        ranks, fill = self.world_size, wanted.fill
        gloo = self.group is not None and wanted.payload.device.type == "cpu" and dist.get_backend(self.group) == "gloo"
        early = gloo and wanted.how == "gather" and ranks > 1
        payload = wanted.payload if early else wanted.filled()
        if wanted.how == "sum":
            return self.sum(payload)
        answer = wanted.into
        if answer is None:
            answer = payload.new_empty(ranks, payload.numel() // (ranks if wanted.how == "scatter" else 1))
        if self.group is None or ranks == 1 or not payload.numel():
            return answer.copy_(payload.view(answer.shape))
        # Bytes, since not every back end moves every kind of number.
        got, given = answer.view(-1).view(torch.uint8), payload.view(torch.uint8)
        with communication():
            if gloo:
                rows = got.view(ranks, -1)
                if wanted.how == "gather":
                    ring_gather(rows, given, self.group, fill)
                else:
                    swap(rows, given.view(ranks, -1), self.group)
            elif wanted.how == "gather":
                # Of the back ends, NCCL alone reads from what it writes to.
                if wanted.into is not None and dist.get_backend(self.group) != "nccl":
                    given = given.clone()
                dist.all_gather_into_tensor(got, given, group=self.group)
            else:
                dist.all_to_all_single(got, given, group=self.group)
        self._sent.update(self.bytes_of(wanted.how, payload.nbytes))
        return answer

    def bytes_of(self, kind: Kind, payload_bytes: int) -> dict[str, int]:
        """Bytes that this rank sends by level in one collective of the back end's own over `group`."""
        if self._arrangement is None or self.group is None:
            return {"node": sent_bytes(kind, payload_bytes, self.world_size)}
        return self._arrangement.sent(kind, payload_bytes, dist.get_global_rank(self.group, self.rank))
