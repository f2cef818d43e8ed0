"""Torch functions whose own annotations are incomplete, with their types."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


def floats(tensor: torch.Tensor) -> list[float]:
    """The elements of a one-dimensional tensor; waits for the device."""
    return cast("list[float]", cast("Any", tensor).tolist())


def integers(tensor: torch.Tensor) -> list[int]:
    """The elements of a one-dimensional integer tensor; waits for the device."""
    return cast("list[int]", cast("Any", tensor).tolist())


def norm_of(tensor: torch.Tensor) -> torch.Tensor:
    """The 2-norm of all elements; a float32 of those of 16 bits, whose range or precision it would leave."""
    wide = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None
    return cast("torch.Tensor", cast("Any", torch.linalg).vector_norm(tensor, dtype=wide))


def seed_torch(seed: int) -> None:
    """Seed torch's generators of every device."""
    cast("Any", torch).manual_seed(seed)


def seed_generators(seed: int) -> None:
    """Seed torch's CPU generator, and CUDA's where it is in use: a hundredth of the time of `manual_seed`."""
    cast("Any", torch).default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        cast("Any", torch.cuda).manual_seed(seed)


def generators_of(device: torch.device) -> list[torch.Generator]:
    """From which random numbers on `device` come, and those that are drawn on the CPU first."""
    found = [cast("Any", torch).default_generator]
    if device.type == "cuda":
        torch.cuda.init()
        index = cast("int | None", device.index)
        index = torch.cuda.current_device() if index is None else index
        found.append(torch.cuda.default_generators[index])
    return found


def backward(loss: torch.Tensor) -> None:
    """Run the backward pass."""
    cast("Any", loss).backward()


def on_gradient(parameter: torch.Tensor, hook: Callable[[torch.Tensor], None]) -> RemovableHandle:
    """Call `hook` whenever a backward pass has accumulated into the parameter's gradient."""
    return cast("RemovableHandle", cast("Any", parameter).register_post_accumulate_grad_hook(hook))


def compile_in_place(module: nn.Module) -> None:
    """Compile the module's forward pass; names of parameters stay."""
    cast("Any", module).compile()


def split_flat(flat: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    """Views of consecutive parts of a one-dimensional tensor."""
    return cast("list[torch.Tensor]", list(cast("Any", flat).split(sizes)))


def fork_generators() -> AbstractContextManager[None]:
    """Within it, random numbers leave no trace on torch's generators."""
    return cast("AbstractContextManager[None]", cast("Any", torch.random).fork_rng())
