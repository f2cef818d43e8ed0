"""The same loss and parameters as a plain PyTorch loop in one process, at any number of workers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distroml.runtime import DataLoader, NonFiniteError, StepInfo, Trainer, from_mean
from distroml.runtime.data import SampleOrder


class Words:
    """Sequences with padding: samples have different numbers of valid terms."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.tokens = torch.randint(0, 11, (30, 6), generator=generator)
        self.lengths = torch.randint(1, 7, (30,), generator=generator)

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        targets = self.tokens[index].roll(1)
        return self.tokens[index], torch.where(torch.arange(6) < self.lengths[index], targets, -100)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.mix = nn.Linear(8, 8)
        self.never = nn.Linear(3, 3)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.mix(self.embed(tokens))))


def make_model() -> nn.Module:
    return Tagger().double()


def summed(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model(batch[0])
    total = F.cross_entropy(logits.flatten(0, 1), batch[1].flatten(), ignore_index=-100, reduction="sum")
    return total, (batch[1] != -100).sum()


def make_optimizer(parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)


def plain_loop(steps: int, grad_clip: float | None) -> tuple[nn.Module, list[float], list[float]]:
    """What one would write: mean over the valid terms of the whole batch, clip, step."""
    torch.manual_seed(5)
    model, data = make_model(), Words()
    optimizer = make_optimizer(model.parameters())
    losses, norms, position, epoch = [], [], 0, 0
    for _ in range(steps):
        if 30 - position < 7:
            position, epoch = 0, epoch + 1
        indices = SampleOrder(30, 9, epoch).samples(position, position + 7).tolist()
        position += 7
        tokens, targets = (torch.stack(column) for column in zip(*(data[i] for i in indices), strict=True))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=-100)
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), grad_clip or float("inf"))))
        optimizer.step()
        losses.append(loss.item())
    return model, losses, norms


def trainer(**options) -> Trainer:
    arguments = {
        "model_factory": make_model, "optimizer": make_optimizer, "loss": summed, "steps": 9, "seed": 5,
        "data": DataLoader(Words(), 7, seed=9, microbatch=2), "device": "cpu",
    }  # fmt: skip
    return Trainer(**{**arguments, **options})


@pytest.mark.parametrize("grad_clip", [None, 0.05])
def test_one_process_equals_a_plain_loop(grad_clip: float | None) -> None:
    infos: list[StepInfo] = []
    managed = trainer(grad_clip=grad_clip, callbacks=[infos.append])
    managed.fit()
    model, losses, norms = plain_loop(9, grad_clip)
    for (name, ours), theirs in zip(managed.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12, msg=name)
    assert [info.loss for info in infos] == pytest.approx(losses, rel=1e-12)
    assert [info.grad_norm for info in infos] == pytest.approx(norms, rel=1e-10)
    assert [info.samples for info in infos] == [7] * 9
    # No gradient ever reached it: weight decay must not touch it either.
    torch.manual_seed(5)
    assert torch.equal(managed.model.never.weight, make_model().never.weight)


def test_a_mean_loss_is_made_a_sum() -> None:
    def mean(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(model(batch[0])[:, 0], batch[0][:, 1])

    def total(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, int]:
        return F.cross_entropy(model(batch[0])[:, 0], batch[0][:, 1], reduction="sum"), len(batch[0])

    one, two = trainer(loss=from_mean(mean)), trainer(loss=total)
    assert one.fit().loss == pytest.approx(two.fit().loss, rel=1e-12)


def test_steps_can_be_iterated() -> None:
    managed = trainer(steps=4)
    assert [info.step for info in managed.steps()] == [1, 2, 3, 4]
    assert managed.fit().step == 4


def test_epochs_count_passes() -> None:
    managed = trainer(steps=None, epochs=2)
    assert managed.fit().step == 2 * (30 // 7)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (lambda m, b: m(b[0]).sum(), TypeError, "from_mean"),
        (lambda m, b: (m(b[0])[0, 0], 1), TypeError, "0-dimensional"),
        (lambda m, b: (m(b[0]).sum(), 0), ValueError, "no term in its loss"),
        (lambda m, b: (m(b[0]).sum() * float("inf"), 1), NonFiniteError, "step 1 .samples .0, 7. of epoch 0"),
    ],
)
def test_a_loss_that_cannot_be_used_is_refused(value: Callable, error: type, text: str) -> None:
    managed = trainer(loss=value)
    before = [p.clone() for p in managed.model.parameters()]
    with pytest.raises(error, match=text):
        managed.fit()
    for old, new in zip(before, managed.model.parameters(), strict=True):
        assert torch.equal(old, new), "the optimizer must not have moved"


def test_non_finite_values_can_be_ignored() -> None:
    managed = trainer(loss=lambda m, b: (m(b[0]).sum() * float("nan"), 1), non_finite="ignore", steps=2)
    assert managed.fit().step == 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"steps": None}, "steps= or epochs="),
        ({"epochs": 2}, "steps= or epochs="),
        ({"steps": 0}, "total_steps must be above 0"),
        ({"model": nn.Linear(1, 1)}, "model= or model_factory="),
        ({"eval_every": 2}, "no eval_data"),
        ({"compress": "topk"}, "the share of elements is missing; write topk:0.01"),
        ({"compress_shard": "powersgd:4"}, "powersgd:4 is possible along dp_replicate, by compress="),
        ({"residuals": "none"}, "'folded' or 'exact'"),
        ({"non_finite": "maybe"}, "'fail' or 'ignore'"),
    ],
)
def test_contradictory_arguments_are_refused(options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        trainer(**options)


def test_a_model_that_is_given_can_be_made_again() -> None:
    from distroml.runtime.training.source import ModelSource

    model = make_model()
    first = {name: t.clone() for name, t in model.state_dict().items()}
    source = ModelSource(model, None, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    built, _ = source.build()
    assert all(torch.equal(first[name], t) for name, t in built.state_dict().items())
    assert built.head.weight is built.embed.weight
    assert not {id(p) for p in built.parameters()} & {id(p) for p in model.parameters()}
    source.reset()
    assert all(torch.equal(first[name], t) for name, t in model.state_dict().items())
    source.settled()
    assert not source.can_reset
    with pytest.raises(RuntimeError, match="model_factory"):
        source.reset()


@pytest.mark.e2e
@pytest.mark.timeout(60)
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_any_number_of_workers_gives_the_parameters_of_one(agent: Callable, world_size: int, tmp_path: Path) -> None:
    options = {"dtype": "float64", "batch_norm": False, "dropout": 0.0, "microbatch": 2, "checkpoint_every": 50}
    one = agent(1, "one", **options).run()
    many = agent(world_size, "many", **options).run()
    assert many["world"] == world_size
    for name, values in one["parameters"].items():
        assert many["parameters"][name] == pytest.approx(values, rel=1e-9, abs=1e-12), name
    assert many["eval"] == pytest.approx(one["eval"], rel=1e-10)
    assert many["scores"] == pytest.approx(one["scores"], rel=1e-10)
