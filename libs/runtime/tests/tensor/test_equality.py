"""Models split over processes train as one process does: losses, gradients, and bits that all ranks share."""

import pytest

from libs.runtime.tests.tensor.zoo import MORE
from tests.numerics.pool import Pool

TRAIN = "libs.runtime.tests.tensor.ranks:train"
# `tests/numerics` has the others, under every plan.
ALSO = ["qwen3", "phi3", "gpt_neox", "bloom", "opt", "qwen2_moe", "bart"]


def check(answers: list[dict]) -> None:
    for answer in answers:
        assert "refused" not in answer, answer["refused"]
        assert answer["loss"] <= 1e-10, answer
        assert answer["gradient"] <= 1e-9, answer
    assert len({answer["bits"] for answer in answers}) == 1, "what all ranks hold in whole has other bits on some"


@pytest.mark.parametrize("name", [*(architecture.name for architecture in MORE), *ALSO])
def test_two_ranks_train_as_one_process(pool: Pool, name: str) -> None:
    answers = pool.run(TRAIN, 2, timeout_s=100, name=name)
    check(answers)
    row = answers[0]
    print(f"{name:16} split {row['split']:3} whole {len(row['whole']):2} loss {row['loss']:.1e}")


@pytest.mark.parametrize("name", ["example_gpt", "t5"])
def test_four_ranks_train_as_one_process(pool: Pool, name: str) -> None:
    check(pool.run(TRAIN, 4, timeout_s=100, name=name))


@pytest.mark.parametrize("name", ["qwen3", "mixtral"])
def test_split_parameters_are_sharded_too(pool: Pool, name: str) -> None:
    """On a mesh of two dimensions, by fully_shard."""
    compare = {"name": name, "plan": "tp=2,dp_shard=2", "optimizer": "adamw", "dtype": "float64", "grad_clip": 1.0}
    answer = pool.run("tests.numerics.equality:compare", 4, timeout_s=90, **compare)[0]
    assert answer["loss"] <= 1e-10
    assert answer["parameter"] <= 1e-9
    assert answer["norm"] <= 1e-9


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "t5", "torch_encoder"])
def test_evaluation_and_generated_text_are_the_same(pool: Pool, name: str) -> None:
    for answer in pool.run("libs.runtime.tests.tensor.ranks:evaluate", 2, name=name):
        assert answer["loss"] <= 1e-6
        assert answer["same"]
        assert answer["length"] == (0 if name == "torch_encoder" else 2)


def test_masks_are_each_ranks_own_where_activations_are_split(pool: Pool) -> None:
    one, other = pool.run("libs.runtime.tests.tensor.ranks:masks", 2)
    for block in ("blocks.0", "blocks.1"):
        for place in ("before", "after"):
            assert one[f"{block}.{place}"] == other[f"{block}.{place}"], "copies are dropped alike"
        inside, others = one[f"{block}.inside"], other[f"{block}.inside"]
        assert not set(inside) & set(others), "parts are dropped each in its own way"
        for kept in (inside, others, one[f"{block}.before"]):
            # Two passes forward; the backward pass recomputes the later one first.
            assert len(kept) == 4
            assert sorted(kept[2:]) == sorted(kept[:2]), "recomputation drops the same"
            assert kept[0] != kept[1], "another pass drops something else"
    assert one["drawn after"] == other["drawn after"], "the common stream goes on alike on all ranks"
