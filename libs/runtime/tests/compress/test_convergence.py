"""Compressed training ends where plain training ends, by error feedback and not without it."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from distroml.runtime.compress import parse_scheme
from libs.runtime.tests.compress.training import LeastSquares, trained

LOSSY = [
    "bf16", "fp16", "int8", "int4", "sign", "topk:0.05", "topk:0.05+int8", "randomk:0.1", "randomk:0.1+bf16",
    "powersgd:1", "powersgd:2", "powersgd:2+int8",
]  # fmt: skip


@pytest.fixture(scope="module")
def problem() -> LeastSquares:
    """Every rank has a solution of its own, far from the common one; steps are an eighth of the longest stable one.

    What waits in residuals is told late, as by an old step: near the longest stable step sparse and low-rank schemes
    would not end at all, with feedback or by any other delay.
    """
    made = LeastSquares()
    made.lr /= 8
    return made


def test_plain_descent_of_the_problem(problem: LeastSquares) -> None:
    assert problem.excess(parse_scheme("none"), 300) < 5e-4


@pytest.mark.parametrize("name", LOSSY)
def test_least_squares_within_half_a_percent_of_the_plain_sum(name: str, problem: LeastSquares) -> None:
    assert problem.excess(parse_scheme(name), 300) < 5e-3


@pytest.mark.parametrize("name", ["topk:0.05", "randomk:0.1", "powersgd:1", "powersgd:2", "powersgd:2+int8", "sign"])
def test_without_feedback_it_ends_elsewhere(name: str, problem: LeastSquares) -> None:
    assert problem.excess(parse_scheme(name), 300, feedback=False) > 5e-2


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Handwritten digits and what they are."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)


def classified(digits: tuple[torch.Tensor, torch.Tensor], name: str) -> tuple[float, int]:
    """Loss at the end, and bytes that one of four ranks sent."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.12, 0.12, generator=generator)
    return trained(
        model, *digits, parse_scheme(name), ranks=4, steps=200, batch=128,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain(digits: tuple[torch.Tensor, torch.Tensor]) -> tuple[float, int]:
    return classified(digits, "none")


@pytest.mark.parametrize(
    ("name", "fewer"),
    [("bf16", 1.9), ("int8", 3.8), ("int4", 7.5), ("powersgd:2", 8.0), ("powersgd:2+int8", 20.0)],
)
def test_digits_reach_the_plain_loss_with_fewer_bytes(
    name: str, fewer: float, digits: tuple[torch.Tensor, torch.Tensor], plain: tuple[float, int]
) -> None:
    loss, sent = classified(digits, name)
    assert plain[0] < 0.06
    assert loss < plain[0] + 0.02
    assert plain[1] / sent > fewer
