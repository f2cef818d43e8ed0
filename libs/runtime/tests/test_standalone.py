"""Training without any platform: checkpoints in a folder, found again by the next start."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from distroml.objectstore import ObjectStoreDown, ObjectStoreFull
from distroml.objectstore.filesystem import FilesystemObjectStore, open_object_store
from distroml.runtime import DataLoader, FitResult, Trainer
from distroml.runtime.checkpoint import saver
from distroml.runtime.link import NullLink
from distroml.runtime.training import run
from distroml.runtime.training.catalogue import KEPT, LocalCatalogue
from distroml.runtime.training.storage import open_storage
from distroml.workerlink import environment


class Numbers:
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.linspace(0, index, 4)


def loss(model: nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
    return (model(batch) - batch.sum(1, keepdim=True)).square().sum(), len(batch)


def train(folder: Path, steps: int, **options) -> FitResult:
    arguments = {
        "model_factory": lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1)),
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        "lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5),
        "loss": loss, "data": DataLoader(Numbers(), 6), "steps": steps, "checkpoint_every": 4,
        "checkpoint_dir": folder, "seed": 3, "device": "cpu",
    }  # fmt: skip
    return Trainer(**{**arguments, **options}).fit()


def test_a_second_start_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    first = train(tmp_path / "broken", 10)
    assert first.restored_step is None
    second = train(tmp_path / "broken", 17)
    straight = train(tmp_path / "straight", 17)
    assert (second.restored_step, second.step) == (10, 17)
    assert second.fingerprint == straight.fingerprint
    assert second.loss == straight.loss


def test_a_finished_training_is_not_made_again(tmp_path: Path) -> None:
    first = train(tmp_path, 8)
    again = train(tmp_path, 8)
    assert (again.restored_step, again.loss) == (8, None)
    assert again.fingerprint == first.fingerprint


def test_old_checkpoints_and_their_data_are_removed(tmp_path: Path) -> None:
    # The last save of a run is always waited for; those in between are skipped where the disk is slower than the steps.
    for steps in (4, 8, 12, 16, 20):
        train(tmp_path, steps)
    store = open_object_store(tmp_path)
    kept = [ref.step for ref in LocalCatalogue(store, "local").committed()]
    assert kept == [20, 16, 12, 8, 4][:KEPT]
    assert len(store.list("checkpoints/local/manifests/")) == KEPT
    saves = {info.key.split("/")[3] for info in store.list("checkpoints/local/data/")}
    assert len(saves) <= KEPT + 1


def damage(folder: Path, step: int) -> None:
    for path in (folder / "objects/checkpoints/local/data").glob(f"s{step}-*/*"):
        body = bytearray(path.read_bytes())
        body[-1] ^= 1
        path.write_bytes(body)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, 12)
    older = LocalCatalogue(open_object_store(tmp_path), "local").committed()[1].step
    damage(tmp_path, 12)
    with caplog.at_level("ERROR"):
        again = train(tmp_path, 15)
    assert again.restored_step == older
    assert "checkpoint of step 12 is damaged" in caplog.text
    assert again.fingerprint == train(tmp_path / "straight", 15).fingerprint


def test_a_save_that_never_became_whole_is_no_checkpoint(tmp_path: Path) -> None:
    train(tmp_path, 4)
    store = open_object_store(tmp_path)
    store.put("checkpoints/local/shards/s99-x/r00000-" + "0" * 64, b"half")
    assert [ref.step for ref in LocalCatalogue(store, "local").committed()] == [4]


def test_a_model_that_does_not_fit_the_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    from distroml.runtime.checkpoint import CheckpointError

    train(tmp_path, 4)
    with pytest.raises(CheckpointError, match=r"0\.bias"):
        train(tmp_path, 8, model_factory=lambda: nn.Linear(4, 1))


def test_nothing_is_written_where_no_checkpoint_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "unused", 3, checkpoint_every=None, checkpoint_dir=None)
    assert list(tmp_path.iterdir()) == []


def test_a_location_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(ValueError, match=r"DISTROML_OBJECTS: .*file:///FOLDER or s3://BUCKET"):
        open_storage({"DISTROML_OBJECTS": "gs://bucket"}, attached=True, wanted=True, folder=None)


def test_a_failing_save_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put: Callable = FilesystemObjectStore.put

    def full(self: FilesystemObjectStore, key: str, data: object, **options: object) -> object:
        if "/data/s4-" in key:
            raise ObjectStoreFull("no space left on device")
        return put(self, key, data, **options)

    monkeypatch.setattr(FilesystemObjectStore, "put", full)
    with caplog.at_level("WARNING"):
        assert train(tmp_path, 9).step == 9
    assert "the checkpoint of step 4 failed" in caplog.text
    assert "training goes on" in caplog.text
    steps = [ref.step for ref in LocalCatalogue(open_object_store(tmp_path), "local").committed()]
    assert 4 not in steps
    assert 9 in steps


@pytest.fixture
def away_at_the_end(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The store of objects is away at as many puts of the last save as there are left in it."""
    put: Callable = FilesystemObjectStore.put
    away = ["no answer"] * 3

    def lost(self: FilesystemObjectStore, key: str, data: object, **options: object) -> object:
        if "/data/s9-" in key and away:
            raise ObjectStoreDown(away.pop())
        return put(self, key, data, **options)

    monkeypatch.setattr(FilesystemObjectStore, "put", lost)
    monkeypatch.setattr(saver, "_PAUSES_S", (0.001,))
    return away


def test_the_last_save_waits_for_a_store_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away_at_the_end: list[str]
) -> None:
    phases: list[str] = []
    monkeypatch.setattr(NullLink, "progress", lambda _, *, step, phase: phases.append(phase))
    assert train(tmp_path, 9).committed_step == 9
    assert not away_at_the_end
    assert phases[-3:] == ["save", "idle", "idle"], "who waits for the store does not hang"


def test_a_store_that_stays_away_costs_the_last_state_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, away_at_the_end: list[str]
) -> None:
    train(tmp_path, 8)
    monkeypatch.setattr(run, "_FINAL_SAVE_S", 0.0)
    caplog.clear()
    with caplog.at_level("INFO"):
        result = train(tmp_path, 9)
    assert (result.step, result.committed_step) == (9, 8)
    assert "THE STATE AFTER STEP 9 IS NOT SAVED" in caplog.text
    assert "The last one committed is of step 8" in caplog.text
    assert "the last checkpoint is committed" not in caplog.text
    assert train(tmp_path, 9).restored_step == 8


def test_a_script_that_compresses_otherwise_than_its_job_asks_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(environment.COMPRESS, "int8")
    train(tmp_path / "same", 1, compress="int8")
    assert "the script's is used" not in caplog.text
    train(tmp_path / "other", 1, compress="bf16")
    assert "the job asks for compress=int8 and the script for bf16: the script's is used" in caplog.text
