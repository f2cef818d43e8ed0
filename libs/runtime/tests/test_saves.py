"""What is said of a save as it is begun, and of one that fails before that."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from distroml.objectstore import ObjectStoreDown
from distroml.objectstore.memory import MemoryObjectStore, open_object_store
from distroml.runtime.checkpoint import saver
from distroml.runtime.elastic import Collectives, World
from distroml.runtime.link import NullLink
from distroml.runtime.training.saves import Saves
from distroml.runtime.training.storage import Storage
from distroml.workerlink import SaveBegun, SaveFailed, SaveOpened, ShardSaved

WORLD = World(generation=1, rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), store=None, prefix="")


class Recording(NullLink):
    def __init__(self) -> None:
        self.failed: list[SaveFailed] = []
        self.begun: list[SaveBegun] = []
        self.saved = threading.Event()
        self.callbacks: dict[type, Callable[[Any], None]] = {}

    def subscribe(self, kind: type, callback: Callable[[Any], None]) -> None:
        self.callbacks[kind] = callback

    def send(self, message: Any) -> None:
        if isinstance(message, ShardSaved):
            self.saved.set()
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
    assert saves.give_up(3) == "the state could not be copied: not enough memory"
    assert not saves.busy
    saves.close()


def test_a_save_says_for_how_long_its_training_can_wait_for_the_catalogue() -> None:
    link = Recording()
    saves = Saves(link, Storage(open_object_store(), "job", None), Collectives(WORLD), lambda ref: None)
    saves.begin({"model": {"weight": torch.zeros(2)}}, step=3, patience_s=600.0)
    assert [(one.step, one.patience_s) for one in link.begun] == [(3, 600.0)]
    saves.close()


def opened(link: Recording, step: int) -> None:
    """The catalogue's answer."""
    link.callbacks[SaveOpened](SaveOpened(step=step, save_id=f"s{step:010d}", base_manifest_hash="", object_prefix=""))


def test_a_save_that_is_given_up_unwritten_is_over_for_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away(MemoryObjectStore):
        def put(self, *_: object, **__: object) -> Any:
            tried.set()
            raise ObjectStoreDown("no answer")

    tried, link = threading.Event(), Recording()
    monkeypatch.setattr(saver, "_PAUSES_S", (60.0,))
    saves = Saves(link, Storage(Away(), "job", None), Collectives(WORLD), lambda ref: None)
    saves.begin({"model": {"weight": torch.zeros(2)}}, step=3, patience_s=600.0)
    opened(link, 3)
    assert tried.wait(20)
    assert saves.give_up(3) == "its part was not written in time"
    assert [(one.step, one.message) for one in link.failed] == [(3, "its part was not written in time")]
    assert saves._saver.wait(20)
    assert not saves.wait(3, 1.0, lambda: None)
    saves.close()


def test_a_durable_part_is_not_taken_back_because_the_catalogue_is_slow() -> None:
    link = Recording()
    saves = Saves(link, Storage(open_object_store(), "job", None), Collectives(WORLD), lambda ref: None)
    saves.begin({"model": {"weight": torch.zeros(2)}}, step=3, patience_s=600.0)
    opened(link, 3)
    assert link.saved.wait(20)
    assert saves.give_up(3) == "the catalogue did not answer in time, and may still commit it"
    assert link.failed == []
    saves.close()
