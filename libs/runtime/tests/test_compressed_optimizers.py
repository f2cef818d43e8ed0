"""What 1-bit Adam and DGC do not go with is said, and one process alone trains with them."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from distroml.runtime import DGC, DataLoader, OneBitAdam, Trainer

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))


def trainer(optimizer: Callable, **options) -> Trainer:
    arguments = {
        "model_factory": lambda: nn.Linear(4, 1), "optimizer": optimizer,
        "loss": lambda model, batch: ((model(batch[0]) - batch[0].sum(1, keepdim=True)).square().sum(), len(batch[0])),
        "data": DataLoader(torch.utils.data.TensorDataset(X), 8), "steps": 8, "device": "cpu",
    }  # fmt: skip
    return Trainer(**{**arguments, **options})


def one_bit(parameters) -> OneBitAdam:
    return OneBitAdam(parameters, lr=0.05, warm_up_steps=3)


def dgc(parameters) -> DGC:
    return DGC(parameters, lr=0.05)


@pytest.mark.parametrize(
    ("optimizer", "options", "text"),
    [
        (one_bit, {}, "OneBitAdam exchanges momentum .* pass compress='sign'"),
        (dgc, {"compress": "sign"}, "sign does not tell single elements whole; pass compress='topk:0.001'"),
        (dgc, {"compress": "topk:0.1+int8"}, "topk:0.1.int8 does not tell single elements whole"),
        (one_bit, {"compress": "auto"}, "does not go with compress='auto'"),
        (one_bit, {"compress": "sign", "sync_every": 4}, "does not go with sync_every="),
        (dgc, {"compress": "topk:0.1", "grad_clip": 1.0}, "DGC clips each rank's own by its clip="),
    ],
)
def test_what_they_do_not_go_with(optimizer: Callable, options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        trainer(optimizer, **options).fit()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda p: OneBitAdam(p, warm_up_steps=0), "1 step or more"),
        (lambda p: OneBitAdam(p, lr=-1.0, warm_up_steps=1), "at least 0, not -1"),
        (lambda p: DGC(p, lr=0.1, momentum=1.0), "below 1"),
        (lambda p: DGC(p, lr=0.1, clip=0.0), "above 0, or None"),
        (lambda p: DGC(p, lr=0.1, warm_up_steps=-1), "0 or more steps"),
    ],
)
def test_settings_out_of_range(make: Callable, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make([nn.Parameter(torch.ones(2))])


def test_a_closure_is_refused() -> None:
    with pytest.raises(ValueError, match="takes no closure"):
        dgc([nn.Parameter(torch.ones(2))]).step(lambda: 0.0)


def test_one_process_alone_has_torchs_momentum() -> None:
    ours = trainer(lambda p: DGC(p, lr=0.05, momentum=0.8), compress="topk:0.1").fit()
    theirs = trainer(lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8)).fit()
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)


def test_the_warm_up_is_adam() -> None:
    ours = trainer(lambda p: OneBitAdam(p, lr=0.05, warm_up_steps=8, weight_decay=0.1), compress="sign").fit()
    theirs = trainer(lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1)).fit()
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
