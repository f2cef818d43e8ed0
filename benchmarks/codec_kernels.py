"""What encoding a gradient costs on one core, as a fraction of the speed of copying it: memcpy's time over the codec's.

Counted is the whole of what a rank does before it sends: the look for NaN and infinities, residual added, random
numbers, code, new residual. For PowerSGD it is the whole step but its two sums over the ranks, restoring included.
Every repetition runs all of them one after the other, in an order that turns, and memcpy before each; a fraction is of
neighbours in time, by CPU time, and its median over the repetitions is held against the goal. memcpy against itself
tells how much of a fraction is noise. int8, int4 and sign reach at least 0.35, Top-K of 1 % 0.2, PowerSGD rank 4 0.1,
at 16 MB, as large as the buckets of the example GPT together.

    OMP_NUM_THREADS=1 python benchmarks/codec_kernels.py [--repetitions 60] [--torch] [--json FILE]

`--torch` shows the path without kernels beside it. Decoding, of one payload and of four at once, has no goal.
`--device cuda` does the same on a GPU, against copies on it, by wall time to the end of the work, the encoder's one
wait for the GPU included. There is no goal yet.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from distroml.runtime.compress.codec import Codec
from distroml.runtime.compress.codecs import BF16, INT4, INT8, SIGN, BlockCodec, TopK, add_all, oracle
from distroml.runtime.compress.codecs.fast import kernels_for
from distroml.runtime.compress.lowrank import Matrices, orthogonalise, project, project_back, restore, subtract
from distroml.runtime.compress.native import Kernels, kernels

GOALS = {"int8": 0.35, "int4": 0.35, "sign": 0.35, "topk:0.01": 0.2, "powersgd:4": 0.1}
JUDGED_AT_MB = 16
CARRY = 4096.0
WIDTH = 512
Work = Callable[[], object]


def encoder(codec: Codec, vector: torch.Tensor, residual: torch.Tensor) -> Work:
    out = torch.empty(codec.size(vector.numel()), dtype=torch.uint8, device=vector.device)
    return lambda: codec.encode(vector, residual, CARRY, 1, out)


def naive(codec: BlockCodec | TopK, vector: torch.Tensor, residual: torch.Tensor) -> Work:
    out = torch.empty(codec.size(vector.numel()), dtype=torch.uint8, device=vector.device)
    return lambda: oracle.encode(codec.oracle, vector, residual, CARRY, 1, out)


def decoder(codec: Codec, vector: torch.Tensor, payloads: int) -> Work:
    codes = torch.empty(payloads, codec.size(vector.numel()), dtype=torch.uint8, device=vector.device)
    total = torch.zeros_like(vector)
    for code in codes:
        codec.encode(vector, None, CARRY, 1, code)
    return lambda: add_all(codec, codes, total)


def powersgd(loaded: Kernels, rank: int, vector: torch.Tensor, residual: torch.Tensor) -> Work:
    """A step on square matrices, as one rank of a world of one: what it sends is what it gets."""
    count = vector.numel() // WIDTH**2
    offsets, q, back = torch.arange(count) * WIDTH**2, torch.randn(count, WIDTH, rank), torch.empty(count, WIDTH, rank)
    p, restored = torch.empty(count, WIDTH, rank), torch.empty_like(vector)

    def step() -> None:
        loaded.project(vector, residual, CARRY, offsets, q, p)
        loaded.orthogonalise(p)
        loaded.project_back(residual, offsets, p, back)
        loaded.subtract(residual, CARRY, offsets, p, back)
        loaded.restore(restored, offsets, p, back)

    return step


def powersgd_on_gpu(rank: int, vector: torch.Tensor, residual: torch.Tensor) -> Work:
    """The same by torch's products."""
    count = vector.numel() // WIDTH**2
    matrices, restored = Matrices(torch.arange(count) * WIDTH**2, WIDTH, WIDTH), torch.empty_like(vector)
    q = torch.randn(count, WIDTH, rank, device=vector.device)

    def step() -> None:
        p = project(vector, residual, CARRY, matrices, q)
        orthogonalise(p)
        back = project_back(residual, matrices, p)
        subtract(residual, CARRY, matrices, p, back)
        restore(restored, matrices, p, back)

    return step


def works(numel: int, with_torch: bool, device: torch.device) -> dict[str, Work]:
    def residual() -> torch.Tensor:
        return torch.randn(numel, device=device) * 0.1

    vector, ranks = torch.randn(numel, device=device) * CARRY, (1, 4, 16)
    codecs = [INT8, INT4, SIGN, TopK(0.01), TopK(0.01, INT8), TopK(0.001), BF16]
    found: dict[str, Work] = {codec.name: encoder(codec, vector, residual()) for codec in codecs}
    if device.type == "cuda":
        found |= {f"powersgd:{rank}": powersgd_on_gpu(rank, vector, residual()) for rank in ranks}
    elif loaded := kernels():
        found |= {f"powersgd:{rank}": powersgd(loaded, rank, vector, residual()) for rank in ranks}
    for payloads in (1, 4):
        codecs = [INT8, INT4, SIGN, TopK(0.01)]
        found |= {f"decode {payloads} x {codec.name}": decoder(codec, vector, payloads) for codec in codecs}
    if with_torch:
        slow = (INT8, INT4, SIGN, TopK(0.01))
        found |= {f"torch's {codec.name}": naive(codec, vector, residual()) for codec in slow}
    return found


def cpu_seconds(work: Work) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def gpu_seconds(work: Work) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def fractions(numel: int, repetitions: int, with_torch: bool, device: torch.device) -> dict[str, list[float]]:
    """Time of memcpy over that of each work, for each repetition."""
    source, target = torch.randn(numel, device=device), torch.empty(numel, device=device)
    seconds = gpu_seconds if device.type == "cuda" else cpu_seconds

    def copy() -> None:
        # Several small copies in one: the clock is too coarse for a single one.
        for _ in range(copies):
            if device.type == "cuda":
                target.copy_(source)
            else:
                ctypes.memmove(target.data_ptr(), source.data_ptr(), 4 * numel)

    copies = max(1, 1_000_000 // numel)
    timed = {"memcpy": copy, **works(numel, with_torch, device)}
    found: dict[str, list[float]] = {name: [] for name in timed}
    for work in timed.values():
        work()
    for number in range(repetitions):
        turn = number % len(timed)
        for name, work in [*timed.items()][turn:] + [*timed.items()][:turn]:
            copied = seconds(copy) / copies
            if name == "memcpy":
                found[name].append(copied / (seconds(work) / copies))
            else:
                times = copies if "torch" not in name else 1
                found[name].append(copied / (sum(seconds(work) for _ in range(times)) / times))
    return found


def described(device: torch.device) -> list[str]:
    """What the codecs work by, in words."""
    if device.type == "cuda":
        codecs = (INT8, INT4, SIGN, BF16, TopK(0.1))
        paths = {codec.name: "torch" if kernels_for(codec, device) is None else "Triton" for codec in codecs}
        return [torch.cuda.get_device_name(), *(f"{name} by {path}" for name, path in paths.items())]
    loaded = kernels()
    return ["none" if loaded is None else ("any processor", "AVX2", "AVX-512")[loaded.at_most(2)]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=60)
    parser.add_argument("--torch", action="store_true", help="the path without kernels, too")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="few repetitions at the judged size; rough figures")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: a GPU, against its own copies")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here: --device cuda needs one, its driver, and a build of torch for CUDA")
    torch.set_num_threads(1)
    torch.manual_seed(1)
    print(f"kernels: {', '.join(described(device))}")
    goals = GOALS if device.type == "cpu" else {}
    reached, results = device.type == "cuda" or kernels() is not None, dict[str, dict[str, dict[str, float]]]()
    for size_mb in (JUDGED_AT_MB,) if options.quick else (1, JUDGED_AT_MB, 64):
        found = fractions(size_mb * 2**20 // 4, 7 if options.quick else options.repetitions, options.torch, device)
        results[f"{size_mb} MB"] = {}
        print(f"\n{size_mb} MB of float32, fraction of memcpy: median (quarters)")
        for name, ratios in found.items():
            low, median, high = statistics.quantiles(ratios, n=4)
            results[f"{size_mb} MB"][name] = {"median": median, "q1": low, "q3": high}
            goal, verdict = goals.get(name) if size_mb == JUDGED_AT_MB else None, ""
            if goal is not None:
                reached &= median >= goal
                verdict = f"goal {goal}: {'reached' if median >= goal else 'MISSED'}"
            print(f"  {name:<22} {median:6.3f} ({low:.3f} to {high:.3f})  {verdict}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
