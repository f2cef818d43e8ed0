"""What torch calls on a group over MPI: each collective as one or more operations of the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._C._distributed_c10d import Work  # what torch waits for, not exported

from distroml.runtime.comm.backends.mpi.engine import Operation
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
from distroml.runtime.comm.backends.mpi.reductions import Reductions


class MpiGroup(Reductions):
    """One communicator, as `torch.distributed` knows it. CPU tensors; strided ones go through a copy."""

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


# What it cannot do must be said: torch 2.15's own answer for a subclass in Python is to ask it again, without end.
for _cannot in (
    "supports_splitting", "supports_coalescing", "supports_shrinking", "supports_reconfigure", "supports_window",
    "_supports_time_estimate",
):  # fmt: skip
    setattr(MpiGroup, _cannot, property(lambda _self: False))
