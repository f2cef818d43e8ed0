"""What a checkpoint costs: bytes written against a full save, seconds and CPU against torch.save, seconds to load.

Run: OMP_NUM_THREADS=1 python benchmarks/checkpoint.py [--rounds 5] [--folder DIR]   (DIR on the disk in question)

Byte figures are exact. Times are medians of interleaved rounds; their spread (largest over smallest) stands beside
them, since on a shared machine a median alone says little. CPU is that of the whole process between begin and end.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from distroml.manifest import Keys, encode, hash_of, merge, read_shard
from distroml.objectstore import ObjectStore
from distroml.objectstore.filesystem import open_object_store
from distroml.runtime.checkpoint import Saver, ShardResult, capture, restore

JOB = "bench"


@dataclass(frozen=True)
class Opened:
    step: int
    save_id: str
    base_manifest_hash: str
    object_prefix: str = ""


@dataclass(frozen=True)
class Cost:
    """One save by all ranks, one after the other."""

    manifest_hash: str
    total: int
    written: int
    blocked_s: float
    wall_s: float
    cpu_s: float


class Ranks:
    """The savers of a job, all in this process, and the catalogue's part of a save."""

    def __init__(self, store: ObjectStore, world_size: int, chunk_bytes: int) -> None:
        self._store = store
        self._results: list[ShardResult] = []
        self._saves = 0
        self.savers = [
            Saver(
                store,
                job=JOB,
                rank=rank,
                world_size=world_size,
                generation=1,
                on_saved=self._results.append,
                on_failed=lambda step, text: print(f"step {step} failed: {text}"),
                chunk_bytes=chunk_bytes,
            )
            for rank in range(world_size)
        ]

    def save(self, net: torch.nn.Module, optimizer: torch.optim.Optimizer, base: str) -> Cost:
        self._saves += 1
        self._results.clear()
        blocked = 0.0
        started, cpu = time.perf_counter(), time.process_time()
        for saver in self.savers:
            before = time.perf_counter()
            saver.begin(
                capture(net, optimizer),
                None,
                step=self._saves,
                opened=Opened(self._saves, f"s{self._saves:010d}", base),
            )
            blocked = max(blocked, time.perf_counter() - before)
            saver.wait(60)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        while len(self._results) < len(self.savers):
            time.sleep(0.001)
        shards = [read_shard(self._store.get(one.shard_key), one.shard_hash) for one in self._results]
        manifest = merge(shards)
        data = encode(manifest)
        self._store.put(Keys(JOB).manifest(hash_of(data)), data)
        return Cost(hash_of(data), manifest.bytes_total, manifest.bytes_written, blocked, wall, cpu)


class Bytes(torch.nn.Module):
    """About 5 million parameters; `vocabulary` rows of embedding and ten blocks."""

    def __init__(self, vocabulary: int = 256, width: int = 256, blocks: int = 10) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(vocabulary, width)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(width, 4 * width), torch.nn.GELU(), torch.nn.Linear(4 * width, width))
            for _ in range(blocks)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tokens)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return hidden.square().mean()


def dense() -> tuple[Bytes, torch.optim.Optimizer]:
    net = Bytes()
    return net, torch.optim.AdamW(net.parameters(), lr=1e-3)


def frozen() -> tuple[Bytes, torch.optim.Optimizer]:
    net = Bytes()
    for parameter in [*net.embed.parameters(), *net.blocks[:8].parameters()]:
        parameter.requires_grad_(False)
    return net, torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3)


def untouched() -> tuple[Bytes, torch.optim.Optimizer]:
    """20,000 rows of which training sees the first 256; Adam without decay leaves the others as they are."""
    net = Bytes(vocabulary=20_000, blocks=4)
    return net, torch.optim.Adam(net.parameters(), lr=1e-3)


def train(net: Bytes, optimizer: torch.optim.Optimizer) -> None:
    net(torch.randint(0, 256, (4, 16))).backward()
    optimizer.step()
    optimizer.zero_grad()


def bytes_written(folder: Path) -> None:
    print("bytes written by a save on a base, against a full save (2 ranks):")
    cases = [("dense AdamW", dense), ("4/5 of the layers frozen", frozen), ("embedding rows untouched", untouched)]
    for name, make in cases:
        for chunk_bytes in (4 << 20, 256 << 10):
            net, optimizer = make()
            train(net, optimizer)
            store = open_object_store(folder / f"{make.__name__}-{chunk_bytes}")
            ranks = Ranks(store, 2, chunk_bytes)
            first = ranks.save(net, optimizer, "")
            train(net, optimizer)
            second = ranks.save(net, optimizer, first.manifest_hash)
            megabytes = f"{second.written / 1e6:6.1f} of {second.total / 1e6:6.1f} MB"
            print(
                f"  {name:26} chunks {chunk_bytes >> 10:5} KiB: {megabytes}  ratio {second.written / second.total:.3f}"
                f"   (first save {first.written / first.total:.3f})"
            )


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values) * 1000:7.1f} ms  (spread x{max(values) / min(values):.2f})"


def discard(store: ObjectStore) -> None:
    while found := store.list(Keys(JOB).root):
        for info in found:
            store.delete(info.key)


def times(folder: Path, rounds: int) -> None:
    net, optimizer = dense()
    train(net, optimizer)
    store = open_object_store(folder / "times")
    ranks = {size: Ranks(store, size, 4 << 20) for size in (1, 2)}
    figures: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    cost = ranks[2].save(net, optimizer, "")
    first_blocked = max(cost.blocked_s, ranks[1].save(net, optimizer, "").blocked_s)
    for number in range(rounds):
        train(net, optimizer)
        for size, group in ranks.items():
            cost = group.save(net, optimizer, "")
            note(f"blocked, {size} rank(s)", cost.blocked_s)
            note(f"cpu of all ranks, {size} rank(s)", cost.cpu_s)
            note(f"wall of all ranks, {size} rank(s)", cost.wall_s)
            if size == 1:
                # As retention would, and as the rounds of torch.save do: new files find memory that is free again.
                discard(store)
        file = folder / f"torch-{number}.pt"
        started, cpu = time.perf_counter(), time.process_time()
        with file.open("wb") as out:
            torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, out)
            out.flush()
            os.fsync(out.fileno())
        note("torch.save + fsync wall", time.perf_counter() - started)
        note("torch.save + fsync cpu", time.process_time() - cpu)
        other, later = dense()
        started, cpu = time.perf_counter(), time.process_time()
        restore(store, JOB, cost.manifest_hash, other, later)
        note("load, verified, wall", time.perf_counter() - started)
        note("load, verified, cpu", time.process_time() - cpu)
        other, later = dense()
        started, cpu = time.perf_counter(), time.process_time()
        loaded = torch.load(file, weights_only=True)
        other.load_state_dict(loaded["model"])
        later.load_state_dict(loaded["optimizer"])
        note("torch.load wall", time.perf_counter() - started)
        note("torch.load cpu", time.process_time() - cpu)
        file.unlink()
        discard(store)
    megabytes = cost.total / 1e6
    print(f"times for a state of {megabytes:.1f} MB, medians of {rounds} rounds (page cache warm):")
    for name, values in figures.items():
        print(f"  {name:32} {spread(values)}")
    median = {name: statistics.median(values) for name, values in figures.items()}
    print(f"  first blocked (buffers are made): {first_blocked * 1000:.1f} ms")
    ratios = {
        "blocked (2 ranks) / torch.save": median["blocked, 2 rank(s)"] / median["torch.save + fsync wall"],
        "cpu of a save / torch.save": median["cpu of all ranks, 2 rank(s)"] / median["torch.save + fsync cpu"],
        "load / torch.load": median["load, verified, wall"] / median["torch.load wall"],
        "load / 0.2 s": median["load, verified, wall"] / 0.2,
    }
    for name, ratio in ratios.items():
        print(f"  ratio {name:32} {ratio:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="one round; rough figures")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        bytes_written(Path(folder))
        times(Path(folder), 1 if arguments.quick else arguments.rounds)


if __name__ == "__main__":
    main()
