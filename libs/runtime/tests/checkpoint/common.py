"""Saving a state by simulated ranks in one process, and committing it as the catalogue would."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distroml.manifest import Keys, encode, hash_of, merge, read_shard
from distroml.objectstore import ObjectStore
from distroml.runtime.checkpoint import Saver, ShardResult
from distroml.runtime.checkpoint.planner import State

JOB = "job-a"


@dataclass(frozen=True)
class Opened:
    step: int
    save_id: str
    base_manifest_hash: str = ""
    object_prefix: str = ""


class Outcomes:
    """What savers said."""

    def __init__(self) -> None:
        self.saved: list[ShardResult] = []
        self.failed: list[tuple[int, str]] = []
        self._said = threading.Condition()

    def on_saved(self, result: ShardResult) -> None:
        with self._said:
            self.saved.append(result)
            self._said.notify_all()

    def on_failed(self, step: int, text: str) -> None:
        with self._said:
            self.failed.append((step, text))
            self._said.notify_all()

    def expect(self, count: int, timeout_s: float = 20.0) -> None:
        with self._said:
            assert self._said.wait_for(lambda: len(self.saved) + len(self.failed) >= count, timeout_s)


def saver(store: ObjectStore, outcomes: Outcomes, rank: int = 0, world_size: int = 1, **options: int) -> Saver:
    return Saver(
        store,
        job=JOB,
        rank=rank,
        world_size=world_size,
        generation=1,
        on_saved=outcomes.on_saved,
        on_failed=outcomes.on_failed,
        **options,
    )


def commit(store: ObjectStore, results: Sequence[ShardResult]) -> str:
    data = encode(merge([read_shard(store.get(one.shard_key), one.shard_hash) for one in results]))
    sha = hash_of(data)
    store.put(Keys(JOB).manifest(sha), data)
    return sha


def save(
    store: ObjectStore,
    state: State,
    step: int = 1,
    *,
    world_size: int = 1,
    base: str = "",
    extras: Sequence[object] = (),
    **options: int,
) -> tuple[str, list[ShardResult]]:
    """Every rank saves its part; returns the manifest's hash and the results by rank."""
    results: list[ShardResult] = []
    for rank in range(world_size):
        outcomes = Outcomes()
        one = saver(store, outcomes, rank, world_size, **options)
        extra = extras[rank] if extras else None
        assert one.begin(state, extra, step=step, opened=Opened(step, f"s{step:010d}", base))
        outcomes.expect(1)
        one.close(5)
        assert not outcomes.failed, outcomes.failed
        results += outcomes.saved
    return commit(store, results), results


def same(one: object, other: object, where: str = "state") -> None:
    """Equal bit for bit: dtypes, shapes, NaN payloads and types of plain values."""
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor), where
        assert (one.dtype, one.shape) == (other.dtype, other.shape), where
        left, right = (t.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8) for t in (one, other))
        assert torch.equal(left, right), where
    elif isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys(), where
        for key in one:
            same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert type(one) is type(other), where
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            same(left, right, f"{where}[{index}]")
    else:
        assert type(one) is type(other), (where, one, other)
        assert one == other or (one != one and other != other), where


class Net(torch.nn.Module):
    """Parameters, buffers, a tied weight, a frozen one, and one that never gets a gradient."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embed = torch.nn.Embedding(32, 16)
        self.body = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 16))
        self.head = torch.nn.Linear(16, 32, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = torch.nn.Parameter(torch.ones(5), requires_grad=False)
        self.unused = torch.nn.Parameter(torch.ones(3))
        self.register_buffer("count", torch.tensor(0, dtype=torch.int64))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.rand(parameter.shape, generator=generator))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return self.head(self.body(self.embed(tokens)))


def train(net: Net, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for _ in range(steps):
        loss = net(torch.randint(0, 32, (8,), generator=generator)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
