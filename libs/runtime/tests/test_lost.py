"""On a GPU a sum whose peer is gone looks like any other: what is asked before one is believed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from distroml.objectstore.memory import MemoryObjectStore
from distroml.planner import Plan
from distroml.runtime import DataLoader, StepInfo, Trainer
from distroml.runtime.checkpoint import Saver, ShardResult
from distroml.runtime.comm.backends import BackEnd, Seat, lost, now_in
from distroml.runtime.comm.backends.torch_own import Nccl
from distroml.runtime.compress.codecs import INT8
from distroml.runtime.elastic import Collectives, Membership, PeerLost, World, check_sums, world
from distroml.runtime.elastic.world import ProcessGroup
from distroml.runtime.link import NullLink
from distroml.runtime.parallel.sampling import Sample
from distroml.runtime.parallel.shardsums import ShardSums
from distroml.runtime.training.fingerprint import fingerprint
from distroml.runtime.training.places import place_of
from distroml.runtime.training.reports import Reporter
from distroml.workerlink import SaveOpened, StepRecorded

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


@contextmanager
def group_of(ranks: int, backend: str) -> Iterator[dist.ProcessGroup]:
    dist.init_process_group(backend, store=FakeStore(), rank=0, world_size=ranks)
    assert dist.group.WORLD is not None
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def two() -> World:
    return World(
        generation=1, rank=0, world_size=2, local_rank=0, device=torch.device("cpu"), store=None, prefix="gen1"
    )


def gathered(group: dist.ProcessGroup) -> object:
    return Collectives(two()).gather("a word")


def summed_over_shards(group: dist.ProcessGroup) -> object:
    return ShardSums(INT8, 0, None).sum(0, torch.ones(128), group, [("weight", 64)])


def compared(group: dist.ProcessGroup) -> object:
    return Sample(0, 1, torch.ones(4, dtype=torch.float64), 32).cosine(torch.ones(4))


# Torch's own fake back end leaves what was there, as a kernel does whose communicator is aborted.
@pytest.mark.parametrize("read", [gathered, summed_over_shards, compared])
def test_nothing_that_others_should_have_given_is_read(
    read: Callable[[dist.ProcessGroup], object], broken: None
) -> None:
    with group_of(2, "fake") as group, pytest.raises(PeerLost, match="COMM_ERROR"):
        read(group)


class Points:
    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.linspace(0, index, 4)


def square(model: nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
    return model(batch).square().sum(), len(batch)


def trainer_of(**options: Any) -> Trainer[torch.Tensor]:
    arguments: dict[str, Any] = {
        "model_factory": lambda: nn.Linear(4, 1),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
        "loss": square, "data": DataLoader(Points(), 4), "steps": 4, "device": "cpu",
    }  # fmt: skip
    return Trainer(**{**arguments, **options})


@pytest.mark.parametrize(("world_breaks", "raised"), [(True, PeerLost), (False, AssertionError)])
def test_what_fails_in_a_broken_world_says_nothing_of_the_program(world_breaks: bool, raised: type[Exception]) -> None:
    def picky(model: nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
        now_in(Broken() if world_breaks else None)
        raise AssertionError("weights are no numbers")

    with pytest.raises(raised):
        trainer_of(loss=picky).fit()


def test_parameters_of_a_broken_world_are_not_handed_out() -> None:
    trainer = trainer_of()
    trainer.fit()
    now_in(Broken())
    try:
        with pytest.raises(PeerLost):
            trainer.full_parameters()
    finally:
        now_in(None)


class Recording(NullLink):
    """A link that keeps what is recorded of steps."""

    def __init__(self) -> None:
        self.records: list[StepRecorded] = []

    def send(self, message: Any) -> None:
        if isinstance(message, StepRecorded):
            self.records.append(message)


@pytest.mark.parametrize("moved_on", [False, True])
def test_a_failure_is_recorded_with_the_parameters_of_its_step_or_none(
    moved_on: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    link = Recording()
    monkeypatch.setattr("distroml.runtime.trainer.process_link", lambda: link)
    trainer = trainer_of(checkpoint_every=2, checkpoint_dir=tmp_path)
    trainer.fit()
    run: Any = trainer._run
    if moved_on:
        # As on a GPU: the next step has moved parameters when the failure is heard of.
        run._stepper.run(5, run.trainee.position)
    run.abandon(failed=True)
    saved, failure = link.records[-2:]
    assert (saved.why, failure.why, failure.step) == ("end", "failure", 4)
    assert failure.fingerprint == ("" if moved_on else saved.fingerprint)
    assert saved.fingerprint


def test_a_model_that_is_made_anew_is_the_one_that_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every checkpoint is damaged, and the plan divides the model that was being loaded."""
    link = Recording()
    monkeypatch.setattr("distroml.runtime.trainer.process_link", lambda: link)
    run: Any = trainer_of()._enter()
    overwritten = run.parallel
    for _, parameter in overwritten.local_tensors():
        parameter.fill_(7.0)
    run.trainee.divides = True
    run._begin(damaged=1)
    assert run.parallel is not overwritten
    last = StepInfo(step=3, epoch=0, sample_from=0, sample_to=8, loss=2.0, grad_norm=1.0, count=8,
                    learning_rate=0.1, step_s=1.0, data_wait_s=0.0, comm_wait_s=0.0)  # fmt: skip
    run.reporter.record(last, "checkpoint")
    assert link.records[-1].fingerprint == fingerprint(2.0, run.parallel.local_tensors())
    assert link.records[-1].fingerprint != fingerprint(2.0, overwritten.local_tensors())
    run.abandon(failed=False)


@pytest.mark.parametrize(
    "plan",
    [Plan(dp_replicate=4), Plan(dp_replicate=2, dp_shard=2), Plan(dp_replicate=2, tp=2), Plan(dp_shard=4)],
    ids=str,
)
def test_a_failure_is_recorded_by_who_has_the_parameters_of_rank_0(plan: Plan) -> None:
    """Others' parts of the parameters have other fingerprints than what was recorded before."""
    last = StepInfo(step=3, epoch=0, sample_from=0, sample_to=8, loss=2.0, grad_norm=1.0, count=8,
                    learning_rate=0.1, step_s=1.0, data_wait_s=0.0, comm_wait_s=0.0)  # fmt: skip
    spoke: list[int] = []
    for rank in range(plan.world_size):
        link = Recording()
        parallel: Any = SimpleNamespace(plan=plan, meetings=None, exchange=object(), local_tensors=list)
        reporter = Reporter(
            link, replace(two(), rank=rank, world_size=plan.world_size), parallel, total_steps=9, log_every_s=1.0
        )
        reporter.record(last, "failure")
        spoke += [rank] * len(link.records)
    same = [rank for rank in range(plan.world_size) if place_of(plan, rank) == place_of(plan, 0)]
    assert spoke == same[:2]


class Part:
    """NCCL's part of a group."""

    def __init__(self, name: str, aborted: list[str]) -> None:
        self._name, self._aborted = name, aborted

    def _group_start(self) -> None:
        self._aborted.append("(")

    def _group_end(self) -> None:
        self._aborted.append(")")

    def abort(self) -> None:
        self._aborted.append(self._name)


class Wrapped:
    def __init__(self, part: Part) -> None:
        self.wrapped_pg = part


class Group:
    """A group as torch has it: what it gives of its part need not be the same object each time."""

    def __init__(self, name: str, aborted: list[str], *, wrapped: bool = False) -> None:
        self._name, self._aborted, self._wrapped = name, aborted, wrapped

    def _get_backend(self, device: torch.device) -> Any:
        part = Part(self._name, self._aborted)
        return Wrapped(part) if self._wrapped else part


def test_each_group_is_aborted_once_whatever_torch_makes_of_it() -> None:
    aborted: list[str] = []
    backend, names = Nccl(), dist.distributed_c10d._world.pg_names
    # The default group is one of Gloo's: there is nothing to abort.
    with group_of(1, "gloo"):
        first, second = Group("first", aborted), Group("second", aborted, wrapped=True)
        try:
            names[first] = "first"
            backend.sever()
            backend.sever()
            assert aborted == ["(", "first", ")"]
            names[second] = "second"
            kept = [first._get_backend(torch.device("cuda")) for _ in range(64)]
            backend.sever()
            backend.sever()
            assert aborted[3:] == ["(", "second", ")"]
            assert kept
        finally:
            names.pop(first), names.pop(second, None)


def test_a_world_that_is_left_cuts_no_group_of_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[str] = []

    class Counting(Broken):
        def sever(self) -> None:
            cut.append("")

    monkeypatch.setattr(world, "make_backend", lambda name: Counting())
    group = ProcessGroup(two(), agent_store=False, setup_timeout_s=1.0, collective_timeout_s=1.0)
    group.sever()
    group.close(broken=True)
    assert len(cut) == 2
    group.sever()
    assert len(cut) == 2
