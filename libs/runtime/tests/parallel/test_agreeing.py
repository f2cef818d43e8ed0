"""Ranks that would hang or come apart later, however they were started, are told so when they meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from distroml.planner import Plan
from distroml.runtime.compress.optim import DGC, OneBitAdam
from distroml.runtime.elastic import Collectives
from distroml.runtime.parallel.alike import CompressionDiffers, RanksDiffer, Wanted, agree_on, agree_on_exchanged
from distroml.runtime.parallel.compression import Compression

CPU = torch.device("cpu")
BARE = "torch without compiled kernels, on AVX2"
WHOLE = Plan(dp_replicate=2)


def beside(then: Callable[[Any], Any], heard: list[Any] | None = None) -> Collectives:
    """Of two ranks, of which the other one tells what `then` makes of what this one does."""

    def gather(own: Any) -> list[Any]:
        if heard is not None:
            heard.append(own)
        return [own, then(own)]

    return cast("Collectives", SimpleNamespace(gather=gather))


def forming(own: Wanted) -> Wanted:
    """Forms products in another way wherever this one says how it does."""
    return replace(own, arithmetic=BARE if own.arithmetic else "")


@pytest.mark.parametrize("scheme", ["powersgd:4", "auto"])
def test_ranks_that_form_products_in_different_ways_are_refused(scheme: str) -> None:
    """What they restore of the same factors would differ in the last bits, and never come together again."""
    with pytest.raises(CompressionDiffers, match=rf"rank 1: {BARE}\); .* install a compiler"):
        agree_on(Compression(scheme), beside(forming), seed=1, plan=WHOLE, device=CPU)


def test_what_products_have_no_part_in_is_not_asked_for() -> None:
    heard: list[Wanted] = []
    agree_on(Compression("int8"), beside(forming, heard), seed=1, plan=WHOLE, device=CPU)
    assert not heard[0].arithmetic


@pytest.mark.parametrize("scheme", ["powersgd:4", "auto"])
def test_ranks_that_exchange_nothing_may_form_products_in_any_way(scheme: str) -> None:
    heard: list[Wanted] = []
    agree_on(Compression(scheme), beside(forming, heard), seed=1, plan=Plan(tp=2))
    assert not heard[0].arithmetic


@pytest.mark.parametrize("scheme", ["randomk:0.1", "powersgd:4", "none"])
def test_ranks_of_different_seeds_are_refused(scheme: str) -> None:
    """Under random-K each would tell other elements than the others take them for, and all would come apart."""
    other = beside(lambda own: replace(own, seed=8))
    with pytest.raises(RanksDiffer, match=r"seeds \(rank 0: 7; rank 1: 8\).* start all of them alike"):
        agree_on(Compression(scheme), other, seed=7, plan=WHOLE, device=CPU)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (WHOLE, replace(WHOLE, bucket_mb=4.0)),
        (Plan(dp_shard=2), Plan(tp=2)),
        (Plan(tp=2, microbatch=2), Plan(tp=2, microbatch=1)),
        # One searches, and the other one was given a plan.
        ("auto", WHOLE),
    ],
)
def test_ranks_of_different_plans_are_refused(mine: Plan | str, theirs: Plan | str) -> None:
    """Their messages would be of different sizes, and their groups of different ranks."""
    told: list[Wanted] = []
    agree_on(Compression(), beside(lambda own: own, told), seed=1, plan=theirs)
    with pytest.raises(
        RanksDiffer, match=r"different plans \(rank 0: .*; rank 1: .*start all of them alike"
    ) as refused:
        agree_on(Compression(), beside(lambda own: told[0]), seed=1, plan=mine)
    assert str(mine) in str(refused.value) or told[0].plan in str(refused.value)


def test_whole_replicas_may_make_their_passes_as_they_like() -> None:
    told: list[Wanted] = []
    for plan in (WHOLE, replace(WHOLE, microbatch=4, grad_accum_steps=2, reasons=("by hand",))):
        agree_on(Compression(), beside(lambda own: own, told), seed=1, plan=plan)
    assert told[0] == told[1]


def _made(kind: Any, **settings: Any) -> Optimizer:
    return kind([nn.Parameter(torch.ones(2, 2))], **settings)


@pytest.mark.parametrize(
    ("mine", "theirs", "said"),
    [
        (
            _made(OneBitAdam, warm_up_steps=5),
            _made(OneBitAdam, warm_up_steps=6),
            r"warm_up_steps=5.*rank 1: .*warm_up_steps=6",
        ),
        (_made(DGC, lr=0.1), _made(DGC, lr=0.1, clip=1.0), r"clip=None.*rank 1: .*clip=1.0"),
        (_made(DGC, lr=0.1), _made(DGC, lr=0.1, momentum=0.8), r"momentum=0.9.*rank 1: .*momentum=0.8"),
        (_made(DGC, lr=0.1), _made(DGC, lr=0.1, nesterov=True), r"nesterov=False.*rank 1: .*nesterov=True"),
        (_made(DGC, lr=0.1), _made(torch.optim.SGD, lr=0.1), r"rank 0: DGC.*rank 1: gradients"),
    ],
)
def test_optimizers_that_have_different_things_exchanged_are_refused(
    mine: Optimizer, theirs: Optimizer, said: str
) -> None:
    told: list[str] = []
    agree_on_exchanged(theirs, beside(lambda own: own, told))
    with pytest.raises(CompressionDiffers, match=said):
        agree_on_exchanged(mine, beside(lambda own: told[0]))


def test_optimizers_that_go_by_gradients_may_differ() -> None:
    """What they make of the same sums is not this question's."""
    told: list[str] = []
    agree_on_exchanged(_made(torch.optim.AdamW, lr=0.1), beside(lambda own: own, told))
    agree_on_exchanged(_made(torch.optim.SGD, lr=0.2), beside(lambda own: told[0]))
