"""Reductions of a group over MPI, as torch calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._C._distributed_c10d import Work  # what torch waits for, not exported

from distroml.runtime.comm.backends.mpi.engine import Operation
from distroml.runtime.comm.backends.mpi.kinds import is_average
from distroml.runtime.comm.backends.mpi.memory import Tensors, flat_of, joined, nothing, put_into, told
from distroml.runtime.comm.backends.mpi.posting import Posting


class Reductions(Posting):
    """Sums, or what else is asked for, of all ranks' tensors."""

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
