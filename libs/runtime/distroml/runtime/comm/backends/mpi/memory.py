"""Tensors as the dense memory that MPI reads and writes."""

from __future__ import annotations

import torch

Tensors = list[torch.Tensor]


def nothing() -> None:
    """Nothing is left to do."""


def flat_of(tensor: torch.Tensor, *, keep: bool = True) -> torch.Tensor:
    """The memory of `tensor` itself where it is dense and in order, else memory like it (`keep`: with its values)."""
    if tensor.device.type != "cpu":
        raise ValueError(
            f"the back end mpi moves CPU memory only, and this tensor is on {tensor.device}; use nccl, or device='cpu'"
        )
    detached = tensor.detach()
    if detached.is_contiguous():
        return detached
    return detached.contiguous() if keep else torch.empty(detached.shape, dtype=detached.dtype)


def put_into(tensor: torch.Tensor, flat: torch.Tensor) -> None:
    """`tensor` has the values of `flat`, which `flat_of` made of it."""
    if tensor.data_ptr() != flat.data_ptr():
        tensor.detach().copy_(flat.view(tensor.shape))


def joined(parts: Tensors) -> torch.Tensor:
    """All elements of `parts`, one after the other."""
    return torch.cat([part.detach().reshape(-1) for part in parts])


def divided(whole: torch.Tensor, parts: Tensors) -> None:
    """`parts` have the values that lie one after the other in `whole`."""
    at = 0
    for part in parts:
        part.detach().copy_(whole[at : at + part.numel()].view(part.shape))
        at += part.numel()


def chained(lists: list[Tensors]) -> Tensors:
    """All tensors of all lists."""
    return [tensor for list_ in lists for tensor in list_]


def told(tensor: torch.Tensor) -> str:
    """Dtype and shape, for errors."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
