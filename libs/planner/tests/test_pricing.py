"""Prices: parts that add up, what each refusal says, and directions in which a price must move."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from distroml.planner import (
    BYTES,
    SECONDS,
    Corrections,
    MeasuredUnit,
    Plan,
    Prediction,
    Pricer,
    Refused,
    Saved,
    Training,
    price,
)
from distroml.planner.cost.chain import saved_bytes
from libs.planner.tests.models import GIB, TRAINING, chain, gpt, machines

MODEL = gpt()
BATCH = 64


def predict(plan, topology=None, training=TRAINING, model=MODEL, **values):
    return Pricer(model, topology or machines(), training, BATCH, **values).predict(plan)


@st.composite
def plans(draw):
    """Plans for 8 ranks, 8 blocks and a batch of 64."""
    tp = draw(st.sampled_from([1, 2, 4]))
    pp = draw(st.sampled_from([size for size in (1, 2, 4) if tp * size <= 8]))
    shard = draw(st.sampled_from([size for size in (1, 2, 4, 8) if tp * pp * size <= 8]))
    chunks = draw(st.sampled_from([1, 2])) if pp > 1 else 1
    schedule = draw(st.sampled_from(["interleaved", "zero_bubble"] if chunks > 1 else ["1f1b", "gpipe"]))
    return Plan(
        tp=tp,
        pp=pp,
        dp_shard=shard,
        dp_replicate=8 // tp // pp // shard,
        stages=(8 // pp // chunks,) * (pp * chunks) if pp > 1 else (),
        schedule=schedule,
        microbatch=draw(st.sampled_from([1, 2, 4, 8])),
        recompute=draw(st.sampled_from(["none", "selective", "full"])),
        reshard_after_forward=draw(st.booleans()),
        sequence_parallel=draw(st.booleans()),
        order=draw(st.permutations(["pp", "dp_replicate", "dp_shard", "tp"]).map(tuple)),
    )


@given(plans())
def test_parts_add_up(plan):
    found = predict(plan)
    assert set(found.seconds) == set(SECONDS)
    assert set(found.bytes) == set(BYTES)
    assert sum(found.seconds.values()) == pytest.approx(found.step_seconds)
    assert sum(found.bytes.values()) == pytest.approx(found.peak_bytes_per_rank)
    assert min(*found.seconds.values(), *found.bytes.values()) >= 0
    assert 0 < found.mfu < 1
    assert len(found.stages) == plan.pp * plan.chunks
    assert len(found.rank_bytes) == plan.pp


@given(plans(), st.sampled_from([1.1, 2.0, 10.0]))
def test_more_bandwidth_is_never_slower(plan, factor):
    slow = machines()
    assert predict(plan, slow.scaled(factor)).step_seconds <= predict(plan, slow).step_seconds * (1 + 1e-12)


@given(plans(), st.sampled_from([1.1, 2.0]))
def test_a_faster_device_is_never_slower(plan, factor):
    slow = machines()
    device = replace(slow.device, flops={"bf16": 100e12 * factor}, memory_bytes_per_s=1e12 * factor)
    assert predict(plan, replace(slow, device=device)).step_seconds <= predict(plan, slow).step_seconds


@given(plans())
def test_memory_grows_with_the_microbatch(plan):
    assume(plan.microbatch < 8)
    larger = replace(plan, microbatch=plan.microbatch * 2)
    share = BATCH // plan.dp
    assume(share // larger.microbatch >= 2 * plan.pp)  # as many in flight as before
    assert predict(larger).peak_bytes_per_rank >= predict(plan).peak_bytes_per_rank


@given(plans())
def test_recomputing_more_never_saves_more(plan):
    kept = [predict(replace(plan, recompute=one)).bytes["activations"] for one in ("none", "selective", "full")]
    assert kept == sorted(kept, reverse=True)


def test_parameters_gradients_and_states_take_18_bytes():
    found = predict(Plan(tp=4, dp_replicate=2, microbatch=1))
    held = sum(found.bytes[part] for part in ("parameters", "gradients", "optimizer"))
    whole = sum(unit.parameters - unit.split_parameters for unit in MODEL.units)  # norms, positions, some biases
    assert held == pytest.approx(18 * ((MODEL.parameters - whole) / 4 + whole))


def test_full_sharding_divides_what_lies_there():
    whole, sharded = predict(Plan(dp_replicate=8, microbatch=1)), predict(Plan(dp_shard=8, microbatch=1))
    for part in ("parameters", "optimizer"):
        assert sharded.bytes[part] == pytest.approx(whole.bytes[part] / 8)
    assert sharded.bytes["gathered"] > 0 == whole.bytes["gathered"]


def test_gradients_that_come_while_activations_go_are_not_added_to_them():
    model = replace(gpt(), parameter_itemsize=4)
    plain = Training(precision="fp32")
    pricer = Pricer(model, machines(), plain, 8)
    alone = pricer.predict(Plan(dp_shard=8, microbatch=1))
    twice = Pricer(model, machines(), plain, 16).predict(Plan(dp_shard=8, microbatch=1, grad_accum_steps=2))
    assert alone.bytes["activations"] + alone.bytes["gradients"] < (
        twice.bytes["activations"] + twice.bytes["gradients"]
    )


def test_the_first_stage_of_1f1b_holds_most():
    model = chain([1e-3] * 8, saved=1e6)
    plan = Plan(pp=4, dp_replicate=2, stages=(2, 2, 2, 2), microbatch=1)
    held = [parts["activations"] for parts in predict(plan, model=model).rank_bytes]
    assert held == pytest.approx([8e6, 6e6, 4e6, 2e6])


def test_tied_parameters_on_two_stages_are_summed():
    plan = Plan(pp=2, dp_replicate=4, stages=(4, 4), microbatch=2)
    assert predict(plan).seconds["tied"] > 0
    assert predict(plan, model=replace(MODEL, tied=(), tied_parameters=())).seconds["tied"] == 0
    alone = predict(Plan(dp_replicate=8, microbatch=2))
    assert alone.seconds["tied"] == 0
    apart = replace(MODEL, tied=(), tied_parameters=())
    shared = 8192 * 1024
    assert predict(Plan(dp_replicate=8, microbatch=2), model=apart).bytes["parameters"] - alone.bytes[
        "parameters"
    ] == pytest.approx(2 * shared)


def test_measured_times_stand_instead_of_the_rooflines():
    units = [
        MeasuredUnit(shape="layer", microbatch=size, tp=1, forward_s=0.010 * size + 0.002, backward_s=0.020 * size)
        for size in (1, 4)
    ]
    apart = replace(MODEL, units=MODEL.blocks, tied=(), tied_parameters=())
    found = predict(Plan(dp_replicate=8, microbatch=2), model=apart, measured=units)
    # Eight blocks, four microbatches of two; between one and four samples lies a line.
    assert found.seconds["compute"] == pytest.approx(4 * 8 * (0.022 + 0.040))
    whole = predict(Plan(dp_replicate=8, microbatch=2), measured=units)
    assert whole.seconds["compute"] > found.seconds["compute"]
    split = predict(Plan(dp_replicate=4, tp=2, microbatch=2), model=apart, measured=units)
    assert 0.3 < split.seconds["compute"] / found.seconds["compute"] / 2 < 0.8


def test_corrections_scale_their_part():
    plan = Plan(dp_replicate=2, tp=4, microbatch=1)
    plain = predict(plan)
    fixed = predict(plan, corrections=Corrections({"compute": 2.0, "tp": 3.0}, {"activations": 0.5}))
    assert fixed.seconds["compute"] == pytest.approx(2 * plain.seconds["compute"])
    assert fixed.seconds["tp"] == pytest.approx(3 * plain.seconds["tp"])
    assert fixed.bytes["activations"] == pytest.approx(0.5 * plain.bytes["activations"])


@pytest.mark.parametrize(
    ("plan", "reason", "nearest"),
    [
        (Plan(tp=2), "makes 2 ranks, the cluster has 8", "dp_replicate x dp_shard = 4"),
        (Plan(tp=8, dp_replicate=1), "tp=8 does not divide the model's 4 kv_heads", "tp=4"),
        (Plan(pp=8, stages=(1,) * 7 + (2,)), "hold 9 blocks, the model has 8", "leave stages out"),
        (Plan(dp_shard=8, microbatch=3), "8 samples of each rank are not divisible", "microbatch=2"),
        (Plan(pp=2, dp_shard=4, stages=(2, 2, 2, 2), schedule="interleaved", microbatch=1), "", ""),
    ],
)
def test_what_cannot_be_is_refused_with_the_nearest(plan, reason, nearest):
    model = gpt(kv_heads=4)
    found = price(model, machines(), TRAINING, plan, global_batch=BATCH)
    if not reason:
        assert isinstance(found, Prediction)
        return
    assert isinstance(found, Refused)
    assert reason in found.reason
    assert nearest in found.nearest


@pytest.mark.parametrize(
    ("batch", "plan", "reason", "nearest"),
    [
        (4, Plan(dp_replicate=8), "no sample for each of 8", "= 4 is the most"),
        (12, Plan(dp_shard=8), "cannot be dealt out equally to 8", "8 or 16"),
        (9, Plan(pp=4, dp_replicate=2, stages=(2,) * 4), "cannot be dealt out equally to 2", "8 or 10"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(batch, plan, reason, nearest):
    found = price(MODEL, machines(), TRAINING, plan, global_batch=batch)
    assert reason in found.reason
    assert nearest in found.nearest


def test_whole_copies_may_take_unequal_parts():
    assert isinstance(price(MODEL, machines(), TRAINING, Plan(dp_replicate=8), global_batch=12), Prediction)


def test_a_model_says_why_it_cannot_be_split():
    model = replace(MODEL, no_tp="its layers were not proved", no_pp="it has no chain")
    assert "not proved" in price(model, machines(), TRAINING, Plan(tp=8)).reason
    assert "no chain" in price(model, machines(), TRAINING, Plan(pp=8, stages=(1,) * 8)).reason


def test_too_little_memory_is_told_in_bytes():
    small = machines(memory_gib=1.0)
    found = price(MODEL, small, TRAINING, Plan(dp_replicate=8, microbatch=8), global_batch=BATCH)
    assert isinstance(found, Refused)
    assert found.missing_bytes == pytest.approx(found.prediction.peak_bytes_per_rank - GIB)
    assert "too much" in found.reason
    assert "smaller" in found.nearest or "divides" in found.nearest


TORCH = replace(gpt(), engine="torch", parameter_itemsize=4)
PLAIN = Training(precision="fp32")


def test_a_model_says_why_its_sequence_cannot_be_divided():
    plan = Plan(tp=8, microbatch=1, sequence_parallel=True)
    assert isinstance(price(TORCH, machines(), PLAIN, plan), Prediction)
    found = price(replace(TORCH, no_sequence="its blocks were not proved"), machines(), PLAIN, plan)
    assert found.reason == "sequence_parallel is not possible: its blocks were not proved"
    odd = price(replace(TORCH, sequence=12), machines(), PLAIN, plan)
    assert "splits 12 tokens by tp=8" in odd.reason
    assert odd.nearest == "sequence_parallel=no works"


def test_torchs_engine_divides_the_sequence_within_blocks_only():
    plain = Plan(tp=8, microbatch=1)
    along = replace(plain, sequence_parallel=True)

    def saved(model, plan):
        return predict(plan, model=model, training=PLAIN).bytes["activations"]

    blocks, rest = 0.0, 0.0
    for unit in TORCH.units:
        copies = unit.saved["none"].whole_bytes * 7 / 8
        blocks, rest = blocks + copies * (unit.kind == "block"), rest + copies * (unit.kind != "block")
    assert blocks > 0 < rest
    assert saved(TORCH, plain) - saved(TORCH, along) == pytest.approx(blocks)
    megatron = replace(TORCH, engine="megatron")
    assert saved(megatron, plain) - saved(megatron, along) == pytest.approx(blocks + rest)
    # Its backward pass gathers once more what columns need.
    one, other = (predict(plan, model=TORCH, training=PLAIN).seconds["tp"] for plan in (along, plain))
    assert 1.2 < one / other < 1.25


def test_results_that_are_yet_to_be_summed_stay_whole():
    kept = Saved(whole_bytes=10.0, partial_bytes=4.0, split_bytes=8.0)
    unit = replace(TORCH.blocks[0], saved={"none": kept})
    assert saved_bytes(unit, 2, True, "none") == 4 + 3 + 4
    assert saved_bytes(unit, 2, False, "none") == 10 + 4


def test_torchs_pipelined_stages_keep_what_they_gathered_and_gather_for_each_microbatch():
    plan = Plan(pp=2, dp_shard=4, stages=(4, 4), microbatch=1)
    kept, freed = (
        predict(replace(plan, reshard_after_forward=reshard), model=TORCH, training=PLAIN) for reshard in (False, True)
    )
    assert kept.seconds == freed.seconds
    assert kept.bytes == freed.bytes
    few = predict(replace(plan, microbatch=8), model=TORCH, training=PLAIN)
    assert kept.seconds["dp_shard"] > 4 * few.seconds["dp_shard"]
    megatron = predict(replace(plan, reshard_after_forward=False), training=PLAIN)
    assert megatron.seconds["dp_shard"] < kept.seconds["dp_shard"] / 4
    assert megatron.bytes["gathered"] > kept.bytes["gathered"] / 2


def test_torchs_stages_have_a_buffer_for_each_microbatch():
    plan = Plan(pp=8, stages=(1,) * 8, microbatch=1)
    per_message = 512 * 1024 * 2
    assert predict(plan, model=TORCH, training=PLAIN).rank_bytes[1]["buffers"] == 64 * 2 * per_message
    assert predict(plan).rank_bytes[1]["buffers"] == 2 * 2 * per_message


def test_gradients_move_into_the_buckets_in_which_they_are_summed():
    """Beside them there is one bucket at a time; other engines sum copies after the passes."""
    large = replace(TORCH, units=tuple(replace(unit, saved={"none": unit.saved["full"]}) for unit in TORCH.units))
    plan = Plan(dp_replicate=2, tp=4, microbatch=1, bucket_mb=16)
    found = predict(plan, model=large, training=PLAIN).bytes
    assert found["buffers"] == 16 << 20 < found["gradients"] == found["parameters"]
    other = predict(plan, model=replace(large, engine="megatron"), training=PLAIN).bytes
    assert other["activations"] == 0
    assert other["buffers"] == other["gradients"]
    alone = predict(Plan(dp_replicate=8, microbatch=1), model=large, training=PLAIN).bytes
    assert alone["activations"] > 0
    assert alone["buffers"] == 0, "flat gradients are summed where they lie"


def test_sums_of_gradients_hide_behind_the_backward_pass_as_far_as_they_begin_within_it():
    slow = machines(outer=1e8, overlap=1.0)

    def hidden(plan, model=TORCH):
        """Seconds along dp_replicate that a device saves which computes while it sums."""
        one, other = (
            predict(plan, replace(slow, device=replace(slow.device, overlap=share)), model=model, training=PLAIN)
            for share in (1.0, 0.0)
        )
        return other.seconds["dp_replicate"] - one.seconds["dp_replicate"]

    assert hidden(Plan(dp_replicate=8, microbatch=8)) > 0
    assert hidden(Plan(dp_replicate=4, dp_shard=2, microbatch=8)) > 0
    assert hidden(tp := Plan(dp_replicate=4, tp=2, microbatch=8)) > 0
    assert hidden(Plan(dp_replicate=4, pp=2, stages=(4, 4), microbatch=8)) == 0, "stages end with their last pass"
    assert hidden(tp, replace(TORCH, engine="megatron")) == 0


def test_ranks_that_share_processors_fill_one_anothers_waiting():
    model = chain([1.0] * 8)
    plan = Plan(pp=4, stages=(2, 2, 2, 2), microbatch=1, schedule="1f1b")

    def passes(crowd, cut=plan):
        device = replace(machines().device, crowd=crowd)
        topology = replace(machines(nodes=1), device=device)
        found = Pricer(model, topology, TRAINING, 8).predict(replace(cut, dp_replicate=topology.world_size // 4))
        return sum(found.seconds[part] for part in ("compute", "recompute", "tp", "bubble")), found.seconds["bubble"]

    (alone, bubble), (some, less), (many, none) = passes(1.0), passes(1.2), passes(4.0)
    assert alone > some > many
    assert bubble > less > none == 0.0
    # No less than the work that there is; evenly cut stages all work as long as the one that works most.
    assert many == pytest.approx(alone - bubble)
    uneven = replace(plan, stages=(1, 1, 1, 5))
    assert passes(4.0, uneven)[0] == pytest.approx(many)
    assert passes(1.0, uneven)[0] > 1.5 * many
