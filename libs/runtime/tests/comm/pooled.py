"""What ranks of the pool do in place of processes of their own, which would each import torch."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from distroml.runtime.comm.backends import watched
from distroml.runtime.elastic import Collectives, PeerLost, Pending, World
from distroml.runtime.elastic.world import ProcessGroup
from libs.runtime.tests.comm import rank, training


@contextmanager
def _started_alone(world: World) -> Iterator[None]:
    """The environment of a rank that a launcher started, which has no group yet."""
    dist.destroy_process_group()
    told = {"RANK": world.rank, "LOCAL_RANK": world.rank, "WORLD_SIZE": world.world_size, "MASTER_ADDR": "127.0.0.1"}
    with mock.patch.dict(os.environ, {name: str(value) for name, value in told.items()}):
        yield


def conform(world: World, port: int) -> dict[str, str]:
    """What was wrong in each case over Gloo."""
    with _started_alone(world), warnings.catch_warnings():
        warnings.simplefilter("error")
        os.environ["MASTER_PORT"] = str(port)
        own, group = rank.opened("gloo", 60.0)
        told = rank.conforming(own, rank.cases_for("gloo", own.world_size))
        group.close(broken=False)
        return told


def train(world: World, ports: list[int]) -> training.Told:
    """What a rank of trainings over Gloo says."""
    with _started_alone(world):
        return training.told("gloo", ports)


def cut_within_a_message(world: World, port: int) -> str:
    """Rank 0 cuts its connections while half of a large message is here; what the waits of both ranks end in.

    The other one cuts its own once a wait that Gloo does not forget tells it, as a training does that its agent told.
    """
    with _started_alone(world):
        os.environ["MASTER_PORT"] = str(port)
        own, group = rank.opened("gloo", 600.0)
    sender = Collectives(own).gather(os.getpid())[1]
    large, word = torch.full([1 << 24], float(own.rank)), torch.zeros(1)
    if not own.is_main:
        threading.Thread(target=_cut_when_told, args=(dist.irecv(word, 0), group), daemon=True).start()
    try:
        while True:
            if own.is_main:
                large.zero_()
            pending = Pending(watched(dist.broadcast(large, 1, async_op=True)))
            if own.is_main and _stopped_half_way(sender, large):
                group.sever()
                os.kill(sender, signal.SIGCONT)
            pending.wait()
    except PeerLost as error:
        group.close(broken=True)
        return str(error)


def _cut_when_told(word: dist.Work, group: ProcessGroup) -> None:
    try:
        word.wait()
    except RuntimeError:
        group.sever()


def _stopped_half_way(sender: int, large: torch.Tensor) -> bool:
    """Stop the process that sends `large` to here as soon as it begins; whether less than half of it came."""
    while not large[0]:
        pass
    os.kill(sender, signal.SIGSTOP)
    while Path(f"/proc/{sender}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        pass
    if large[len(large) // 2]:
        os.kill(sender, signal.SIGCONT)
        return False
    return True
