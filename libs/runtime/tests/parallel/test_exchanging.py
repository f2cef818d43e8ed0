"""Compressed exchanges under real plans: nothing of a gradient is lost, all ranks agree, and failures are errors."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from tests.numerics.pool import Pool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

RANKS = "libs.runtime.tests.parallel.exchanging:"
MISHAPS = "libs.runtime.tests.parallel.mishaps:"
PLANS = {
    "dp_replicate=2": 2,
    "dp_replicate=4": 4,
    "dp_replicate=2,dp_shard=2": 4,
    "dp_replicate=2,tp=2": 4,
    "dp_replicate=2,pp=2": 4,
}


@cache
def plainly(pool: Pool, world_size: int, plan: str) -> list[dict]:
    """Eight steps without compression: the same for every scheme that is compared with them."""
    return pool.run(f"{RANKS}course", world_size, 120, plan=plan, steps=8)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("first", "then"), [("int8", None), ("powersgd:1", "sign"), ("topk:0.1", "none")])
def test_what_is_told_and_what_is_kept_are_the_whole_gradient(
    pool: Pool, plan: str, first: str, then: str | None
) -> None:
    """Over steps of several microbatches, and over a change of scheme at an agreed step."""
    for answer in pool.run(f"{RANKS}identity", PLANS[plan], 120, plan=plan, compress=first, then=then):
        assert answer["gap"] <= 1e-6
        assert answer["schemes"] == [then or first]
        assert answer["exchanges"] == 4, "one exchange of each bucket in each of 4 optimizer steps"
        if then == "none":
            assert answer["kept"] == answer["state_bytes"] == 0, "the plain sum tells all that was kept"
        else:
            assert answer["kept"] > 0
            # A residual, and in two phases what an owner keeps; PowerSGD's start is gone with its scheme.
            assert 4 * answer["elements"] <= answer["state_bytes"] <= 5 * answer["elements"]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("compress", ["int4", "powersgd:1"])
def test_all_ranks_train_alike_and_nearly_as_without(pool: Pool, plan: str, compress: str) -> None:
    """Tied parameters and those that are whole along tp among them: no two ranks part."""
    dense = plainly(pool, PLANS[plan], plan)
    coded = pool.run(f"{RANKS}course", PLANS[plan], 120, plan=plan, steps=8, compress=compress)
    assert len({answer["bits"] for answer in coded}) == 1
    assert coded[0]["bits"] != dense[0]["bits"]
    assert coded[0]["losses"] == pytest.approx(dense[0]["losses"], rel=0.25)
    assert coded[0]["losses"][-1] < 0.5 * coded[0]["losses"][0]


@pytest.mark.parametrize("plan", ["dp_replicate=2", "dp_replicate=2,tp=2"])
@pytest.mark.parametrize("compress", ["int8", "topk:0.1", "sign"])
def test_codes_that_leave_before_ranks_have_agreed_give_the_same_bits(pool: Pool, plan: str, compress: str) -> None:
    early, timed = (
        pool.run(f"{RANKS}course", PLANS[plan], 120, plan=plan, steps=4, compress=compress, timed=timed)
        for timed in (False, True)
    )
    assert early[0]["bits"] == timed[0]["bits"]
    assert early[0]["agreed"] < timed[0]["agreed"], "what is agreed upon travels with the codes"


def test_the_size_of_buckets_changes_nothing_but_the_order_of_sums(pool: Pool) -> None:
    small, large = (
        pool.run(f"{RANKS}course", 4, 120, plan=f"dp_replicate=4,bucket_mb={size}", steps=6) for size in (0.001, 25)
    )
    assert small[0]["losses"] == pytest.approx(large[0]["losses"], rel=1e-5)


def test_fewer_bytes_are_sent(pool: Pool) -> None:
    plain, coded = (
        pool.run(f"{RANKS}identity", 2, plan="dp_replicate=2", compress=scheme)[0] for scheme in ("bf16", "int4")
    )
    assert 0 < coded["bytes"] < plain["bytes"] / 2
    assert coded["gradient_norms"] == pytest.approx(plain["gradient_norms"], rel=1e-5)


def test_nothing_of_a_world_is_left_once_it_is_closed(pool: Pool) -> None:
    """Torch remembers meshes, and by them groups, of which each has threads; a process sees many generations."""
    plans = ("dp_shard=2", "dp_shard=2", "tp=2", "tp=2")
    _, first, _, last = [pool.run(f"{MISHAPS}threads", 2, 120, plan=plan) for plan in plans]
    assert all(after <= before for before, after in zip(first, last, strict=True)), (first, last)


def test_ranks_that_want_different_compression_are_told_so(pool: Pool) -> None:
    for told in pool.run(f"{MISHAPS}differing", 2):
        assert "rank 0: compress='none'" in told
        assert "rank 1: compress='int8'" in told


@pytest.mark.parametrize("plans", [["dp_shard=2", "tp=2"], ["dp_replicate=2", "dp_replicate=2,bucket_mb=0.001"]])
def test_ranks_of_different_plans_are_told_so(pool: Pool, plans: list[str]) -> None:
    for told in pool.run(f"{MISHAPS}apart", 2, 60, plans=plans):
        assert f"different plans (rank 0: {plans[0]}" in told
        assert f"; rank 1: {plans[1].partition(',')[0]}" in told


def test_ranks_whose_optimizers_have_different_things_exchanged_are_told_so(pool: Pool) -> None:
    for told in pool.run(f"{MISHAPS}moving_apart", 2, 60):
        assert "(rank 0: OneBitAdam" in told
        assert "warm_up_steps=3" in told


@pytest.mark.parametrize(
    ("plan", "options"),
    [
        ("dp_replicate=2", {"compress": "int8"}),
        # Which compresses nothing here: each rank notes its own, and the sum tells of nobody.
        ("dp_replicate=2", {"compress": "auto"}),
        ("dp_replicate=2,pp=2", {"compress": "int8"}),
        ("dp_shard=2", {"compress_shard": "int8"}),
        ("dp_replicate=2,dp_shard=2", {"compress": "int8", "compress_shard": "int4"}),
        ("dp_replicate=2,dp_shard=2", {"compress_shard": "int8"}),
    ],
)
def test_a_gradient_that_is_no_number_is_told_and_stays_out_of_residuals(pool: Pool, plan: str, options: dict) -> None:
    """Every rank learns whose it is, and of nobody who only got it in a sum."""
    answers = pool.run(f"{MISHAPS}broken", 2 if plan.count("=") == 1 else 4, 120, plan=plan, **options)
    told = "; rank 1 has a gradient of blocks.1.up.weight that is no finite number in step 2"
    for answer in answers:
        assert answer["blamed"] == ["", told, ""]
        first, second, third = answer["norms"]
        assert second != second, "every rank's norm is NaN in that step"
        assert first > 0
        assert third > 0
        assert all(kept < 1.0 for kept in answer["kept"])
    if "compress" in options:
        assert answers[1]["kept"][1] == pytest.approx(answers[1]["kept"][0], rel=1e-6), "they are as they were"


@pytest.mark.parametrize(
    ("plan", "options"),
    [
        ("dp_replicate=2", {"compress": "int8"}),
        ("dp_replicate=2,dp_shard=2", {"compress": "int8"}),
        ("dp_replicate=2,dp_shard=2", {}),
        ("dp_replicate=2,tp=2", {"compress": "int8"}),
        ("dp_replicate=2,pp=2,stages=1/1/1/1,schedule=interleaved", {}),
    ],
)
def test_exchanges_begin_while_the_backward_pass_goes_on_and_end_before_the_norm(
    pool: Pool, plan: str, options: dict
) -> None:
    for answer in pool.run(f"{RANKS}in_order", 2 if plan.count("=") == 1 else 4, 120, plan=plan, **options):
        events, buckets = answer["events"], len(answer["order"])
        begun = [event for event in events if event.startswith("begin")]
        if options:
            assert begun == [f"begin {number}" for number in answer["order"]]
        assert len(begun) == buckets > 2
        if "pp" in plan:
            # Of the two stages on the rank, the later one's exchanges begin before the earlier one's passes end.
            assert len(answer["late"]) == buckets
            if "first layer" not in events:
                continue
        else:
            assert len(answer["late"]) <= buckets // 2
        passed = len(events) - 1 - events[::-1].index("first layer")
        assert sum(event.startswith("begin") for event in events[:passed]) >= 2
        norm = events.index("norm")
        assert sum(event.startswith("over") for event in events[:norm]) == buckets


def test_buckets_after_a_broken_one_keep_what_they_had(pool: Pool) -> None:
    for found in pool.run(f"{MISHAPS}broken_early", 2):
        assert len(found["moved"]) > 2
        # The broken one's went out before it was known, and came back.
        assert found["moved"][0] < 1e-5
        assert not any(found["moved"][1:])
        assert all(found["nan"])


@pytest.mark.parametrize(
    ("plan", "pairs", "alike"),
    [
        ("dp_replicate=2,tp=2", [(0, 1), (2, 3)], "norm.weight"),
        ("dp_replicate=2,pp=2", [(0, 2), (1, 3)], "embed.weight"),
    ],
)
def test_a_skipped_step_parts_nothing_that_places_hold_alike(
    pool: Pool, plan: str, pairs: list[tuple[int, int]], alike: str
) -> None:
    """A gradient is broken in one place only, which the other one does not know."""
    answers = pool.run(f"{MISHAPS}broken_in_one_place", 4, 120, plan=plan)
    for answer in answers:
        first, second, third = answer["norms"]
        assert second != second, "every rank skips it"
        assert first > 0
        assert third > 0
    for one, other in ((answers[a], answers[b]) for a, b in pairs):
        assert one["moved"] == other["moved"]
        shared = one["kept"].keys() & other["kept"].keys()
        assert shared
        assert {name: one["kept"][name] for name in shared} == {name: other["kept"][name] for name in shared}
    assert len({answer["held"][alike] for answer in answers if alike in answer["held"]}) == 1


def test_ranks_learn_what_exchanges_took_and_how_true_they_were(pool: Pool) -> None:
    """Of seconds the least of any rank: one that comes late makes the others wait, which is not the link's doing."""
    answers = pool.run(f"{RANKS}asked", 2, 120)
    first, other = answers
    assert first["least"] == other["least"] == [0.0]
    assert first["took"] == other["took"]
    for took in first["took"]:
        assert all(0 < seconds < first["late_s"] for seconds in took.values()), "the late rank itself waits for nobody"
    assert first["cosines"] == other["cosines"]
    assert len(first["cosines"]) == first["buckets"], "every bucket has its turn"
    assert all(0.95 < cosine <= 1.0 + 1e-9 for cosine in first["cosines"].values())
    assert first["sampled"] > 0


@pytest.mark.parametrize(
    ("plan", "name"), [("dp_replicate=2,tp=2", "norm.weight"), ("dp_replicate=2,pp=2", "embed.weight")]
)
def test_what_places_hold_alike_does_not_part_where_their_links_differ(pool: Pool, plan: str, name: str) -> None:
    """Each place's controller chooses by its own link: one compresses, the other doesn't."""
    answers = pool.run(f"{RANKS}adapted", 4, 120, plan=plan)
    assert len({tuple(answer["schemes"]) for answer in answers}) == 2
    assert {scheme for answer in answers for scheme in answer["schemes"]} > {"none"}
    assert len({answer["held"][name] for answer in answers if name in answer["held"]}) == 1


@pytest.mark.parametrize(("compress", "at"), [("int8", 0), ("int8", 1), ("topk:0.1+int8", 0)])
def test_a_peer_lost_inside_a_coded_exchange_ends_every_wait(pool: Pool, compress: str, at: int) -> None:
    """While parts go to their owners, and while owners' codes go round the ring."""
    assert pool.run(f"{MISHAPS}lost_in_an_exchange", 4, 60, compress=compress, at=at) == ["lost"] * 4


@pytest.mark.parametrize(
    ("plan", "hosts", "options"),
    [
        ("dp_replicate=4", "abab", {"compress": "powersgd:1"}),
        ("dp_replicate=4,tp=2", "aaaabbbb", {}),
        ("dp_replicate=4,pp=2", "aabbaabb", {}),
        ("dp_replicate=4,dp_shard=2", "aaaabbbb", {"compress": "powersgd:1", "compress_shard": "int8"}),
    ],
)
def test_replicas_on_several_hosts_sum_by_the_hierarchy_under_every_plan(
    pool: Pool, plan: str, hosts: str, options: dict, tmp_path: Path
) -> None:
    """The same as by a ring but for rounding, alike on every rank, and with fewer bytes between hosts."""
    flat, layered = (
        pool.run(f"{RANKS}on_hosts", len(hosts), 120, plan=plan, hosts=hosts, way=way, cache=str(tmp_path), **options)
        for way in ("flat", "hierarchical")
    )
    assert len({answer["bits"] for answer in layered}) == 1
    assert layered[0]["losses"] == pytest.approx(flat[0]["losses"], rel=1e-4)
    held: defaultdict[str, set[str]] = defaultdict(set)
    for answer in layered:
        for name, bits in answer["held"].items():
            held[name].add(bits)
    tied = held["embed.weight"] if "pp" in plan else held["norm.weight"]
    assert len(tied) == (2 if "dp_shard" in plan else 1), "what several ranks hold alike has parted"
    between = [sum(answer["sent"].get("cluster", 0) for answer in answers) for answers in (layered, flat)]
    assert 0 < between[0] < between[1]


@pytest.mark.parametrize("compress", ["none", "powersgd:1"])
def test_a_peer_lost_in_a_sum_by_the_hierarchy_ends_every_wait(pool: Pool, compress: str, tmp_path: Path) -> None:
    answers = pool.run(f"{MISHAPS}lost_between_hosts", 4, 60, hosts="aabb", cache=str(tmp_path), compress=compress)
    assert answers == ["lost"] * 4


@pytest.mark.parametrize("options", [{"compress_shard": "int8"}, {"compress_shard": "int4", "compress": "int4"}])
@pytest.mark.parametrize("plan", ["dp_shard=2", "dp_replicate=2,dp_shard=2", "pp=2,dp_shard=2"])
def test_sums_of_shards_may_be_coded(pool: Pool, plan: str, options: dict) -> None:
    world_size = 2 if plan == "dp_shard=2" else 4
    dense = plainly(pool, world_size, plan)
    coded = pool.run(f"{RANKS}course", world_size, 120, plan=plan, steps=8, **options)
    assert len({answer["bits"] for answer in coded}) == 1
    assert coded[0]["bits"] != dense[0]["bits"]
    assert coded[0]["losses"] == pytest.approx(dense[0]["losses"], rel=0.05)


def test_coded_sums_of_shards_are_right_in_the_mean(pool: Pool) -> None:
    """Over many draws the error of their mean falls as that of independent numbers does; NaN comes out everywhere."""
    for answer in pool.run(f"{RANKS}shard_sums_mean", 2, 120):
        assert answer["one"] > 3 * answer["mean"] > 0
        assert answer["broken"] == "all nan"
        assert answer["told"] == ["rank 1 has a gradient of head.weight that is no finite number in step 32"]
        assert answer["bytes"] < answer["dense_bytes"] / 3


def test_coded_sums_of_shards_are_refused_beside_tp(pool: Pool) -> None:
    for told in pool.run(f"{MISHAPS}shards_and_tp", 4, 120):
        assert "use tp=1" in told


@pytest.mark.parametrize("plan", ["dp_shard=2", "dp_replicate=2,dp_shard=2", "pp=2,dp_shard=2"])
def test_parameters_may_be_gathered_as_codes_while_shards_stay_exact(pool: Pool, plan: str) -> None:
    world_size = 2 if plan == "dp_shard=2" else 4
    dense = pool.run(f"{RANKS}gathered", world_size, 120, plan=plan)
    coded = pool.run(f"{RANKS}gathered", world_size, 120, plan=plan, compress_gather="int8")
    assert len({answer["bits"] for answer in coded}) == 1
    assert coded[0]["bits"] != dense[0]["bits"]
    assert coded[0]["losses"] == pytest.approx(dense[0]["losses"], rel=0.05)
    for answer in coded:
        assert answer["first"] == dense[0]["first"], "what is kept was rounded"
        # Far below a code's step, and yet in the shards.
        assert 0 < answer["least"] <= answer["most"] < 1e-3
        assert set(answer["sent"]) == {"dp_shard/node/int8 gather"}
    if plan == "dp_shard=2":
        # As they are: 4 bytes of half of the elements, for two passes each way.
        assert coded[0]["sent"]["dp_shard/node/int8 gather"] < 0.4 * 4 * 4 * coded[0]["elements"] / 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"plan": "dp_shard=2,tp=2", "compress_gather": "int8"}, "use tp=1"),
        ({"plan": "dp_shard=4", "compress_gather": "int8", "compiled": True}, "compiled=False"),
        ({"plan": "dp_shard=4", "compress_gather": "int4"}, "compress_gather='int4' is not possible"),
    ],
)
def test_coded_gathers_are_refused_where_they_do_not_work(pool: Pool, options: dict, said: str) -> None:
    for told in pool.run(f"{MISHAPS}refused", 4, 120, **options):
        assert said in told


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_gradients_of_other_kinds_go_through_float32(pool: Pool, dtype: str) -> None:
    dense, coded = (
        pool.run(f"{RANKS}course", 2, 120, plan="dp_replicate=2", steps=6, dtype=dtype, compress=compress)
        for compress in ("none", "int8")
    )
    assert len({answer["bits"] for answer in coded}) == 1
    assert coded[0]["bits"] != dense[0]["bits"]
    assert coded[0]["losses"] == pytest.approx(dense[0]["losses"], rel=0.05)
