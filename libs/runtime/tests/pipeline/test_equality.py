"""Training under a pipeline gives the losses and parameters of one process that accumulates the same microbatches."""

import pytest

from libs.runtime.tests.pipeline.models import HF
from libs.runtime.tests.pipeline.pool import Pool

HERE, THERE, ALL = range(2), range(2, 4), range(4)


def check(answers: list[dict]) -> None:
    for rank, answer in enumerate(answers):
        assert answer["loss"] <= 1e-10, (rank, answer)
        assert answer["parameter"] <= 1e-9, (rank, answer)


@pytest.mark.parametrize(
    ("schedule", "chunks", "pp", "microbatches"),
    [
        ("gpipe", 1, 2, 4),
        ("1f1b", 1, 2, 5),
        ("1f1b", 1, 2, 1),  # fewer microbatches than stages
        ("1f1b", 1, 4, 6),
        ("interleaved", 2, 2, 4),
        ("interleaved", 1, 4, 4),
        ("zero_bubble", 2, 2, 4),
        ("zero_bubble", 1, 4, 4),
    ],
)
def test_every_schedule(pool: Pool, schedule: str, chunks: int, pp: int, microbatches: int) -> None:
    """With both optimizers: pairs of processes at the same time."""
    case = {"run": "train", "model": "gpt", "schedule": schedule, "chunks": chunks, "microbatches": microbatches}
    sides = {"sgd": HERE, "adamw": THERE} if pp == 2 else {"sgd": ALL, "adamw": ALL}
    for optimizer, ranks in sides.items():
        pool.send({**case, "optimizer": optimizer}, ranks)
    for ranks in sides.values():
        check(pool.answers(ranks))


ARCHITECTURES = [name for name in HF if name != "dropout"]


@pytest.mark.parametrize("names", [ARCHITECTURES[at : at + 2] for at in range(0, len(ARCHITECTURES), 2)], ids="+".join)
def test_every_architecture(pool: Pool, names: list[str]) -> None:
    """Two at a time, each on its own pair of processes."""
    case = {"run": "train", "schedule": "1f1b", "optimizer": "adamw"}
    sides = dict(zip(names, (HERE, THERE), strict=False))
    for name, ranks in sides.items():
        pool.send({**case, "model": name}, ranks)
    for name, ranks in sides.items():
        answers = pool.answers(ranks)
        check(answers)
        assert all(answer["proved"] for answer in answers), name


@pytest.mark.parametrize(
    ("model", "schedule", "chunks", "ranks"),
    [
        ("t5", "interleaved", 2, HERE),  # one rank holds the shared embedding in two stages
        ("t5", "zero_bubble", 3, HERE),
        ("gpt2", "zero_bubble", 2, THERE),
        ("gemma2", "1f1b", 1, ALL),
        ("bart", "gpipe", 1, ALL),
    ],
)
def test_shared_parameters_and_long_ways(pool: Pool, model: str, schedule: str, chunks: int, ranks: range) -> None:
    case = {"run": "train", "model": model, "schedule": schedule, "chunks": chunks, "microbatches": 6}
    check(pool.run({**case, "optimizer": "sgd"}, ranks))


def test_without_the_sum_of_shared_gradients_it_is_not_equal(pool: Pool) -> None:
    case = {"run": "train", "model": "gpt2", "schedule": "1f1b", "optimizer": "sgd", "tied": False, "steps": 2}
    assert max(answer["parameter"] for answer in pool.run(case, HERE)) > 1e-6


@pytest.mark.parametrize(
    ("wrap", "model", "schedule", "chunks"),
    [
        ("checkpoint", "llama_tied", "1f1b", 1),
        ("checkpoint", "t5", "interleaved", 2),
        ("checkpoint", "gpt", "zero_bubble", 2),
        ("compile", "gpt", "1f1b", 1),
        ("split", "llama", "1f1b", 1),
        ("shard", "gpt", "1f1b", 1),
        ("shard", "gpt2", "gpipe", 1),
        ("shard", "t5", "interleaved", 2),
        ("shard", "gpt", "zero_bubble", 2),
    ],
)
def test_with_other_parallelism(pool: Pool, wrap: str, model: str, schedule: str, chunks: int) -> None:
    """Recomputation, compiled blocks, tensor-parallel DTensors, and FSDP inside and around the stages."""
    case = {"run": "train", "model": model, "schedule": schedule, "chunks": chunks, "wrap": wrap, "optimizer": "adamw"}
    for ranks in (HERE, THERE):
        pool.send({**case, "steps": 3}, ranks)
    check([*pool.answers(HERE), *pool.answers(THERE)])
