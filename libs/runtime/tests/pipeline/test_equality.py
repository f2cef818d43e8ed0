"""Training under a pipeline gives the losses and parameters of one process that accumulates the same microbatches."""

import pytest

from libs.runtime.tests.pipeline.pool import Pool

HERE, THERE, ALL = range(2), range(2, 4), range(4)


def check(answers: list[dict]) -> None:
    for rank, answer in enumerate(answers):
        assert answer["loss"] <= 1e-10, (rank, answer)
        assert answer["parameter"] <= 1e-9, (rank, answer)


@pytest.mark.parametrize(
    ("schedule", "chunks", "ranks", "microbatches"),
    [
        ("gpipe", 1, HERE, 4),
        ("1f1b", 1, HERE, 5),
        ("1f1b", 1, HERE, 1),  # fewer microbatches than stages
        ("1f1b", 1, ALL, 6),
        ("interleaved", 2, HERE, 4),
        ("interleaved", 1, ALL, 4),
        ("zero_bubble", 2, HERE, 4),
        ("zero_bubble", 1, ALL, 4),
    ],
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_schedule(
    pool: Pool, schedule: str, chunks: int, ranks: range, microbatches: int, optimizer: str
) -> None:
    case = {"run": "train", "model": "gpt", "schedule": schedule, "chunks": chunks, "microbatches": microbatches}
    check(pool.run({**case, "optimizer": optimizer}, ranks))
