"""Requests: what is written can be read, and what cannot be read is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distroml.planner import AXES, Plan, PlanRefused, Wish, parse_wish, wish_of


def test_nothing_is_wished_for():
    assert parse_wish("auto") == parse_wish("") == parse_wish(" , ") == Wish()


def test_every_name_is_read():
    wish = parse_wish(
        "dp_replicate=2, dp_shard=4,tp=2,pp=2,microbatch=4,accum=8,schedule=1f1b,stages=3/3,recompute=full,"
        "reshard=no,sequence_parallel=yes,bucket_mb=8.5,order=tp/pp"
    )
    assert wish == Wish(
        dp_replicate=2,
        dp_shard=4,
        tp=2,
        pp=2,
        microbatch=4,
        grad_accum_steps=8,
        schedule="1f1b",
        stages=(3, 3),
        recompute="full",
        reshard_after_forward=False,
        sequence_parallel=True,
        bucket_mb=8.5,
        order=("dp_replicate", "dp_shard", "tp", "pp"),
    )


def test_one_given_plan_is_plain_where_it_says_nothing():
    whole = parse_wish("tp=2,microbatch=4").whole()
    assert whole.allows(Plan(tp=2, microbatch=4))
    assert not whole.allows(Plan(tp=2, microbatch=4, sequence_parallel=True))
    assert not whole.allows(Plan(tp=2, dp_shard=2, microbatch=4))
    assert parse_wish("pp=2,stages=1/1/1/1").whole().schedule == "interleaved"


plans = st.builds(
    lambda dp, shard, tp, pp, v, order, microbatch, accum, recompute, reshard, sequence, bucket: Plan(
        dp_replicate=dp,
        dp_shard=shard,
        tp=tp,
        pp=pp,
        order=order,
        microbatch=microbatch,
        grad_accum_steps=accum,
        schedule="interleaved" if v > 1 and pp > 1 else "1f1b",
        stages=(3, *[2] * (pp * v - 1)) if pp > 1 else (),
        recompute=recompute,
        reshard_after_forward=reshard or shard == 1,
        sequence_parallel=sequence and tp > 1,
        bucket_mb=bucket if dp > 1 else 8.0,
    ),
    *[st.integers(1, 4)] * 5,
    st.permutations(AXES).map(tuple),
    st.integers(1, 64),
    st.integers(1, 64),
    st.sampled_from(["none", "selective", "full"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1.0, 8.0, 25.0]),
)


def test_the_size_of_buckets_may_be_asked_to_be_measured():
    wish = parse_wish("dp_replicate=2,bucket_mb=auto")
    assert wish == Wish(dp_replicate=2, tune_bucket=True)
    assert wish.whole().bucket_mb is None
    assert parse_wish("dp_replicate=2").whole().bucket_mb == 8.0


@given(plans)
def test_what_a_plan_writes_only_that_plan_fulfils(plan):
    wish = parse_wish(str(plan)).whole()
    assert wish.allows(plan)
    assert wish_of(plan).allows(plan)
    named = {name: value for name in Wish.__slots__ if (value := getattr(wish, name)) is not None}
    assert all(getattr(plan, name) == value for name, value in named.items() if name != "chunks")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tpp=2", r"'tpp=2'.*did you mean tp"),
        ("tp", "expected 'auto' or NAME=VALUE"),
        ("tp=", "expected 'auto' or NAME=VALUE"),
        ("tp=0", "positive whole number, not '0'"),
        ("tp=2.5", "positive whole number"),
        ("tp=²", "positive whole number"),
        ("tp=2,tp=4", "names tp twice"),
        ("schedule=1fb", r"one of gpipe, .*did you mean 1f1b"),
        ("stages=3/x", "numbers of blocks"),
        ("stages=2x99999", "numbers of blocks"),
        ("pp=2,stages=1/1/1", "cannot share evenly"),
        ("pp=2,stages=1/1,chunks=2", "chunks=2, but 2 stages"),
        ("order=tp/tp", "axes from outermost"),
        ("reshard=maybe", "yes or no"),
        ("bucket_mb=inf", "a positive number"),
        ("bucket_mb=often", "bucket_mb must be auto or a positive number, not 'often'"),
    ],
)
def test_what_cannot_be_read_is_named(text, why):
    with pytest.raises(PlanRefused, match=why):
        parse_wish(text)
