"""A tp rank's own random numbers come from the device that is meant, and leave no trace on any."""

from __future__ import annotations

import pytest
import torch

from distroml.runtime.parallel.tensor.streams import own_numbers


def test_own_numbers_are_of_the_mesh_s_gpu_whichever_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine of two GPUs, for which generators of the CPU stand in."""
    gpus = tuple(torch.Generator() for _ in range(2))
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "default_generators", gpus)
    before = [gpu.get_state() for gpu in gpus]
    drawn: list[torch.Tensor] = []
    for rank in range(2):
        with torch.random.fork_rng(devices=[]), own_numbers(torch.device("cuda", 1), rank):
            drawn.append(torch.rand(4, generator=gpus[1]))
            assert torch.equal(gpus[0].get_state(), before[0])
    assert not torch.equal(*drawn)
    for gpu, state in zip(gpus, before, strict=True):
        assert torch.equal(gpu.get_state(), state)
