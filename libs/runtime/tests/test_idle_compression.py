"""Compression that was asked for where nothing is there to compress: it is said, by rank 0 and once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distroml.planner import Plan
from distroml.runtime import DataLoader, Trainer
from distroml.runtime.elastic import World
from distroml.runtime.parallel import Compression, parallelize
from distroml.runtime.parallel.idle import idle, warn_of_idle


@pytest.mark.parametrize(
    ("plan", "asked", "said"),
    [
        (
            Plan(),
            {"scheme": "int8"},
            ["compress='int8' .* plan dp_replicate=1: .*; start more workers, or leave it out"],
        ),
        (
            Plan(dp_shard=2),
            {"scheme": "auto"},
            ["compress='auto' .* plan dp_shard=2: .* or compress_shard= along dp_sh"],
        ),
        (Plan(tp=2), {"scheme": "int8"}, ["plan tp=2: no two ranks .*; use a plan with dp_replicate$"]),
        (
            Plan(dp_replicate=2),
            {"shard": "int8"},
            ["compress_shard='int8' .*: no gradients are summed along dp_shard;"],
        ),
        (Plan(), {"gather": "int8"}, ["compress_gather='int8' .*: no parameters are gathered .*; start more workers"]),
        (Plan(dp_replicate=2), {"scheme": "int8"}, []),
        (Plan(dp_shard=2), {"shard": "int4", "gather": "int8"}, []),
        (Plan(), {}, []),
    ],
    ids=str,
)
def test_compression_that_has_nothing_to_do_is_told(plan: Plan, asked: dict[str, Any], said: list[str]) -> None:
    found = list(idle(plan, Compression(**asked)))
    assert len(found) == len(said)
    for line, expected in zip(found, said, strict=True):
        assert re.search(expected, line), line


def test_it_is_told_by_rank_0_and_once(caplog: pytest.LogCaptureFixture) -> None:
    ranks = [
        World(generation=1, rank=rank, world_size=2, local_rank=rank, device=torch.device("cpu"), store=None, prefix="")
        for rank in range(2)
    ]
    plan, asked, told = Plan(dp_shard=2), Compression("int8"), set[str]()
    warn_of_idle(plan, asked, ranks[1], set())
    assert caplog.text == ""
    for _ in range(2):
        warn_of_idle(plan, asked, ranks[0], told)
    assert caplog.text.count("compress='int8' compresses nothing") == 1
    caplog.clear()
    parallelize(torch.nn.Linear(2, 2), compress="int8").close()
    assert caplog.text.count("compress='int8' compresses nothing under the plan dp_replicate=1") == 1


class Numbers:
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((2,), float(index))


def test_a_trainer_whose_plan_has_no_replicas_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = Trainer(
        model_factory=lambda: nn.Linear(2, 1),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
        loss=lambda model, batch: (model(batch).square().sum(), len(batch)),
        data=DataLoader(Numbers(), 4),
        steps=2,
        compress="auto",
        device="cpu",
    )
    assert trainer.fit().step == 2
    assert caplog.text.count("compress='auto' compresses nothing under the plan dp_replicate=1") == 1
