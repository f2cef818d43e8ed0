"""The planner's memory model against torch's memory trackers on a real step: peak bytes of each rank within 5 %.

Models are made small from their configurations: the example GPT at two sizes, and a Llama of Hugging Face. Each is
spread by `parallelize` on CPU ranks over Gloo; one step makes the optimizer's state, the next one is tracked, by
FSDPMemTracker where parameters are sharded and by MemTracker elsewhere. Both count the bytes of every live tensor:
no rounding to blocks (on the CPU), no fragmentation, nothing of Gloo's own. So the planner's prediction is taken
without its allocator margin. What AdamW computes on the way (three times the largest parameter) is not predicted; it
matters only where activations are smaller. FSDPMemTracker follows one microbatch per step, and so do all cases.

The trackers see one thread, and exchanges by a scheme have one of their own: they are made on the first, in one step
each as early as it can begin, in another as late as a slow link would, and the larger peak counts. Residuals are the
exchange's own count, outer anchors and momenta are with the optimizer.

The parts stand beside one another, so that a wrong total can be traced. `moving` is everything that comes and goes
beside activations: gathered parameters, whole gradients before they are scattered, buffers and temporary results.
The trackers call recomputed activations temporary, too, and a gradient temporary until it is in its place.

    OMP_NUM_THREADS=1 python benchmarks/memory_model.py [--model llama] [--plan dp_shard=2] [--json FILE] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "gpt"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from model import GPT, ModelConfig
from model import loss as gpt_loss

from distroml.planner import Device, Level, Pricer, Topology, Training, compressing, parse_wish
from distroml.runtime.compress.optim import OuterNesterov
from distroml.runtime.elastic import World
from distroml.runtime.parallel import Compression, ParallelModel, choose_plan, spread
from distroml.runtime.profile import profile
from libs.runtime.tests.profile import tracking

TARGET = 0.05
PLANS = (
    "dp_replicate=2",
    "dp_shard=2",
    "dp_shard=2,recompute=full",
    "dp_shard=2,reshard=no",
    "dp_shard=2,reshard=no,recompute=full",
    "dp_replicate=2,dp_shard=2",
    "dp_replicate=2 compress=int8",
    "dp_replicate=2 compress=topk:0.01",
    "dp_replicate=2 compress=powersgd:4",
    "dp_replicate=2,bucket_mb=1 compress=powersgd:4+int8",
    "dp_replicate=2 compress=int8 sync_every=2",
    "dp_shard=2 compress_shard=int8",
    "dp_shard=2 compress_shard=int4",
    "dp_shard=2,recompute=full compress_shard=int8",
    "dp_shard=2,reshard=no compress_shard=int8",
    "dp_shard=4 compress_shard=int8",
    "dp_shard=4 compress_shard=int4",
    "dp_replicate=2,dp_shard=2 compress_shard=int8",
    "dp_replicate=4 compress=powersgd:16",
    "dp_replicate=2,dp_shard=2 compress=int8",
    "dp_replicate=2,dp_shard=2 compress=powersgd:4",
)
PARTS = ("parameters", "gradients", "optimizer", "residuals", "activations", "moving")
# The trackers' words. What they were told of from outside are the reducer's flat gradients, and what else lasts.
_MEASURED = {
    "Sharded Param": "parameters",
    "Parameter": "parameters",
    "Buffer": "parameters",
    "Sharded Grad": "gradients",
    "Gradient": "gradients",
    "OptState": "optimizer",
    "Optstate": "optimizer",
    "Activation": "activations",
    "Inputs": "activations",
}


@dataclass(frozen=True)
class Case:
    """A model, its loss, and samples as a loader gives them."""

    make: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Any], tuple[torch.Tensor, int]]
    batch: Callable[[int], Any]


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "vocab_size": 1024}
    return LlamaForCausalLM(
        LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    )


def _llama_loss(model: nn.Module, tokens: torch.Tensor) -> tuple[torch.Tensor, int]:
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    targets = tokens[:, 1:].reshape(-1)
    return F.cross_entropy(logits.reshape(len(targets), -1), targets, reduction="sum"), len(targets)


def _gpt(config: ModelConfig) -> Case:
    def batch(samples: int) -> torch.Tensor:
        return torch.randint(0, 256, (samples, config.context + 1), dtype=torch.uint8)

    return Case(lambda: GPT(config), gpt_loss, batch)


MODELS = {
    "gpt": (_gpt(ModelConfig(layers=6, width=256, heads=4, context=64)), 8),
    "gpt-wide": (_gpt(ModelConfig(layers=4, width=512, heads=8, context=64)), 2),
    "llama": (Case(_llama, _llama_loss, lambda samples: torch.randint(0, 1024, (samples, 49))), 4),
}


@dataclass(frozen=True)
class Asked:
    """A plan, and how its gradients are compressed."""

    plan: str
    compress: str = "none"
    compress_shard: str = "none"
    sync_every: int = 0

    @classmethod
    def of(cls, text: str) -> Asked:
        """As `PLANS` have it."""
        plan, *options = text.split(" ")
        told = dict(option.split("=", 1) for option in options)
        every = int(told.pop("sync_every", 0))
        return cls(plan, **told, sync_every=every)

    @property
    def ranks(self) -> int:
        """How many it takes."""
        wish = parse_wish(self.plan)
        return (wish.dp_replicate or 1) * (wish.dp_shard or 1)

    @property
    def compression(self) -> Compression:
        """For the runtime."""
        outer = OuterNesterov(self.sync_every) if self.sync_every else None
        return Compression(self.compress, shard=self.compress_shard, outer=outer)


def tracked(parallel: ParallelModel, optimizer: torch.optim.Optimizer, batch: Any) -> dict[str, float]:
    """Bytes of one step at its peak, by part."""

    def step(number: int) -> None:
        done = parallel.forward_backward([batch], number)
        if parallel.meetings is None:
            parallel.finish(done, grad_clip=1.0)
            optimizer.step()
        else:
            parallel.gradients.flush()
            optimizer.step()
            parallel.meetings.meet(number)

    snapshot = tracking.peak(parallel, optimizer, step, [batch])
    parts = dict.fromkeys(PARTS, 0.0)
    for kind, size in snapshot.items():
        if kind not in ("Total", "Other"):
            parts[_MEASURED.get(kind, "moving")] += size
    kept = sum(one.nbytes for one in tracking.kept_tensors(parallel))
    parts["residuals"] = parallel.exchange.state_bytes if parallel.exchange is not None else 0
    parts["optimizer"] += kept - parts["residuals"]
    parts["gradients"] += snapshot.get("Other", 0) - kept
    return parts


def predicted(parallel: ParallelModel, asked: Asked, case: Case, sample: Any, microbatch: int) -> dict[str, float]:
    """The planner's parts for the same plan."""
    device = Device(
        name="cpu", flops={"fp32": 1e11}, memory_bytes=1e12, memory_bytes_per_s=1e10, margin=0.0, on_cpu=True
    )
    size = parallel.plan.world_size
    topology = Topology(device=device, levels=(Level(name="node", extent=size, latency_s=1e-5, bytes_per_s=1e9),))
    told = profile(case.make(), case.loss, sample)
    packed = compressing(asked.compress, asked.compress_shard, sync_every=asked.sync_every)
    training = Training(optimizer="adamw", precision="fp32", compressing=packed)
    bytes_ = Pricer(told, topology, training, microbatch * parallel.plan.dp).predict(parallel.plan).bytes
    parts = {name: bytes_[name] for name in PARTS[:-1]}
    return {**parts, "moving": sum(bytes_.values()) - sum(parts.values())}


def work(rank: int, size: int, cases: list[tuple[str, str]], store: str, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    world = World(
        generation=0, rank=rank, world_size=size, local_rank=0, device=torch.device("cpu"), store=None, prefix=""
    )
    for name, text in cases:
        (case, microbatch), asked = MODELS[name], Asked.of(text)
        torch.manual_seed(rank)
        sample, model = case.batch(microbatch), case.make()
        how: dict[str, Any] = {"loss": case.loss, "sample": sample}
        plan = choose_plan(model, asked.plan, world, **how, global_batch=microbatch * size, microbatch=microbatch)
        parallel = spread(
            model, plan, world, **how, seed=0, precision="fp32", compiled=False, compression=asked.compression
        )
        optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3, foreach=False)
        found = tracked(parallel, optimizer, sample)
        everyone: list[Any] = [None] * size
        dist.all_gather_object(everyone, found)
        if rank == 0:
            worst = max(everyone, key=lambda parts: sum(parts.values()))
            answers.put((name, text, predicted(parallel, asked, case, sample, microbatch), worst))
        parallel.close()
    dist.destroy_process_group()


def line(name: str, plan: str, ours: Mapping[str, float], real: Mapping[str, float]) -> str:
    pairs = [(ours[part], real[part]) for part in PARTS]
    pairs.append((sum(ours.values()), sum(real.values())))
    told = "".join(f"{one / 1e6:9.2f} {other / 1e6:7.2f}" for one, other in pairs)
    error = pairs[-1][0] / pairs[-1][1] - 1
    return f"{name:9}{plan:53}{told}{error:+8.1%}{'   met' if abs(error) <= TARGET else '   missed'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=MODELS, help="only this one; may be given several times")
    parser.add_argument("--plan", action="append", choices=PLANS, help="only this one; may be given several times")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="the smaller GPT on two ranks only")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    names = arguments.model or (["gpt"] if arguments.quick else list(MODELS))
    plans = arguments.plan or [plan for plan in PLANS if not arguments.quick or "," not in plan]
    plans = [plan for plan in plans if not arguments.quick or Asked.of(plan).ranks == 2]
    print("megabytes at the peak, predicted then measured, on the rank that needs most")
    print(f"{'model':9}{'plan':53}" + "".join(f"{part:>17}" for part in (*PARTS, "peak")) + "   error")
    results: list[tuple[str, str, dict[str, float], dict[str, float]]] = []
    context = mp.get_context("spawn")
    for size in (2, 4):
        cases = [(name, plan) for plan in plans for name in names if Asked.of(plan).ranks == size]
        with tempfile.TemporaryDirectory() as folder:
            answers = context.SimpleQueue()
            ranks = [
                context.Process(target=work, args=(rank, size, cases, f"{folder}/store", answers))
                for rank in (range(size) if cases else ())
            ]
            for rank in ranks:
                rank.start()
            for _ in cases:
                results.append(answers.get())
                print(line(*results[-1]), flush=True)
            for rank in ranks:
                rank.join()
    errors = [abs(sum(ours.values()) / sum(real.values()) - 1) for _, _, ours, real in results]
    told = f"median {statistics.median(errors):.1%}, worst {max(errors):.1%} of {len(errors)}"
    print(f"error of the peak: {told}; at most {TARGET:.0%}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
