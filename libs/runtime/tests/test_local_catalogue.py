"""The catalogue of a run that stands alone, where something in its folder is damaged, or the world is large."""

from __future__ import annotations

import pytest
import torch

from distroml.manifest import Keys, ManifestError
from distroml.objectstore.memory import MemoryObjectStore, open_object_store
from distroml.runtime.training import catalogue
from distroml.runtime.training.catalogue import KEPT, LocalCatalogue
from libs.runtime.tests.checkpoint.common import JOB, save


def committed(store: MemoryObjectStore, step: int) -> None:
    save(store, {"model": {"weight": torch.full((4,), float(step))}}, step)
    LocalCatalogue(store, JOB)._commit(f"s{step:010d}", step, 1)


def test_a_damaged_old_checkpoint_does_not_keep_those_behind_it() -> None:
    store = open_object_store()
    for step in range(1, KEPT + 1):
        committed(store, step)
    damaged = LocalCatalogue(store, JOB).committed()[1]
    store.delete(Keys(JOB).manifest(damaged.manifest_hash))
    store.put(Keys(JOB).manifest(damaged.manifest_hash), b"damaged")
    for step in range(KEPT + 1, 2 * KEPT + 1):
        committed(store, step)
    assert [ref.step for ref in LocalCatalogue(store, JOB).committed()] == [6, 5, 4]


def test_a_world_of_more_ranks_than_a_page_of_the_store_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_COMMIT_S", 0.0)
    store = open_object_store()
    for rank in range(1001):
        store.put(Keys(JOB).shard("s1", rank, "0" * 64), b"no shard")
    with pytest.raises(ManifestError):
        LocalCatalogue(store, JOB)._commit("s1", 1, 1001)
