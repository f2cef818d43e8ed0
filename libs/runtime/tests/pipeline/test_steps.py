"""What a pipeline does beside training: evaluation, output, randomness, first weights, failures."""

import pytest

from libs.runtime.tests.pipeline.pool import Pool

HERE, THERE, ALL = range(2), range(2, 4), range(4)


@pytest.mark.parametrize(
    ("model", "schedule", "chunks"), [("llama", "1f1b", 1), ("t5", "interleaved", 2), ("gpt2", "zero_bubble", 2)]
)
def test_evaluation_and_output(pool: Pool, model: str, schedule: str, chunks: int) -> None:
    for answer in pool.run({"run": "evaluate", "model": model, "schedule": schedule, "chunks": chunks}, HERE):
        assert answer["loss"] < 1e-12, answer
        assert answer["count"] == 0, answer
        assert answer["untouched"], answer
        assert answer["after"] < 1e-12, answer
        assert answer["logits"] < 1e-12, answer


def test_randomness_is_a_function_of_microbatch_and_stage(pool: Pool) -> None:
    for rank, answer in enumerate(pool.run({"run": "randomness", "model": "dropout"}, HERE)):
        assert answer["same"] < 1e-12, answer
        assert answer["other"] > 1e-3, answer
        assert answer["calls"] == [[microbatch, rank] for microbatch in range(4)]


def test_shared_gradients_are_bit_equal(pool: Pool) -> None:
    answers = pool.run({"run": "tied", "model": "t5", "schedule": "1f1b"}, ALL)
    assert answers[0]["tied"] == {"shared.weight": [0, 1, 3]}
    bits = {name: bits for answer in answers for name, bits in answer["bits"].items()}
    assert len(bits) == 3
    assert len(set(bits.values())) == 1


@pytest.mark.parametrize("model", ["gemma2", "vit"])
def test_a_model_without_weights_is_cut_first_and_filled_after(pool: Pool, model: str) -> None:
    answers = pool.run({"run": "meta", "model": model, "schedule": "1f1b"}, ALL)
    for answer in answers:
        assert answer["loss"] < 1e-12
        assert answer["proved"]
    assert max(answer["share"] for answer in answers) < 0.5


def test_an_error_on_one_rank_surfaces_and_frees_the_other(tmp_path) -> None:
    """Under a schedule that torch runs directly, and under one that it runs by a list of actions."""
    own = Pool(tmp_path)
    sides = {("1f1b", 1): HERE, ("interleaved", 2): THERE}
    try:
        for (schedule, chunks), ranks in sides.items():
            own.send({"run": "broken", "model": "gpt", "schedule": schedule, "chunks": chunks}, ranks)
        answers = {ranks: own.answers(ranks) for ranks in sides.values()}
    finally:
        own.close()
    for first, last in answers.values():
        assert last["raised"] == "IndexError", last
        assert "out of bounds" in last["message"]
        assert last["seconds"] < 10, last
        assert first["raised"] == "PeerLost", first
        assert first["seconds"] < 15, first
