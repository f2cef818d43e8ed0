"""A worker between generations, with a link that is a plain object."""

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from distroml.runtime.comm.backends.connections import Connections
from distroml.runtime.elastic import GenerationLeft, Membership, NoGeneration, PeerLost, is_communication_error
from distroml.runtime.elastic.collectives import communication
from distroml.runtime.elastic.world import choose_device, parse_restore, world_of_environment
from distroml.runtime.link import NullLink
from distroml.workerlink import CheckpointRef, Drain, Generation, GenerationBroken, Message, Stop


class Line(NullLink):
    """An attached link whose other end is the test."""

    def __init__(self) -> None:
        self.handlers: dict[type, Callable[[Any], None]] = {}
        self.left: list[tuple[int, str]] = []
        self.news = threading.Condition()
        self.newest: Generation | None = None

    @property
    def attached(self) -> bool:
        return True

    def subscribe(self, kind: type, callback: Callable[[Any], None]) -> None:
        self.handlers[kind] = callback

    def leave(self, generation: int, error: str) -> None:
        self.left.append((generation, error))

    def wait_generation(self, after: int, timeout_s: float) -> Generation | None:
        with self.news:
            self.news.wait_for(lambda: self.newest is not None and self.newest.number > after, timeout_s)
            return self.newest if self.newest and self.newest.number > after else None

    def say(self, message: Message) -> None:
        if isinstance(message, Generation):
            with self.news:
                self.newest = message
                self.news.notify_all()
        self.handlers[type(message)](message)


def generation(number: int, **options: Any) -> Generation:
    values = {
        "rank": 0, "local_rank": 0, "node_rank": 0, "world_size": 1, "local_world_size": 1,
        "store_host": "127.0.0.1", "store_port": 1, "members": [],
    }  # fmt: skip
    return Generation(number=number, **{**values, **options})


def member(line: Line, **options: Any) -> Membership:
    return Membership(line, {"DISTROML_GENERATION": "3"}, device="cpu", **options)


def test_the_environment_names_the_first_generation() -> None:
    environ = {
        "RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500",
        "DISTROML_GENERATION": "7", "DISTROML_RESTORE": "40:" + "a" * 64,
    }  # fmt: skip
    world = world_of_environment(environ, "cpu")
    assert (world.rank, world.world_size, world.local_rank, world.generation) == (2, 4, 1, 7)
    assert world.store == ("10.0.0.1", 29500)
    assert world.restore == CheckpointRef(step=40, manifest_hash="a" * 64)
    assert world.prefix == "gen7"
    alone = world_of_environment({}, "cpu")
    assert (alone.rank, alone.world_size, alone.generation, alone.store) == (0, 1, 0, None)


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        ({"RANK": "two", "WORLD_SIZE": "4"}, "RANK must be a whole number, got 'two'"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK is 4 and WORLD_SIZE 4: ranks are 0 to WORLD_SIZE - 1"),
        ({"RANK": "1"}, "RANK is 1 and WORLD_SIZE 1.* set both, or neither"),
        ({"WORLD_SIZE": "0"}, "RANK is 0 and WORLD_SIZE 0"),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "b"}, "MASTER_PORT must be a whole number, got 'b'"),
    ],
)
def test_an_environment_of_no_world_is_refused(environ: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        world_of_environment(environ, "cpu")


def test_restarts_under_torchrun_do_not_share_keys() -> None:
    prefixes = {world_of_environment({"TORCHELASTIC_RESTART_COUNT": str(n)}, "cpu").prefix for n in range(3)}
    assert len(prefixes) == 3


@pytest.mark.parametrize("text", ["40", ":abc", "x:abc", "40:"])
def test_a_restore_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="STEP:MANIFEST_HASH"):
        parse_restore(text)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="leave `device` out"):
        choose_device(0, "cuda")


def test_a_world_without_a_store_is_refused() -> None:
    with pytest.raises(ValueError, match="MASTER_ADDR and MASTER_PORT"):
        Membership(NullLink(), {"WORLD_SIZE": "2"}, device="cpu").enter()


def test_a_survivor_enters_the_generation_that_follows(caplog: pytest.LogCaptureFixture) -> None:
    line = Line()
    membership = member(line)
    assert membership.enter().generation == 3
    line.say(GenerationBroken(number=3, cause="rank 1 died"))
    with pytest.raises(GenerationLeft, match="rank 1 died"):
        membership.check()
    membership.leave("rank 1 died")
    assert line.left == [(3, "rank 1 died")]
    threading.Timer(0.05, lambda: line.say(generation(5))).start()
    with caplog.at_level("INFO"):
        assert membership.enter().generation == 5
    assert "waiting for the generation after 3" in caplog.text
    membership.check()


def test_old_news_changes_nothing_and_a_newer_generation_ends_the_running_one() -> None:
    line = Line()
    membership = member(line)
    membership.enter()
    line.say(GenerationBroken(number=2, cause="long ago"))
    line.say(generation(3))
    membership.check()
    line.say(generation(4))
    with pytest.raises(GenerationLeft, match="generation 4 formed"):
        membership.check()
    membership.leave("x")


def test_a_generation_that_broke_before_it_was_entered_is_passed_over() -> None:
    line = Line()
    membership = member(line)
    line.say(GenerationBroken(number=3, cause="early"))
    threading.Timer(0.05, lambda: line.say(generation(4))).start()
    assert membership.enter().generation == 4
    assert [number for number, _ in line.left] == [3]


def test_a_drain_counts_for_its_generation_only() -> None:
    line = Line()
    membership = member(line)
    membership.enter()
    assert not membership.draining
    line.say(Drain(number=3, reason="resize"))
    assert membership.draining
    membership.leave("")
    line.say(generation(4))
    membership.enter()
    assert not membership.draining


def test_a_survivor_waits_for_a_bounded_time() -> None:
    membership = member(Line(), wait_s=0.1)
    membership.enter()
    membership.leave("peer lost")
    with pytest.raises(NoGeneration, match="no new generation formed within 0 s after generation 3"):
        membership.enter()


def test_a_stop_ends_the_wait() -> None:
    line = Line()
    membership = member(line)
    membership.enter()
    membership.leave("peer lost")
    line.say(Stop(reason="cancel", grace_s=5, checkpoint=False))
    with pytest.raises(GenerationLeft, match="cancel"):
        membership.enter()


@pytest.mark.parametrize(
    ("error", "communication_"),
    [
        (PeerLost("x"), True),
        (dist.DistNetworkError("x"), True),
        (dist.DistBackendError("x"), True),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:1"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("Connection closed by peer"), False),
        (KeyError("x"), False),
    ],
)
def test_errors_are_told_apart(error: Exception, communication_: bool) -> None:
    assert is_communication_error(error) is communication_
    with pytest.raises(PeerLost if communication_ else type(error)), communication():
        raise error


def test_severing_ends_connections_and_leaves_listeners_and_strangers_alone() -> None:
    def pair() -> tuple[socket.socket, socket.socket, socket.socket]:
        listener = socket.create_server(("127.0.0.1", 0))
        near = socket.create_connection(listener.getsockname())
        return listener, near, listener.accept()[0]

    strangers = pair()
    connections = Connections()
    mine = pair()
    connections.complete()
    later = pair()
    connections.sever()
    connections.sever()
    mine[1].settimeout(5)
    assert mine[1].recv(1) == b"", "the waiting side sees the end"
    for listener, near, far in (strangers, later):
        near.sendall(b"x")
        far.settimeout(5)
        assert far.recv(1) == b"x"
        listener.settimeout(0.01)
    mine[0].settimeout(0.01)
    with pytest.raises(TimeoutError):
        mine[0].accept()
    for group in (strangers, mine, later):
        for one in group:
            one.close()


def test_severing_waits_for_nothing_in_a_thread() -> None:
    line = Line()
    membership = member(line)
    membership.enter()
    started = time.monotonic()
    line.say(GenerationBroken(number=3, cause="x"))
    assert time.monotonic() - started < 1
    membership.close(broken=True)
