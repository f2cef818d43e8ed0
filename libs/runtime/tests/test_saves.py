"""What is said of a save as it is begun, and of one that fails before that."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distroml.objectstore.memory import open_object_store
from distroml.runtime.elastic import Collectives, World
from distroml.runtime.link import NullLink
from distroml.runtime.training.saves import Saves
from distroml.runtime.training.storage import Storage
from distroml.workerlink import SaveBegun, SaveFailed

WORLD = World(generation=1, rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), store=None, prefix="")


class Recording(NullLink):
    def __init__(self) -> None:
        self.failed: list[SaveFailed] = []
        self.begun: list[SaveBegun] = []

    def send(self, message: Any) -> None:
        if isinstance(message, SaveFailed):
            self.failed.append(message)
        if isinstance(message, SaveBegun):
            self.begun.append(message)


def test_a_copy_for_which_there_is_no_memory_is_told_of_once_and_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Recording()
    saves = Saves(link, Storage(open_object_store(), "job", None), Collectives(WORLD), lambda ref: None)

    def stage(*_: object) -> None:
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(saves._saver._planner, "stage", stage)
    saves.begin({"model": {"weight": torch.zeros(2)}}, step=3)
    assert [one.message for one in link.failed] == ["the state could not be copied: not enough memory"]
    assert saves.why_failed(3) == "the state could not be copied: not enough memory"
    assert not saves.busy
    saves.close()


def test_a_save_says_for_how_long_its_training_can_wait_for_the_catalogue() -> None:
    link = Recording()
    saves = Saves(link, Storage(open_object_store(), "job", None), Collectives(WORLD), lambda ref: None)
    saves.begin({"model": {"weight": torch.zeros(2)}}, step=3, patience_s=600.0)
    assert [(one.step, one.patience_s) for one in link.begun] == [(3, 600.0)]
    saves.close()
