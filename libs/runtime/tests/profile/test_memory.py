"""Predicted bytes are those of a real step: saved tensors one by one, and the peak of a rank under a plan."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from distroml.planner import Device, Level, Prediction, Pricer, Topology, Training, compressing, parse_wish
from distroml.planner.plan import DEFAULT_BUCKET_MB, Plan
from distroml.runtime.profile import profile
from distroml.runtime.profile.optimizers import kind_of, momenta_of
from libs.runtime.tests.profile.memory_ranks import EXCHANGING, SAMPLES, WIDTH, Tower, batch, loss
from tests.numerics.pool import Pool

RANKS = "libs.runtime.tests.profile.memory_ranks"
FLOAT = 4
BLOCK = 8 * WIDTH * WIDTH
OUTSIDE = WIDTH * WIDTH + 8 * WIDTH


def predicted(plan: str, **options: Any) -> dict[str, float]:
    return dict(prediction(plan, **options).bytes)


def prediction(
    plan: str,
    compress: str = "none",
    compress_shard: str = "none",
    sync_every: int = 0,
    optimizer: str = "adamw",
    samples: int = SAMPLES,
    levels: tuple[Level, ...] = (Level(name="node", extent=4, latency_s=1e-5, bytes_per_s=1e9),),
) -> Prediction:
    device = Device(
        name="cpu", flops={"fp32": 1e11}, memory_bytes=1e12, memory_bytes_per_s=1e10, margin=0.0, on_cpu=True
    )
    wish = parse_wish(plan)
    chosen = Plan(
        dp_replicate=wish.dp_replicate or 1,
        dp_shard=wish.dp_shard or 1,
        tp=wish.tp or 1,
        recompute=wish.recompute or "none",
        reshard_after_forward=wish.reshard_after_forward is not False,
        microbatch=samples,
        bucket_mb=wish.bucket_mb or DEFAULT_BUCKET_MB,
    )
    make = EXCHANGING.get(optimizer, adamw)
    training = Training(
        optimizer=kind_of(make),
        precision="fp32",
        compressing=compressing(compress, compress_shard, sync_every=sync_every, momenta=momenta_of(make, compress)),
    )
    topology = Topology(device=device, levels=levels)
    return Pricer(profile(Tower(), loss, batch()), topology, training, samples * chosen.dp).predict(chosen)


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters)


def test_saved_bytes_are_those_that_autograd_saves():
    model = Tower()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(model, batch())
    units = profile(model, loss, batch()).units
    predicted_bytes = sum(unit.saved["none"].whole_bytes + unit.saved["none"].split_bytes for unit in units) * SAMPLES
    assert predicted_bytes == sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_a_recomputed_block_keeps_its_input():
    units = profile(Tower(), loss, batch()).units
    assert {unit.saved["full"].whole_bytes for unit in units if unit.kind == "block"} == {WIDTH * FLOAT}


def test_gathered_blocks_are_counted_as_fsdp_holds_them():
    """A block and the one gathered ahead, what the one behind scatters, all around, and the last layer's gradient."""
    assert predicted("dp_shard=2")["gathered"] == FLOAT * (3 * BLOCK + OUTSIDE + 8 * WIDTH)


@pytest.mark.e2e
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("plan", "size", "options"),
    [
        ("dp_replicate=2", 2, {}),
        ("dp_shard=2", 2, {}),
        ("dp_shard=2,recompute=full", 2, {}),
        ("dp_shard=2,reshard=no", 2, {}),
        ("dp_replicate=2,dp_shard=2", 4, {}),
        ("dp_replicate=2,bucket_mb=0.1", 2, {"compress": "int8"}),
        ("dp_replicate=2", 2, {"compress": "powersgd:4"}),
        ("dp_replicate=4,bucket_mb=0.3", 4, {"compress": "powersgd:16+int8"}),
        ("dp_replicate=2", 2, {"compress": "topk:0.01", "optimizer": "dgc"}),
        ("dp_replicate=2", 2, {"compress": "sign", "optimizer": "onebit"}),
        ("dp_replicate=2", 2, {"compress": "int8", "sync_every": 2}),
        ("dp_shard=2", 2, {"compress_shard": "int8"}),
        ("dp_shard=2", 2, {"compress_shard": "int8", "samples": 8}),
        ("dp_shard=4", 4, {"compress_shard": "int4", "samples": 8}),
        ("dp_replicate=2,dp_shard=2", 4, {"compress": "int8"}),
        ("dp_replicate=2,dp_shard=2,bucket_mb=0.1", 4, {"compress": "powersgd:4"}),
    ],
)
def test_a_rank_needs_what_was_predicted(pool: Pool, plan: str, size: int, options: dict[str, Any]):
    ours = predicted(plan, **options)
    for real in pool.run(f"{RANKS}:peak", size, plan=plan, **options):
        assert ours["parameters"] == real.get("Sharded Param", real.get("Parameter"))
        if not {"optimizer", "sync_every"} & options.keys():
            steps = 4 * 10  # each parameter's count of steps
            assert ours["optimizer"] == real.get("OptState", real.get("Optstate")) - steps
        assert sum(ours.values()) == pytest.approx(real["Total"], rel=0.05)


SCHEMES = ["bf16", "int8", "topk:0.01", "randomk:0.01+int8", "powersgd:4", "powersgd:2+int8"]


@pytest.mark.e2e
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("plan", "size"),
    [
        ("dp_replicate=2,bucket_mb=0.1", 2),
        ("dp_replicate=4", 4),
        ("dp_replicate=2,dp_shard=2", 4),
        ("dp_replicate=2,tp=2", 4),
    ],
)
def test_residuals_and_bytes_on_the_wire_are_those_that_were_predicted(pool: Pool, plan: str, size: int):
    everywhere = pool.run(f"{RANKS}:kept", size, plan=plan, schemes=SCHEMES)
    for place, scheme in enumerate(SCHEMES):
        ours = prediction(plan, scheme)
        assert ours.compressed is not None
        most = max(rank[place]["state_bytes"] for rank in everywhere)
        assert ours.bytes["residuals"] == pytest.approx(most, rel=0.03), scheme
        sent = max(sum(rank[place]["sent"].values()) for rank in everywhere)
        assert ours.compressed.sent_bytes["dp_replicate"] == pytest.approx(sent, rel=0.05), scheme


@pytest.mark.e2e
@pytest.mark.timeout(180)
@pytest.mark.parametrize("layered", [False, True])
def test_what_goes_over_which_links_is_what_was_predicted(pool: Pool, layered: bool):
    """Two hosts of two ranks, whose sums are made as the planner expects them to be."""
    links = (
        Level(name="node", extent=2, latency_s=0.0, bytes_per_s=1e9),
        Level(name="cluster", extent=2, latency_s=0.0, bytes_per_s=1e7 if layered else 1e9),
    )
    schemes = ["int8", "powersgd:4", "randomk:0.05"]
    everywhere = pool.run(f"{RANKS}:kept", 4, plan="dp_replicate=4", schemes=schemes, hosts="aabb", layered=layered)
    for place, scheme in enumerate(schemes):
        ours = prediction("dp_replicate=4", scheme, levels=links).compressed
        assert ours is not None
        for level, told in ours.level_bytes.items():
            mean = sum(rank[place]["sent"].get(level, 0) for rank in everywhere) / len(everywhere)
            assert told == pytest.approx(mean, rel=0.05), (scheme, level)


@pytest.mark.e2e
@pytest.mark.timeout(180)
@pytest.mark.parametrize("compress", ["none", "int8"])
def test_replicas_that_meet_send_and_keep_what_was_predicted(pool: Pool, compress: str):
    ours = prediction("dp_replicate=2", compress, sync_every=2)
    assert ours.compressed is not None
    for real in pool.run(f"{RANKS}:met", 2, every=2, compress=compress):
        assert 2 * ours.compressed.sent_bytes["dp_replicate"] == pytest.approx(real["sent"], rel=0.05)
        assert ours.bytes["optimizer"] == pytest.approx(real["outer"] + real["inner"], rel=0.01)
        assert ours.bytes["residuals"] == pytest.approx(real["state_bytes"], rel=0.03)


@pytest.mark.e2e
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("optimizer", "compress"), [("dgc", "topk:0.01"), ("onebit", "sign")])
def test_momenta_are_kept_as_predicted(pool: Pool, optimizer: str, compress: str):
    ours = predicted("dp_replicate=2", compress=compress, optimizer=optimizer)
    for real in pool.run(f"{RANKS}:momenta", 2, compress=compress, optimizer=optimizer):
        assert ours["residuals"] == pytest.approx(real["exchange"], rel=0.03)
        assert ours["optimizer"] == real["optimizer"]
