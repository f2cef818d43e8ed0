"""What torch calls on a group over MPI: each collective as one or more operations of the engine.

Pinned to torch 2.15: `Backend` is subclassed by the names that its C++ side looks up, which are not public
(libs/runtime/tests/comm calls each of them through `torch.distributed`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch._C._distributed_c10d import Backend, Work  # the base that torch offers to back ends, not exported

from distroml.runtime.comm.backends.mpi.engine import Engine, Operation
from distroml.runtime.comm.backends.mpi.kinds import Kinds, is_average
from distroml.runtime.comm.backends.mpi.memory import (
    Tensors,
    chained,
    divided,
    flat_of,
    joined,
    nothing,
    put_into,
    told,
)
from distroml.runtime.comm.backends.mpi.work import MpiWork

TORCH_NAME = "mpi4py"


class MpiGroup(Backend):
    """One communicator, as `torch.distributed` knows it. CPU tensors; strided ones go through a copy."""

    def __init__(
        self, mpi: Any, communicator: Any, ranks: frozenset[int], engine: Engine, kinds: Kinds, timeout: timedelta
    ) -> None:
        super().__init__(communicator.rank, communicator.size)
        self._mpi = mpi
        self._comm = communicator
        self._ranks = ranks
        self._engine = engine
        self._kinds = kinds
        self._timeout = timeout

    # ---- what it is

    def getBackendName(self) -> str:
        """As torch knows it."""
        return TORCH_NAME

    @property
    def options(self) -> Backend.Options:
        """Name and time limit."""
        return Backend.Options(TORCH_NAME, timeout=self._timeout)

    def set_timeout(self, timeout: timedelta) -> None:
        """How long operations from now on may take."""
        self._timeout = timeout

    def shutdown(self) -> None:
        """Let the communicator go; with operations under way it stays."""
        self._engine.release(self._comm)

    def abort(self) -> None:
        """Break the world: everything that waits in it fails."""
        self._engine.break_("the group was aborted")

    # ---- reductions

    def allreduce(self, tensors: Tensors, opts: Any) -> Work:
        """Each tensor becomes its sum (or what `opts` says) over the ranks."""
        return self._all([self._allreduce(tensor, opts) for tensor in tensors], tensors)

    def allreduce_coalesced(self, tensors: Tensors, opts: Any) -> Work:
        """As `allreduce`."""
        return self.allreduce(tensors, opts)

    def _allreduce(self, tensor: torch.Tensor, opts: Any) -> Operation:
        flat = flat_of(tensor)
        reduced, kind, op = self._kinds.reduction(flat, opts.reduceOp)
        buffer = (self._kinds.address(reduced), reduced.numel(), kind)
        return self._post(
            f"all_reduce of {told(tensor)}",
            lambda: self._comm.Iallreduce(self._mpi.IN_PLACE, buffer, op),
            self._averaged(flat, opts, lambda: put_into(tensor, flat)),
            [tensor],
            opts,
        )

    def reduce(self, tensors: Tensors, opts: Any) -> Work:
        """The root's tensors become the sums; the others' stay."""
        return self._all([self._reduce(tensor, opts) for tensor in tensors], tensors)

    def _reduce(self, tensor: torch.Tensor, opts: Any) -> Operation:
        own, root = flat_of(tensor), self._comm.rank == opts.rootRank
        total = torch.empty_like(own) if root else own
        sent, kind, op = self._kinds.reduction(own, opts.reduceOp)
        received, _, _ = self._kinds.reduction(total, opts.reduceOp)
        source = (self._kinds.address(sent), sent.numel(), kind)
        target = (self._kinds.address(received), received.numel(), kind) if root else None
        return self._post(
            f"reduce of {told(tensor)}",
            lambda: self._comm.Ireduce(source, target, op, root=opts.rootRank),
            self._averaged(total, opts, lambda: put_into(tensor, total)) if root else nothing,
            [tensor],
            opts,
            keep=(own, total),
        )

    def reduce_scatter_single(self, output: torch.Tensor, input: torch.Tensor, opts: Any) -> Work:
        """`output` becomes this rank's part of the sum of the `input`s."""
        counts = [output.numel()] * self._comm.size
        return self._all([self._reduce_scatter(output, flat_of(input), counts, opts)], [output])

    def reduce_scatter_single_coalesced(self, outputs: Tensors, inputs: Tensors, opts: Any) -> Work:
        """As `reduce_scatter_single` for each pair."""
        size = self._comm.size
        operations = [
            self._reduce_scatter(output, flat_of(input), [output.numel()] * size, opts)
            for output, input in zip(outputs, inputs, strict=True)
        ]
        return self._all(operations, outputs)

    def reduce_scatter(self, outputs: Tensors, inputs: list[Tensors], opts: Any) -> Work:
        """`output` becomes the sum of what all ranks hand in for this one."""
        operations = [
            self._reduce_scatter(output, joined(parts), [part.numel() for part in parts], opts)
            for output, parts in zip(outputs, inputs, strict=True)
        ]
        return self._all(operations, outputs)

    def _reduce_scatter(self, output: torch.Tensor, whole: torch.Tensor, counts: list[int], opts: Any) -> Operation:
        if sum(counts) != whole.numel() or counts[self._comm.rank] != output.numel():
            raise ValueError(
                f"reduce_scatter over {self._comm.size} ranks: {told(whole)} does not divide into {told(output)}"
            )
        own = flat_of(output, keep=False)
        sent, kind, op = self._kinds.reduction(whole, opts.reduceOp)
        received, _, _ = self._kinds.reduction(own, opts.reduceOp)
        scale = sent.numel() // whole.numel() if whole.numel() else 1
        source = (self._kinds.address(sent), sent.numel(), kind)
        target = (self._kinds.address(received), received.numel(), kind)
        scaled = [count * scale for count in counts]
        return self._post(
            f"reduce_scatter of {told(whole)}",
            lambda: self._comm.Ireduce_scatter(source, target, scaled, op),
            self._averaged(own, opts, lambda: put_into(output, own)),
            [output],
            opts,
            keep=(whole, own),
        )

    def _averaged(self, flat: torch.Tensor, opts: Any, then: Callable[[], None]) -> Callable[[], None]:
        if not is_average(opts.reduceOp):
            return then
        if not (flat.is_floating_point() or flat.is_complex()):
            raise TypeError(f"the back end mpi cannot average {flat.dtype}; convert to a floating-point type")

        def divide() -> None:
            flat.div_(self._comm.size)
            then()

        return divide

    # ---- gathers and scatters

    def all_gather_single(self, output: torch.Tensor, input: torch.Tensor, opts: Any) -> Work:
        """`output` becomes all ranks' `input`s, by rank."""
        return self._all([self._gather_flat(output, input, opts)], [output])

    def all_gather_single_coalesced(self, outputs: Tensors, inputs: Tensors, opts: Any) -> Work:
        """As `all_gather_single` for each pair."""
        pairs = zip(outputs, inputs, strict=True)
        return self._all([self._gather_flat(output, input, opts) for output, input in pairs], outputs)

    def _gather_flat(self, output: torch.Tensor, input: torch.Tensor, opts: Any) -> Operation:
        if output.numel() != input.numel() * self._comm.size or output.dtype != input.dtype:
            raise ValueError(
                f"all_gather over {self._comm.size} ranks: {told(input)} of each do not make {told(output)}"
            )
        whole = flat_of(output, keep=False)
        counts = [input.numel()] * self._comm.size
        return self._gathered(input, whole, counts, lambda: put_into(output, whole), [output], opts)

    def allgather(self, outputs: list[Tensors], inputs: Tensors, opts: Any) -> Work:
        """`outputs[i]` become all ranks' `inputs[i]`, by rank."""
        pairs = zip(outputs, inputs, strict=True)
        return self._all([self._gather_list(parts, own, opts) for parts, own in pairs], chained(outputs))

    def allgather_coalesced(self, outputs: list[Tensors], inputs: Tensors, opts: Any) -> Work:
        """`outputs[rank]` become that rank's `inputs`."""
        by_tensor = [list(parts) for parts in zip(*outputs, strict=True)]
        return self.allgather(by_tensor, inputs, opts)

    def _gather_list(self, parts: Tensors, own: torch.Tensor, opts: Any) -> Operation:
        whole = torch.empty(sum(part.numel() for part in parts), dtype=own.dtype)
        counts = [part.numel() for part in parts]
        return self._gathered(own, whole, counts, lambda: divided(whole, parts), parts, opts)

    def _gathered(
        self,
        own: torch.Tensor,
        whole: torch.Tensor,
        counts: list[int],
        finish: Callable[[], None],
        result: Tensors,
        opts: Any,
    ) -> Operation:
        sent, mover = flat_of(own), self._kinds.mover(own.dtype)
        source, target = self._kinds.moved(sent), (self._kinds.address(whole), counts, None, mover)
        return self._post(
            f"all_gather of {told(own)}",
            lambda: self._comm.Iallgatherv(source, target),
            finish,
            result,
            opts,
            keep=(sent, whole),
        )

    def gather(self, outputs: list[Tensors], inputs: Tensors, opts: Any) -> Work:
        """On the root `outputs[0]` become all ranks' `inputs[0]`, by rank."""
        own, root = flat_of(inputs[0]), self._comm.rank == opts.rootRank
        parts = outputs[0] if root else []
        whole = torch.empty(sum(part.numel() for part in parts), dtype=own.dtype)
        counts = [part.numel() for part in parts]
        target = (self._kinds.address(whole), counts, None, self._kinds.mover(own.dtype)) if root else None
        source = self._kinds.moved(own)
        operation = self._post(
            f"gather of {told(own)}",
            lambda: self._comm.Igatherv(source, target, root=opts.rootRank),
            lambda: divided(whole, parts),
            parts,
            opts,
            keep=(own, whole),
        )
        return self._all([operation], parts)

    def scatter(self, outputs: Tensors, inputs: list[Tensors], opts: Any) -> Work:
        """`outputs[0]` becomes what the root's `inputs[0]` has for this rank."""
        output, root = outputs[0], self._comm.rank == opts.rootRank
        own = flat_of(output, keep=False)
        whole = joined(inputs[0]) if root else own
        counts = [part.numel() for part in inputs[0]] if root else []
        source = (self._kinds.address(whole), counts, None, self._kinds.mover(own.dtype)) if root else None
        target = self._kinds.moved(own)
        operation = self._post(
            f"scatter of {told(output)}",
            lambda: self._comm.Iscatterv(source, target, root=opts.rootRank),
            lambda: put_into(output, own),
            outputs,
            opts,
            keep=(own, whole),
        )
        return self._all([operation], outputs)

    def broadcast(self, tensors: Tensors, opts: Any) -> Work:
        """Every rank's tensors become the root's."""
        return self._all([self._broadcast(tensor, opts) for tensor in tensors], tensors)

    def _broadcast(self, tensor: torch.Tensor, opts: Any) -> Operation:
        flat = flat_of(tensor)
        buffer = self._kinds.moved(flat)
        return self._post(
            f"broadcast of {told(tensor)}",
            lambda: self._comm.Ibcast(buffer, root=opts.rootRank),
            lambda: put_into(tensor, flat),
            [tensor],
            opts,
        )

    def all_to_all_single(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        output_split_sizes: list[int],
        input_split_sizes: list[int],
        opts: Any,
    ) -> Work:
        """Rank r gets the r-th part of every rank's `input`; parts are rows, or equal where no sizes are given."""
        own, sent = flat_of(output, keep=False), flat_of(input)
        operation = self._exchanged(
            (sent, self._split(input, input_split_sizes)),
            (own, self._split(output, output_split_sizes)),
            lambda: put_into(output, own),
            [output],
            opts,
        )
        return self._all([operation], [output])

    def alltoall(self, outputs: Tensors, inputs: Tensors, opts: Any) -> Work:
        """`outputs[r]` becomes what rank r's `inputs` have for this one."""
        whole = torch.empty(sum(part.numel() for part in outputs), dtype=outputs[0].dtype)
        operation = self._exchanged(
            (joined(inputs), [part.numel() for part in inputs]),
            (whole, [part.numel() for part in outputs]),
            lambda: divided(whole, outputs),
            outputs,
            opts,
        )
        return self._all([operation], outputs)

    def _split(self, tensor: torch.Tensor, sizes: list[int]) -> list[int]:
        size = self._comm.size
        if sizes:
            row = tensor.numel() // tensor.shape[0] if tensor.shape[0] else 0
            return [rows * row for rows in sizes]
        if tensor.shape[0] % size:
            raise ValueError(f"all_to_all over {size} ranks: {told(tensor)} has rows that do not divide evenly")
        return [tensor.numel() // size] * size

    def _exchanged(
        self,
        sent: tuple[torch.Tensor, list[int]],
        received: tuple[torch.Tensor, list[int]],
        finish: Callable[[], None],
        result: Tensors,
        opts: Any,
    ) -> Operation:
        mover = self._kinds.mover(sent[0].dtype)
        source = (self._kinds.address(sent[0]), sent[1], None, mover)
        target = (self._kinds.address(received[0]), received[1], None, mover)
        what = f"all_to_all of {told(sent[0])}"
        start = lambda: self._comm.Ialltoallv(source, target)  # noqa: E731 - named for its line's length
        return self._post(what, start, finish, result, opts, keep=(sent[0], received[0]))

    def barrier(self, opts: Any) -> Work:
        """Ends when every rank came to it."""
        return self._all([self._post("barrier", self._comm.Ibarrier, nothing, [], opts)], [])

    # ---- messages

    def send(self, tensors: Tensors, destination: int, tag: int) -> Work:
        """Ends when the memory may be used again."""
        return self._all([self._send(tensor, destination, tag) for tensor in tensors], tensors)

    def _send(self, tensor: torch.Tensor, destination: int, tag: int) -> Operation:
        flat = flat_of(tensor)
        buffer = self._kinds.moved(flat)
        what = f"send of {told(tensor)} to rank {destination}"
        start = lambda: self._comm.Isend(buffer, dest=destination, tag=tag)  # noqa: E731
        return self._post(what, start, nothing, [tensor], None, keep=(flat,))

    def recv(self, tensors: Tensors, source: int, tag: int) -> Work:
        """The tensors become what `source` sends with the same tag."""
        return self._all([self._recv(tensor, source, tag) for tensor in tensors], tensors)

    def _recv(self, tensor: torch.Tensor, source: int, tag: int) -> Operation:
        flat = flat_of(tensor, keep=False)
        buffer = self._kinds.moved(flat)
        what = f"receipt of {told(tensor)} from rank {source}"
        start = lambda: self._comm.Irecv(buffer, source=source, tag=tag)  # noqa: E731
        return self._post(what, start, lambda: put_into(tensor, flat), [tensor], None)

    # ---- all of them

    def _post(
        self,
        what: str,
        start: Callable[[], Any],
        finish: Callable[[], None],
        result: Tensors,
        opts: Any,
        keep: tuple[torch.Tensor, ...] = (),
    ) -> Operation:
        """Start an operation; `keep` is memory that nothing else here holds while it runs."""
        asked: timedelta | None = getattr(opts, "timeout", None)
        limit = asked if asked is not None and asked > timedelta(0) else self._timeout

        def put() -> None:
            with torch.no_grad():
                finish()
            del kept[:]

        kept = list(keep)
        operation = Operation(
            what=f"{what} over {self._comm.size} ranks",
            start=start,
            finish=put,
            result=result,
            timeout_s=limit.total_seconds(),
            ranks=self._ranks,
        )
        self._engine.post(operation)
        return operation

    def _all(self, operations: list[Operation], result: Tensors) -> Work:
        return MpiWork(self._engine, operations, result)


# What it cannot do must be said: torch 2.15's own answer for a subclass in Python is to ask it again, without end.
for _cannot in (
    "supports_splitting", "supports_coalescing", "supports_shrinking", "supports_reconfigure", "supports_window",
    "_supports_time_estimate",
):  # fmt: skip
    setattr(MpiGroup, _cannot, property(lambda _self: False))
