"""How `sync_every` is asked for and refused, and that a training may begin or end with it at a restart."""

from pathlib import Path

import pytest
import torch
from torch import nn

from distroml.runtime import DataLoader, NonFiniteError, Trainer
from distroml.workerlink import environment

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))


def trainer(**options) -> Trainer:
    arguments = {
        "model_factory": lambda: nn.Linear(4, 1), "optimizer": lambda some: torch.optim.Adam(some, lr=0.05),
        "loss": lambda model, batch: ((model(batch[0]) - batch[0].sum(1, keepdim=True)).square().sum(), len(batch[0])),
        "data": DataLoader(torch.utils.data.TensorDataset(X), 8), "steps": 6, "device": "cpu",
    }  # fmt: skip
    return Trainer(**{**arguments, **options})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sync_every": 0}, "every 1 or more steps, not every 0"),
        ({"sync_every": 4, "outer_lr": 0.0}, "above 0, not 0"),
        ({"sync_every": 4, "outer_momentum": 1.0}, "below 1, not 1"),
        ({"sync_every": 4, "compress": "auto"}, "name a scheme"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        trainer(**options)


def test_a_job_may_say_it_and_a_script_wins(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(environment.SYNC_EVERY, "3")
    asked = [trainer(**options)._settings.compression.outer for options in ({}, {"sync_every": 5})]
    assert [outer.every for outer in asked] == [3, 5]
    assert caplog.text.count("the job asks for sync_every=3 and the script for 5: the script's is used") == 1


def test_a_number_of_steps_that_is_none_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.SYNC_EVERY, "often")
    with pytest.raises(ValueError, match=f"{environment.SYNC_EVERY} must be a whole number, got 'often'"):
        trainer()


def test_a_replicas_own_gradient_that_is_no_number_is_told_with_its_rank_and_parameter() -> None:
    """Nobody else's is summed with it, and no exchange finds it out."""

    def broken(model: nn.Module, batch: list[torch.Tensor]) -> tuple[torch.Tensor, int]:
        return (model(batch[0]) * torch.nan).sum(), len(batch[0])

    with pytest.raises(NonFiniteError, match="rank 0 has a gradient of weight that is no finite number in step 1"):
        trainer(sync_every=2, loss=broken).fit()


def test_the_mean_of_one_replica_is_the_replica() -> None:
    """An outer rate of 1 without momentum changes nothing where nobody else is."""
    results = [trainer(**options) for options in ({}, {"sync_every": 2, "outer_lr": 1.0, "outer_momentum": 0.0})]
    plain, meeting = (one.fit() for one in results)
    assert meeting.loss == pytest.approx(plain.loss, rel=1e-5)
    for one, other in zip(*(one.model.parameters() for one in results), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("first", [None, 2])
def test_it_may_begin_and_end_with_a_restart(tmp_path: Path, first: int | None) -> None:
    given = {"checkpoint_every": 2, "checkpoint_dir": tmp_path}
    assert trainer(sync_every=first, steps=4, **given).fit().step == 4
    second = trainer(sync_every=2 if first is None else None, **given).fit()
    assert (second.restored_step, second.step) == (4, 6)


def test_with_it_a_restart_has_the_same_bits(tmp_path: Path) -> None:
    given = {"checkpoint_every": 2, "sync_every": 2}
    straight = trainer(checkpoint_dir=tmp_path / "straight", **given).fit()
    trainer(checkpoint_dir=tmp_path / "broken", steps=4, **given).fit()
    again = trainer(checkpoint_dir=tmp_path / "broken", **given).fit()
    assert again.restored_step == 4
    assert again.fingerprint == straight.fingerprint
