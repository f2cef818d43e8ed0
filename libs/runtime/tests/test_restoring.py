"""What becomes of a generation that restores its checkpoint while the store of objects is away."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from distroml.objectstore import ObjectStoreDown, ObjectStoreRefused
from distroml.objectstore.memory import open_object_store
from distroml.runtime.checkpoint import NOTHING_ELSE
from distroml.runtime.elastic import Collectives, GenerationLeft, World
from distroml.runtime.link import NullLink
from distroml.runtime.training import restoring
from distroml.runtime.training.storage import Storage
from distroml.workerlink import CheckpointRef

WORLD = World(generation=2, rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), store=None, prefix="")
REF = CheckpointRef(step=3, manifest_hash="h")


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Callable[..., CheckpointRef | None]:
    """Restore where the store of objects fails so often before it answers; what was restored."""
    monkeypatch.setattr(restoring, "_PAUSES_S", (0.0,) * 5)

    def restore(errors: list[Exception], check: Callable[[], None] = lambda: None) -> CheckpointRef | None:
        def load(*_: object, **__: object) -> None:
            if errors:
                raise errors.pop()

        monkeypatch.setattr(restoring, "restore", load)
        model = nn.Linear(2, 2)
        found, _ = restoring.restore_agreed(
            wanted=REF,
            storage=Storage(open_object_store(), "job", None),
            link=NullLink(),
            collectives=Collectives(WORLD),
            fresh=lambda: (model, torch.optim.SGD(model.parameters(), lr=0.1), {}),
            whole=NOTHING_ELSE,
            own=("", ""),
            check=check,
        )
        return found.ref

    return restore


def test_a_store_that_is_away_for_long_is_waited_for(restored: Callable[..., CheckpointRef | None]) -> None:
    errors: list[Exception] = [ObjectStoreDown("no answer")] * 50
    assert restored(errors) == REF
    assert errors == []


@pytest.mark.parametrize("error", [ObjectStoreRefused("wrong key"), ObjectStoreDown("no answer")])
def test_one_that_refuses_us_or_stays_away_is_given_up(
    restored: Callable[..., CheckpointRef | None], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    if not isinstance(error, ObjectStoreRefused):
        monkeypatch.setattr(restoring, "_PATIENCE_S", 0.0)
    errors = [error] * 50
    with pytest.raises(type(error), match=str(error)):
        restored(errors)
    assert len(errors) == 50 - 6


def test_nobody_waits_on_in_a_generation_that_is_over(restored: Callable[..., CheckpointRef | None]) -> None:
    asked: list[int] = []

    def check() -> None:
        asked.append(len(asked))
        if len(asked) == 10:
            raise GenerationLeft("a peer is lost")

    with pytest.raises(GenerationLeft, match="a peer is lost"):
        restored([ObjectStoreDown("no answer")] * 50, check)
