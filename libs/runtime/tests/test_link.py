"""The worker's end of the link: queues, reconnection, and a peer that talks nonsense."""

import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distroml.runtime.link import AgentLink, Identity, NullLink, open_link
from distroml.runtime.link.outbox import MAX_BATCH, MAX_DURABLE, MAX_SAMPLES, Outbox
from distroml.workerlink import (
    AskLatest,
    AwaitGeneration,
    CheckpointCommitted,
    CheckpointRef,
    Frames,
    Generation,
    GenerationBroken,
    Heartbeat,
    Hello,
    Latest,
    Message,
    Samples,
    SaveBegun,
    SaveOpened,
    ShardSaved,
    StepSample,
    Stopping,
    decode_to_agent,
    encode,
)


def sample(step: int) -> StepSample:
    return StepSample(generation=1, step=step, total_steps=9, at_ms=0, step_s=0.1)


def shard(step: int) -> ShardSaved:
    return ShardSaved(
        generation=1, step=step, rank=0, world_size=1, shard_key="k", shard_hash="h", bytes_written=1, bytes_reused=0,
        seconds=0.1,
    )  # fmt: skip


def begun(step: int) -> SaveBegun:
    return SaveBegun(generation=1, step=step, world_size=1)


def drain(outbox: Outbox) -> list[Message]:
    taken: list[Message] = []
    while (message := outbox.take(samples=True)) is not None:
        outbox.sent()
        taken.append(message)
    return taken


def test_durable_messages_go_first_and_in_order() -> None:
    outbox = Outbox()
    outbox.sample(sample(1))
    outbox.put(begun(1))
    outbox.put(Stopping(step=2))
    first, second, third = drain(outbox)
    assert (first, second) == (begun(1), Stopping(step=2))
    assert isinstance(third, Samples)
    assert outbox.empty


def test_a_full_ring_drops_the_oldest_samples_and_counts_them() -> None:
    outbox = Outbox()
    for step in range(MAX_SAMPLES + 5):
        outbox.sample(sample(step))
    batches = drain(outbox)
    steps = [s.step for batch in batches for s in batch.steps]
    assert steps == list(range(5, MAX_SAMPLES + 5))
    assert all(len(batch.steps) <= MAX_BATCH for batch in batches)
    assert batches[-1].dropped == 5


def test_a_full_queue_loses_the_oldest_message_and_counts_it() -> None:
    outbox = Outbox()
    for step in range(MAX_DURABLE + 2):
        outbox.put(Stopping(step=step))
    assert outbox.lost == 2
    assert drain(outbox)[0] == Stopping(step=2)


def test_what_was_cut_off_or_not_answered_is_said_again_once() -> None:
    outbox = Outbox()
    outbox.put(begun(1))
    outbox.put(shard(1))
    outbox.put(Stopping(step=1))
    assert outbox.take(samples=False) == begun(1)
    outbox.sent()
    assert outbox.take(samples=False) == shard(1)
    outbox.reconnected()  # the shard was cut off half-way, the question before it never answered
    assert drain(outbox) == [begun(1), shard(1), Stopping(step=1)]
    outbox.answered(SaveOpened(step=1, save_id="s", base_manifest_hash="", object_prefix="p"))
    outbox.reconnected()
    assert drain(outbox) == [shard(1)]
    outbox.answered(CheckpointCommitted(step=1, manifest_hash="h"))
    outbox.reconnected()
    assert drain(outbox) == []


def test_samples_that_were_cut_off_count_as_dropped() -> None:
    outbox = Outbox()
    for step in range(3):
        outbox.sample(sample(step))
    outbox.take(samples=True)
    outbox.reconnected()
    assert outbox.dropped == 3


def test_saves_of_a_generation_that_ended_are_forgotten() -> None:
    outbox = Outbox()
    outbox.put(begun(1))
    outbox.put(AskLatest(generation=1))
    drain(outbox)
    outbox.put(shard(1))
    outbox.forget_saves()
    outbox.reconnected()
    assert drain(outbox) == [AskLatest(generation=1)]


class Ear:
    """An agent that listens: every message of every connection, and the connections to answer on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[list[Message]] = []
        self.connections: list[socket.socket] = []
        self.open()

    def open(self) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.thread = threading.Thread(target=self.run, args=(self.listener,), daemon=True)
        self.thread.start()

    def run(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            heard: list[Message] = []
            self.connections.append(connection)
            self.heard.append(heard)
            frames = Frames()
            try:
                while data := connection.recv(1 << 16):
                    heard.extend(decode_to_agent(body) for body in frames.feed(data))
            except OSError:
                continue

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self.path.unlink()
        self.thread.join(5)

    def all(self, kind: type) -> list:
        return [message for heard in self.heard for message in heard if isinstance(message, kind)]


@pytest.fixture
def ear() -> Iterator[Ear]:
    with tempfile.TemporaryDirectory(prefix="dml") as folder:
        listening = Ear(Path(folder) / "link.sock")
        yield listening
        if listening.path.exists():
            listening.close()


@pytest.fixture
def link(ear: Ear) -> Iterator[AgentLink]:
    made = AgentLink(str(ear.path), Identity(worker="job-1.1.node-1.0", incarnation=2, generation=4))
    made.start()
    yield made
    made.close(2.0)


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.005)


def test_hello_first_then_heartbeats_with_the_last_step_and_phase(ear: Ear, link: AgentLink) -> None:
    link.progress(step=7, phase="train")
    until(lambda: any(beat.step == 7 for beat in ear.all(Heartbeat)), "a heartbeat")
    hello = ear.heard[0][0]
    assert isinstance(hello, Hello)
    assert (hello.worker, hello.incarnation, hello.generation) == ("job-1.1.node-1.0", 2, 4)
    assert hello.managed
    assert hello.pid == os.getpid()


def test_a_restarted_agent_hears_where_the_worker_stands(ear: Ear, link: AgentLink) -> None:
    link.entered(5)
    link.leave(5, "peer lost")
    until(lambda: ear.all(AwaitGeneration), "the first agent to hear")
    ear.close()
    link.send(Stopping(step=3))
    ear.open()
    until(lambda: ear.all(Stopping), "the second agent to hear")
    hello, *rest = [message for message in ear.heard[-1] if not isinstance(message, Heartbeat)]
    assert isinstance(hello, Hello)
    assert hello.generation == 5
    assert rest == [AwaitGeneration(after=5, error="peer lost"), Stopping(step=3)]


def generation(number: int) -> Generation:
    return Generation(
        number=number, rank=0, local_rank=0, node_rank=0, world_size=1, local_world_size=1, store_host="h",
        store_port=1, members=[],
    )  # fmt: skip


def test_messages_reach_their_subscribers_and_waiters(ear: Ear, link: AgentLink) -> None:
    broken: list[GenerationBroken] = []
    link.subscribe(GenerationBroken, broken.append)
    until(lambda: ear.connections, "a connection")
    assert link.wait_generation(4, 0.01) is None
    ear.connections[0].sendall(encode(GenerationBroken(number=4, cause="x")) + encode(generation(5)))
    assert link.wait_generation(4, 10) == generation(5)
    assert link.wait_generation(5, 0.01) is None
    assert broken == [GenerationBroken(number=4, cause="x")]
    answer = Latest(restore=CheckpointRef(step=3, manifest_hash="h"))
    asked: list[Latest | None] = []
    asking = threading.Thread(target=lambda: asked.append(link.ask(AskLatest(generation=4), 10)))
    asking.start()
    until(lambda: ear.all(AskLatest), "the question")
    ear.connections[0].sendall(encode(answer))
    asking.join(10)
    assert asked == [answer]


def test_a_handler_that_fails_does_not_end_the_link(ear: Ear, link: AgentLink) -> None:
    link.subscribe(GenerationBroken, lambda message: 1 / 0)
    until(lambda: ear.connections, "a connection")
    ear.connections[0].sendall(encode(GenerationBroken(number=4, cause="x")))
    ear.connections[0].sendall(encode(generation(5)))
    assert link.wait_generation(4, 10) == generation(5)


def test_garbage_ends_the_connection_and_another_is_made(ear: Ear, link: AgentLink) -> None:
    until(lambda: ear.connections, "a connection")
    ear.connections[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
    ear.connections[0].shutdown(socket.SHUT_RDWR)
    until(lambda: len(ear.heard) > 1 and ear.heard[1], "a second connection")
    assert isinstance(ear.heard[1][0], Hello)


def test_an_agent_that_does_not_read_holds_nobody(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="dml") as folder:
        path = Path(folder) / "link.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            link = AgentLink(str(path), Identity("w", 1, 1))
            link.start()
            started = time.monotonic()
            for step in range(50_000):
                link.sample(sample(step))
                link.progress(step=step, phase="train")
            assert time.monotonic() - started < 5
            assert link.dropped > 40_000
            link.close(0.2)
            assert time.monotonic() - started < 10


def test_the_last_words_are_sent_before_the_end(ear: Ear) -> None:
    link = AgentLink(str(ear.path), Identity("w", 1, 1))
    link.start()
    link.sample(sample(1))
    link.send(Stopping(step=9))
    link.close(5)
    until(lambda: ear.all(Stopping) and ear.all(Samples), "the last words")


def test_without_an_agent_every_call_is_harmless() -> None:
    link = open_link({})
    assert isinstance(link, NullLink)
    link.entered(1)
    link.progress(step=1, phase="train")
    link.sample(sample(1))
    link.send(Stopping(step=1))
    link.leave(1, "")
    assert link.wait_generation(0, 10) is None
    assert link.ask(AskLatest(generation=1), 10) is None
    assert link.flush(10)
    link.close(10)


def test_importing_the_package_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, distroml.runtime as r; assert 'Trainer' in dir(r); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
