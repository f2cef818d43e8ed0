"""Plans and bucket layouts."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distroml.runtime.parallel import Plan, PlanRefused, parallelize, plan
from distroml.runtime.parallel.buckets import lay_out


def test_auto_is_one_copy_per_worker_and_says_why() -> None:
    made = plan("auto", world_size=3, global_batch=10, microbatch=2, parameter_bytes=4_000_000)
    assert made.mesh == {"dp_replicate": 3, "dp_shard": 1, "tp": 1, "pp": 1}
    assert made.world_size == 3
    assert made.grad_accum_steps == 2
    assert any("dp_replicate=3" in reason for reason in made.reasons)
    assert json.loads(made.to_json())["dp_replicate"] == 3


def test_axes_and_bucket_size_can_be_named() -> None:
    made = plan("dp_replicate=2, bucket_mb=25", world_size=2)
    assert (made.dp_replicate, made.bucket_mb) == (2, 25.0)
    assert plan(made, world_size=2).bucket_mb == 25.0


def test_buckets_can_be_measured_in_training_only() -> None:
    with pytest.raises(PlanRefused, match="bucket_mb=auto is measured by Trainer"):
        parallelize(torch.nn.Linear(2, 2), "bucket_mb=auto")


@pytest.mark.parametrize("axis", ["tp", "dp_shard"])
def test_what_is_left_open_is_replicated(axis: str) -> None:
    made = plan(f"{axis}=2", world_size=6, global_batch=12)
    assert made.mesh == {"pp": 1, "dp_replicate": 3, "dp_shard": 1, "tp": 1} | {axis: 2}
    assert plan(f"{axis}=1", world_size=2).dp_replicate == 2


def test_stages_are_even_and_known_before_training() -> None:
    assert plan("pp=2", world_size=2, blocks=lambda: 7).stages == (3, 4)
    assert plan("pp=2,stages=1/6", world_size=2).stages == (1, 6)
    with pytest.raises(PlanRefused, match="nearest that works: pp=3"):
        plan("pp=4", world_size=4, blocks=lambda: 3)


@pytest.mark.parametrize(
    ("text", "global_batch", "said"),
    [
        ("dp_shard=2,microbatch=3", 8, "global_batch=6 or 12, or microbatch=2"),
        ("dp_shard=2", 7, "global_batch=6 or 8"),
        ("tp=2", 1, None),
    ],
)
def test_a_batch_that_cannot_be_shared_out_names_what_can(text: str, global_batch: int, said: str | None) -> None:
    if said is None:
        assert plan(text, world_size=2, global_batch=global_batch).grad_accum_steps == 1
        return
    with pytest.raises(PlanRefused, match=said):
        plan(text, world_size=2, global_batch=global_batch)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dp=2", "NAME one of dp_replicate"),
        ("dp_replicate", "expected 'auto'"),
        ("dp_replicate=zwei", "positive whole number"),
        ("dp_replicate=-1", "positive whole number"),
        ("dp_replicate=3", "this generation has 2 worker"),
        ("tp=4", "4 workers would work"),
        ("tp=two", "positive whole number"),
        ("recompute=all", "recompute must be one of none"),
        ("reshard_after_forward=maybe", "must be yes or no"),
    ],
)
def test_a_plan_that_cannot_be_read_or_does_not_fit_is_refused(text: str, said: str) -> None:
    with pytest.raises(PlanRefused, match=said):
        plan(text, world_size=2)


def test_equal_inputs_give_equal_plans() -> None:
    assert plan(world_size=4, global_batch=9) == plan("auto", world_size=4, global_batch=9)
    assert plan(world_size=4) != Plan()


@given(
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=30),
    kinds=st.lists(st.sampled_from([torch.float32, torch.float64]), min_size=30, max_size=30),
    bucket_kb=st.integers(1, 20),
)
def test_every_gradient_has_one_place_and_none_overlap(sizes: list[int], kinds: list, bucket_kb: int) -> None:
    parameters = [
        (f"p{n}", torch.nn.Parameter(torch.empty(size, dtype=kind, device="meta")))
        for n, (size, kind) in enumerate(zip(sizes, kinds, strict=False))
    ]
    buckets = lay_out(parameters, bucket_kb / 1024)
    segments = [segment for bucket in buckets for segment in bucket.segments]
    assert [segment.index for segment in segments] == list(reversed(range(len(parameters))))
    for bucket in buckets:
        end = 0
        for segment in bucket.segments:
            assert segment.offset >= end
            assert segment.offset * bucket.dtype.itemsize % 64 == 0
            assert parameters[segment.index][1].dtype == bucket.dtype
            end = segment.offset + segment.numel
        assert end <= bucket.numel
        assert len(bucket.segments) == 1 or bucket.numel * bucket.dtype.itemsize <= bucket_kb * 1024 + 64


def test_parallelize_makes_steps_without_a_trainer() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    twin = torch.nn.Linear(4, 2)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(6, 4)
    spread = parallelize(model)
    spread.begin()
    spread(x[:2]).square().sum().backward()
    spread.last_backward()
    spread(x[2:]).square().sum().backward()
    loss, norm = spread.finish((torch.tensor(6.0), 12))
    assert (loss.item(), norm.item() > 0) == (0.5, True)
    twin(x).square().mean().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    spread.close()
    assert model.weight.grad is None


def test_a_model_without_anything_to_train_is_refused() -> None:
    model = torch.nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        parallelize(model)


def test_an_unknown_compression_is_refused() -> None:
    with pytest.raises(ValueError, match="the rank is missing; write powersgd:4"):
        parallelize(torch.nn.Linear(2, 2), compress="powersgd")


def test_schemes_that_nothing_would_choose_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not possible with parallelize: .* such as compress='int8', or train by Tra"):
        parallelize(torch.nn.Linear(2, 2), compress="Auto")
