"""On a GPU a sum whose peer is gone looks like any other: what is asked before one is believed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch

from distroml.objectstore.memory import MemoryObjectStore
from distroml.runtime.checkpoint import Saver, ShardResult
from distroml.runtime.comm.backends import BackEnd, Seat, lost, now_in
from distroml.runtime.elastic import Membership, PeerLost, check_sums
from distroml.runtime.link import NullLink
from distroml.workerlink import SaveOpened

WHY = "NCCL lost another rank (COMM_ERROR)"


class Broken(BackEnd):
    name = torch_name = "nccl"
    reforms = True

    def check(self, seat: Seat) -> None: ...

    def open(self, seat: Seat, store: Any, timeout: timedelta) -> None: ...

    def sever(self) -> None: ...

    def failure(self) -> str:
        return WHY


@pytest.fixture
def broken() -> Iterator[None]:
    now_in(Broken())
    yield
    now_in(None)


def test_a_process_that_is_alone_or_in_no_world_has_lost_nobody(broken: None) -> None:
    assert lost() == WHY
    now_in(None)
    assert lost() == ""
    check_sums()


def test_a_generation_that_lost_a_rank_is_over_for_this_one(broken: None) -> None:
    membership = Membership(NullLink(), {})
    with pytest.raises(PeerLost, match="COMM_ERROR"):
        membership.check()


def test_a_save_copied_after_a_loss_is_reported_as_failed_and_not_as_durable(broken: None) -> None:
    saved: list[ShardResult] = []
    failed: list[tuple[int, str]] = []
    saver = Saver(
        MemoryObjectStore(),
        job="job-1",
        rank=0,
        world_size=1,
        generation=1,
        on_saved=saved.append,
        on_failed=lambda step, text: failed.append((step, text)),
    )
    opened = SaveOpened(step=3, save_id="s3", base_manifest_hash="", object_prefix="job-1/s3")
    assert saver.begin({"weight": torch.ones(3)}, {}, step=3, opened=opened)
    assert saver.wait(20.0)
    saver.close(5.0)
    assert not saved
    assert failed == [(3, f"PeerLost: {WHY}")]
