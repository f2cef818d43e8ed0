"""Compression in prices: bytes as schemes send them, time of codecs, memory of residuals, and choices by all of it."""

from dataclasses import replace

import pytest
from hypothesis import given

from distroml.planner import (
    Candidate,
    Compressing,
    Momenta,
    Plan,
    PlanRefused,
    Pricer,
    Refused,
    Training,
    Tried,
    compressing,
    parse_wish,
    search,
)
from distroml.planner.buffers import fullest
from distroml.planner.codes import Buffer, Sides, code_of, kept_bytes, messages
from distroml.planner.compression import UnknownScheme, parse_spec
from distroml.planner.training import ITEMSIZE
from libs.planner.tests.models import TRAINING, chain, gpt, machines
from libs.planner.tests.test_pricing import BATCH, MODEL, plans, predict

KEPT_PARTS = ("residuals", "buffers", "margin")


def under(scheme, shard="none", **values):
    return replace(TRAINING, compressing=compressing(scheme, shard, **values))


@given(plans())
def test_compression_only_touches_the_sums_of_gradients(plan):
    plain, packed = predict(plan), predict(plan, training=under("int8"))
    assert {**packed.seconds, "dp_replicate": 0} == {**plain.seconds, "dp_replicate": 0}
    # Coordinate by coordinate: what is kept may make another one the fullest.
    for own, without in zip(packed.rank_bytes, plain.rank_bytes, strict=True):
        assert {**own, **dict.fromkeys(KEPT_PARTS, 0)} == {**without, **dict.fromkeys(KEPT_PARTS, 0)}
    assert (packed.bytes["residuals"] > 0) == (plan.dp_replicate > 1)
    slow = under("int8", tried=[Tried("int8", 8, 1.0)])
    told = predict(plan, training=slow)
    assert plan.dp_replicate == 1 or told.seconds["dp_replicate"] > plain.seconds["dp_replicate"] + 1
    assert plain.compressed is None
    assert packed.compressed is not None
    assert packed.compressed.scheme == ("int8" if plan.dp_replicate > 1 else "none")


def test_a_code_takes_what_its_format_says():
    assert code_of(parse_spec("int8"))(1024) == 1024 + 4 * 4
    assert code_of(parse_spec("int4"))(1024) == 512 + 4 * 8
    assert code_of(parse_spec("sign"))(1024) == 128 + 4
    assert code_of(parse_spec("topk:0.01"))(100_000) == 2 * 4 + 1000 * (2 + 4)


def test_what_is_sent_is_as_the_scheme_sends_it():
    plan = Plan(dp_replicate=8, microbatch=1)
    found = {}
    for scheme in ("none", "int8", "int4", "powersgd:4"):
        told = predict(plan, training=under("bf16" if scheme == "none" else scheme)).compressed
        found[scheme] = told.dense_bytes["dp_replicate"] if scheme == "none" else told.sent_bytes["dp_replicate"]
    elements = MODEL.parameters
    assert found["none"] == pytest.approx(2 * 2 * elements * 7 / 8)  # 16-bit gradients, both halves of a ring
    # Two phases of codes, with a scale of 4 bytes for each block.
    assert found["int8"] == pytest.approx(2 * elements * (1 + 4 / 256) * 7 / 8, rel=1e-3)
    assert found["int4"] == pytest.approx(2 * elements * (1 / 2 + 4 / 128) * 7 / 8, rel=1e-3)
    factors = 4 * sum(
        shape.many * sum(shape.sizes) for unit in MODEL.units for shape in unit.shapes
    )  # elements of both factors at rank 4
    rest = elements - sum(shape.many * shape.sizes[0] * shape.sizes[1] for unit in MODEL.units for shape in unit.shapes)
    assert found["powersgd:4"] == pytest.approx(2 * (4 * factors + 2 * rest) * 7 / 8, rel=0.01)


def test_codecs_without_a_core_of_their_own_hide_behind_nothing():
    plan, tried = Plan(dp_replicate=8, microbatch=1), [Tried("int8", 8, 1e-10)]
    alone, beside = (
        predict(plan, machines(outer=1e12), under("int8", tried=tried, slows=slows)).seconds["dp_replicate"]
        for slows in (0.0, 1.0)
    )
    assert beside > alone
    told = predict(plan, training=under("int8", tried=tried)).compressed
    assert told.codec_s == pytest.approx(1e-10 * MODEL.parameters)
    assert told.measured
    assert not predict(plan, training=under("int8")).compressed.measured


def test_shards_are_scattered_as_codes_and_keep_nothing():
    plan, together = Plan(dp_shard=8, microbatch=1), machines(nodes=1, per_node=8, inner=1e9)
    plain, packed = (predict(plan, together, under("none", shard)) for shard in ("none", "int4"))
    assert packed.compressed.sent_bytes["dp_shard"] == pytest.approx(
        packed.compressed.dense_bytes["dp_shard"] * (1 / 2 + 4 / 128) / 2, rel=1e-3
    )
    assert packed.seconds["dp_shard"] < plain.seconds["dp_shard"]
    assert packed.bytes["residuals"] == 0
    # Between hosts a ring crosses once for all ranks of one, and a code for each of its owners.
    across = predict(plan, training=under("none", "int4"))
    assert across.seconds["dp_shard"] > predict(plan).seconds["dp_shard"]


def test_compressed_shards_go_with_no_tp():
    pricer = Pricer(MODEL, machines(), under("none", "int8"), BATCH)
    refused = pricer.price(Plan(tp=2, dp_shard=4, microbatch=1))
    assert isinstance(refused, Refused)
    assert "compress_shard=int8 is not possible with tp=2" in refused.reason
    found = search(MODEL, machines(), under("none", "int8"), BATCH, wish=parse_wish("dp_shard=4"))
    assert found.plan.tp == 1


def test_residuals_are_reckoned_when_plans_are_held_against_memory():
    plan = Plan(dp_replicate=8, microbatch=1)
    whole = predict(plan).peak_bytes_per_rank / (1 << 30)
    tight = machines(memory_gib=whole * 1.1)
    assert not isinstance(Pricer(MODEL, tight, TRAINING, BATCH).price(plan), Refused)
    refused = Pricer(MODEL, tight, under("int8"), BATCH).price(plan)
    assert isinstance(refused, Refused)
    assert refused.missing_bytes > 0


def test_a_cheap_exchange_changes_the_choice():
    """On slow links whole copies lose to a divided model; where gradients are hardly sent, they win."""
    slow = machines(nodes=2, per_node=1, inner=1e9, outer=2e7)
    model = gpt(layers=4, hidden=256, seq=128)
    dense = search(model, slow, TRAINING, BATCH)
    sparse = search(model, slow, under("powersgd:1"), BATCH)
    assert dense.plan.dp_replicate == 1
    assert sparse.plan.dp_replicate == 2
    assert sparse.prediction.step_seconds < dense.prediction.step_seconds


def test_auto_takes_a_lossier_scheme_only_where_it_saves_more_than_it_costs():
    ladder = [Candidate("none"), Candidate("int8", 0.005), Candidate("powersgd:1", 0.22)]
    plan = Plan(dp_replicate=2, microbatch=1)
    chosen = []
    for rate in (1e12, 5e9, 1e5):
        links = machines(nodes=2, per_node=1, outer=rate)
        chosen.append(predict(plan, links, under("auto", ladder=ladder)).compressed.scheme)
    assert chosen == ["none", "int8", "powersgd:1"]
    told = predict(plan, machines(nodes=2, per_node=1, outer=1e12), under("auto", ladder=ladder))
    assert told.bytes["residuals"] > 0, "the controller may go over to a lossy scheme at any step"


def test_what_cannot_be_asked_for_is_refused():
    with pytest.raises(UnknownScheme):
        compressing("int9")
    with pytest.raises(PlanRefused, match="compress_shard must be one of"):
        compressing("none", "sign")
    with pytest.raises(PlanRefused, match="needs a scheme"):
        compressing("auto")
    with pytest.raises(PlanRefused, match="share from 0 to 1"):
        Compressing(slows=2.0)
    with pytest.raises(PlanRefused, match="number of steps"):
        Compressing(sync_every=-1)
    with pytest.raises(PlanRefused, match="with sync_every they exchange nothing"):
        compressing("auto", ladder=[Candidate("none"), Candidate("int8")], sync_every=2)


def test_messages_stand_beside_the_activations_that_are_left_when_they_are_sent():
    """Four blocks of 0.4 MB of gradients, each of which leaves 0.1 MB for its backward pass."""
    model = chain([1e-3] * 4, saved=1e5, parameters=100_000)
    training = Training(precision="fp32", compressing=compressing("int8"))

    def peak(bucket_mb):
        plan = Plan(dp_replicate=8, microbatch=1, bucket_mb=bucket_mb)
        return Pricer(model, machines(), training, 8).predict(plan).bytes

    at_once, by_block = peak(8.0), peak(0.4e6 / (1 << 20))
    assert at_once["activations"] == 0, "one bucket is full when the passes are over"
    assert at_once["buffers"] == pytest.approx(2 * 400_000, rel=0.03)
    assert by_block["activations"] == 3e5, "the first of four is full when one block is through"
    assert by_block["buffers"] == pytest.approx(at_once["buffers"] / 4, rel=0.03)


def test_codes_of_shards_are_made_when_the_gradients_themselves_are_gone():
    """Blocks of 0.4 MB that leave nothing for their backward pass, and whose gradients are the most there is."""

    def peak(blocks, shard, dtype="fp32"):
        model = replace(chain([1e-3] * blocks, parameters=100_000), parameter_itemsize=ITEMSIZE[dtype])
        training = Training(precision=dtype, compressing=compressing("none", shard))
        return Pricer(model, machines(), training, 8).predict(Plan(dp_shard=8, microbatch=1)).bytes

    for shard in ("int8", "int4"):
        assert peak(4, shard) == peak(4, "none"), "fullest is a block before its parameters go, with the buffer behind"
    # One block: whole parameters and gradients, or gradients twice; with codes one flat buffer, and what comes beside.
    code = 8 * (8 + 4 * 49 + 12_500)
    assert peak(1, "none")["gathered"] == 800_000
    assert peak(1, "int8") == peak(1, "none"), "codes and sums of 0.3 MB stand where gradients of 0.4 MB were"
    halves = peak(1, "int8", "bf16")
    assert halves["gathered"] == 200_000
    assert halves["buffers"] == 25_000 + 400_000 + code, "codes are made of 32-bit copies"


def test_meetings_cost_once_in_so_many_steps():
    plan = Plan(dp_replicate=8, microbatch=1)
    each, seldom, never = (predict(plan, training=under("int8", sync_every=every)) for every in (1, 50, 10**9))
    # What is left of very rare ones is the gradient's way into its buffer.
    rest = never.seconds["dp_replicate"]
    assert seldom.seconds["dp_replicate"] - rest == pytest.approx((each.seconds["dp_replicate"] - rest) / 50, rel=1e-3)
    for axis, sent in each.compressed.sent_bytes.items():
        assert seldom.compressed.sent_bytes[axis] == pytest.approx(sent / 50)
    assert sum(seldom.compressed.level_bytes.values()) == pytest.approx(sum(seldom.compressed.sent_bytes.values()))
    assert seldom.compressed.dense_bytes == each.compressed.dense_bytes
    plain = predict(plan, training=under("int8"))
    assert plain.compressed.sent_bytes == pytest.approx(each.compressed.sent_bytes)
    # Where replicas meet nothing hides the exchange.
    assert each.seconds["dp_replicate"] > plain.seconds["dp_replicate"]


def test_meetings_take_two_more_copies_of_the_parameters():
    plan = Plan(dp_replicate=8, microbatch=1)
    plain, apart = predict(plan), predict(plan, training=under("none", sync_every=50))
    assert apart.bytes["optimizer"] - plain.bytes["optimizer"] == 2 * plain.bytes["parameters"]
    assert apart.bytes["residuals"] == 0
    assert apart.compressed.scheme == "none"
    assert apart.compressed.sync_every == 50


@pytest.mark.parametrize("what", [{"sync_every": 50}, {"momenta": Momenta()}])
def test_what_knows_whole_copies_only_is_planned_with_these(what):
    pricer = Pricer(MODEL, machines(), under("int8", **what), BATCH)
    refused = pricer.price(Plan(dp_shard=4, dp_replicate=2, microbatch=1))
    assert isinstance(refused, Refused)
    assert "is not possible with dp_replicate=2,dp_shard=4" in refused.reason
    assert refused.nearest == "dp_replicate=8 works"
    assert search(MODEL, machines(), under("int8", **what), BATCH).plan.mesh_text == "dp_replicate=8"


def test_momenta_have_memory_for_the_first_steps_and_wait_where_they_must():
    plan, model = Plan(dp_replicate=8, microbatch=1), MODEL.parameters
    rare = predict(plan, training=under("topk:0.001"))
    momenta = Momenta(kept_bytes=4, first=("topk:0.25",), waits=True)
    dgc = predict(plan, training=under("topk:0.001", momenta=momenta))
    assert dgc.bytes["residuals"] - rare.bytes["residuals"] == pytest.approx(4 * model, rel=1e-6)
    assert dgc.compressed.working_bytes > 1.5 * rare.compressed.working_bytes
    assert dgc.compressed.sent_bytes == rare.compressed.sent_bytes, "steps are priced by what stays"
    slow = machines(outer=1e7)
    assert (
        predict(plan, slow, under("topk:0.001", momenta=momenta)).seconds["dp_replicate"]
        > predict(plan, slow, under("topk:0.001", momenta=replace(momenta, waits=False))).seconds["dp_replicate"]
    )


def test_one_large_parameter_makes_one_large_bucket():
    small, large = fullest([(64, 64)] * 10, 20_000), fullest([(64, 64)] * 10 + [(1000, 64)], 20_000)
    assert small == Buffer(4 * 4096, (Sides(64, 64, 4),))
    assert large == Buffer(64_000, (Sides(1000, 64, 1),))


def test_a_rank_alone_sends_and_keeps_nothing():
    buffer = Buffer(4096, (Sides(64, 64, 1),))
    for scheme in ("none", "int8", "powersgd:4", "randomk:0.01"):
        assert messages(parse_spec(scheme), buffer, 1) == []
        assert kept_bytes(parse_spec(scheme), buffer, 1) == 0
