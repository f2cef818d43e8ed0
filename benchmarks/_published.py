"""Published measurements of training steps, as plans with the seconds that they took; errors of predictions of them.

- megatron: Narayanan et al., arXiv 2104.04473, table 1; sizes from the run scripts that Megatron-LM keeps
  (examples/academic_paper_scripts/sc21/run_table_1.sh), seconds from the paper's TFLOP/s by its own formula.
- korthikanti: Korthikanti et al., arXiv 2205.05198, table 5.
- mpt-*: throughput tables of mosaicml/llm-foundry (scripts/train/benchmarking/README.md): every sixth row. FSDP,
  attention by tiles, no tensor or pipeline parallelism.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from distroml.planner import (
    Device,
    Plan,
    Pricer,
    Topology,
    Training,
    Transformer,
    described,
    gpu,
    transformer_profile,
)

# h, L, a, tp, pp, GPUs, global batch, microbatch, layers in a chunk (0: one stage per rank), seconds
_MEGATRON = {
    "1.7B": (2304, 24, 24, 1, 1, 32, 512, 16, 0, 3.53),
    "3.6B": (3072, 30, 32, 2, 1, 64, 512, 16, 0, 3.70),
    "7.5B": (4096, 36, 32, 4, 1, 128, 512, 16, 0, 3.70),
    "18.4B": (6144, 40, 48, 8, 1, 256, 1024, 8, 0, 9.40),
    "39.1B": (8192, 48, 64, 8, 2, 512, 1536, 4, 0, 14.45),
    "76.1B": (10240, 60, 80, 8, 4, 1024, 1792, 2, 5, 16.06),
    "145.6B": (12288, 80, 96, 8, 8, 1536, 2304, 2, 5, 24.82),
    "310.1B": (16384, 96, 128, 8, 16, 1920, 2160, 1, 3, 37.61),
    "529.6B": (20480, 105, 128, 8, 35, 2520, 2520, 1, 1, 54.08),
    "1008B": (25600, 128, 160, 8, 64, 3072, 3072, 1, 0, 102.6),
}
# h, L, a, GPUs, pp, layers in a chunk, microbatch, global batch, seconds with full and with selective recomputation
_KORTHIKANTI = {
    "22B": (6144, 48, 64, 8, 1, 0, 4, 4, 1.42, 1.10),
    "175B": (12288, 96, 96, 64, 8, 4, 1, 64, 18.13, 13.75),
    "530B": (20480, 105, 128, 280, 35, 1, 1, 280, 49.05, 37.83),
    "1T": (25600, 128, 160, 512, 64, 0, 1, 512, 94.42, 71.49),
}
# GPU, name, h, L, a, s, parameters, GPUs, microbatch, global batch, recompute, reshard, tokens per second
_MPT = (
    ("H100", "70b", 8192, 80, 64, 2048, "fp32", 512, 8, 4096, "full", True, 515636),
    ("H100", "13b", 5120, 40, 40, 2048, "fp32", 512, 16, 8192, "full", True, 2535811),
    ("H100", "3b", 2560, 32, 20, 2048, "fp32", 512, 8, 4096, "none", False, 11092218),
    ("H100", "70b", 8192, 80, 64, 2048, "fp32", 64, 8, 2048, "full", True, 66523),
    ("H100", "30b", 7168, 48, 56, 2048, "fp32", 8, 3, 504, "full", True, 16022),
    ("H100", "13b", 5120, 40, 40, 2048, "fp32", 32, 2, 64, "none", True, 153960),
    ("H100", "7b", 4096, 32, 32, 8192, "fp32", 8, 8, 128, "full", True, 55481),
    ("H100", "3b", 2560, 32, 20, 16384, "fp32", 8, 1, 48, "none", True, 89223),
    ("H100", "3b", 2560, 32, 20, 1024, "fp32", 8, 20, 960, "none", True, 216369),
    ("H100", "1b", 2048, 24, 16, 4096, "fp32", 8, 7, 224, "none", True, 308282),
    ("H100", "1b", 2048, 24, 16, 512, "fp32", 8, 56, 1792, "none", True, 418201),
    ("H100", "760m", 1536, 24, 12, 2048, "fp32", 16, 24, 384, "none", True, 1096819),
    ("A100-80GB", "70b", 8192, 80, 64, 2048, "bf16", 64, 8, 2048, "full", True, 26274),
    ("A100-80GB", "30b", 7168, 48, 56, 512, "fp32", 8, 12, 2016, "full", True, 7739),
    ("A100-80GB", "13b", 5120, 40, 40, 1024, "fp32", 8, 40, 960, "full", True, 18647),
    ("A100-80GB", "7b", 4096, 32, 32, 2048, "fp32", 8, 6, 96, "none", True, 37130),
    ("A100-80GB", "3b", 2560, 32, 20, 4096, "fp32", 8, 5, 240, "none", True, 75658),
    ("A100-80GB", "1b", 2048, 24, 16, 16384, "fp32", 8, 2, 64, "none", True, 79650),
    ("A100-80GB", "760m", 1536, 24, 12, 65536, "fp32", 8, 1, 16, "full", True, 33150),
    ("A100-80GB", "760m", 1536, 24, 12, 1024, "fp32", 8, 48, 768, "none", True, 238122),
    ("A100-80GB", "350m", 1024, 24, 16, 4096, "fp32", 8, 16, 256, "none", True, 396442),
    ("A100-80GB", "125m", 768, 12, 12, 16384, "fp32", 8, 4, 64, "none", True, 480322),
    ("A100-80GB", "125m", 768, 12, 12, 512, "fp32", 8, 128, 2048, "none", True, 1325455),
    ("A100-40GB", "70b", 8192, 80, 64, 2048, "bf16", 128, 4, 512, "full", True, 48194),
    ("A100-40GB", "13b", 5120, 40, 40, 2048, "bf16", 128, 16, 2048, "full", True, 252444),
    ("A100-40GB", "13b", 5120, 40, 40, 512, "bf16", 8, 16, 2048, "full", True, 14108),
    ("A100-40GB", "7b", 4096, 32, 32, 2048, "bf16", 32, 18, 576, "full", True, 119202),
    ("A100-40GB", "3b", 2560, 32, 20, 16384, "bf16", 8, 2, 128, "full", True, 35726),
    ("A100-40GB", "3b", 2560, 32, 20, 2048, "bf16", 16, 5, 80, "none", True, 156013),
    ("A100-40GB", "1b", 2048, 24, 16, 8192, "bf16", 8, 2, 128, "none", True, 107799),
    ("A100-40GB", "1b", 2048, 24, 16, 2048, "bf16", 8, 8, 512, "none", True, 154171),
    ("A100-40GB", "760m", 1536, 24, 12, 4096, "bf16", 8, 6, 192, "none", True, 206909),
    ("A100-40GB", "760m", 1536, 24, 12, 1024, "bf16", 8, 24, 768, "none", True, 267376),
    ("A100-40GB", "350m", 1024, 24, 16, 2048, "bf16", 128, 18, 2304, "none", True, 6647647),
    ("A100-40GB", "350m", 1024, 24, 16, 512, "bf16", 8, 64, 2048, "none", True, 530277),
    ("A100-40GB", "125m", 768, 12, 12, 2048, "bf16", 64, 26, 1664, "none", True, 8015010),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured step."""

    table: str
    name: str
    transformer: Transformer
    training: Training
    gpu: str
    gpus: int
    plan: Plan
    global_batch: int
    seconds: float

    def topology(self) -> Topology:
        """The machines, nodes of 8 with NVLink and a network port per GPU, by their nominal figures."""
        hopper = self.gpu.startswith("H")
        return described(
            gpu(self.gpu),
            nodes=self.gpus // 8,
            devices_per_node=8,
            intra_bytes_per_s=450e9 if hopper else 300e9,
            inter_bytes_per_s=50e9 if hopper else 25e9,
        )


def _staged(layers: int, pp: int, chunk: int) -> dict[str, object]:
    if pp == 1:
        return {}
    stages = layers // chunk if chunk else pp
    return {
        "pp": pp,
        "stages": (layers // stages,) * stages,
        "schedule": "interleaved" if stages > pp else "1f1b",
    }


def _gpt(hidden: int, layers: int, heads: int) -> Transformer:
    return Transformer(
        hidden=hidden, layers=layers, heads=heads, vocab=51200, seq=2048, params_dtype="fp16", attention="core"
    )


def rows() -> list[Row]:
    """All measurements, table by table."""
    megatron = Training(precision="fp16", master_weights=True)
    found: list[Row] = []
    for name, (h, layers, a, tp, pp, gpus, batch, size, chunk, seconds) in _MEGATRON.items():
        plan = Plan(
            dp_replicate=gpus // tp // pp, tp=tp, microbatch=size, recompute="full", **_staged(layers, pp, chunk)
        )
        found.append(
            Row(
                table="megatron",
                name=name,
                transformer=_gpt(h, layers, a),
                training=megatron,
                gpu="A100-80GB",
                gpus=gpus,
                plan=plan,
                global_batch=batch,
                seconds=seconds,
            )
        )
    for name, (h, layers, a, gpus, pp, chunk, size, batch, *both) in _KORTHIKANTI.items():
        for recompute, seconds in zip(("full", "selective"), both, strict=True):
            plan = Plan(
                tp=8,
                microbatch=size,
                recompute=recompute,
                sequence_parallel=recompute == "selective",
                **_staged(layers, pp, chunk),
            )
            found.append(
                Row(
                    table="korthikanti",
                    name=f"{name} {recompute}",
                    transformer=_gpt(h, layers, a),
                    training=megatron,
                    gpu="A100-80GB",
                    gpus=gpus,
                    plan=plan,
                    global_batch=batch,
                    seconds=seconds,
                )
            )
    for kind, name, h, layers, a, seq, dtype, gpus, size, batch, recompute, reshard, tokens_per_s in _MPT:
        found.append(
            Row(
                table=f"mpt-{kind}",
                name=f"{name} s={seq} on {gpus}",
                transformer=Transformer(
                    hidden=h, layers=layers, heads=a, vocab=50368, seq=seq, params_dtype=dtype, attention="flash"
                ),
                training=Training(precision="bf16"),
                gpu=kind,
                gpus=gpus,
                plan=Plan(dp_shard=gpus, microbatch=size, recompute=recompute, reshard_after_forward=reshard),
                global_batch=batch,
                seconds=batch * seq / tokens_per_s,
            )
        )
    return found


def predicted_s(row: Row, device: Device | None = None) -> float:
    """What the planner says of a row."""
    profile = transformer_profile(row.transformer, row.training.precision)
    topology = row.topology() if device is None else replace(row.topology(), device=device)
    return Pricer(profile, topology, row.training, row.global_batch).predict(row.plan).step_seconds


def spent_flops(row: Row) -> float:
    """Operations of the step on one GPU, what is recomputed among them."""
    profile = transformer_profile(row.transformer, row.training.precision)
    blocks = sum(unit.forward.flops for unit in profile.blocks)
    again = {
        "none": 0.0,
        "selective": sum(unit.recomputed.flops for unit in profile.blocks),
        "full": blocks,
    }[row.plan.recompute]
    return (profile.model_flops + again) * row.global_batch / row.gpus


def errors(table: Sequence[Row], device: Device | None = None) -> list[float]:
    """Signed relative errors."""
    return [predicted_s(row, device) / row.seconds - 1 for row in table]


def single_rate(table: Sequence[Row]) -> tuple[float, float]:
    """The least median and the least worst error that one rate can have on the table; they may be two rates."""
    rates = [spent_flops(row) / row.seconds for row in table]
    candidates = [low + (high - low) * i / 2000 for low, high in [(min(rates), max(rates))] for i in range(2001)]
    found = [[abs(rate / candidate - 1) for rate in rates] for candidate in candidates]
    return min(map(statistics.median, found)), min(map(max, found))
