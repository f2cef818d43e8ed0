"""A small agent for real worker processes: link socket, TCPStore, generations, and a catalogue of checkpoints."""

import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from distroml.manifest import Keys, encode, hash_of, merge, read_shard
from distroml.objectstore.filesystem import open_object_store
from distroml.workerlink import (
    AwaitGeneration,
    CheckpointCommitted,
    CheckpointFailed,
    CheckpointRef,
    CorruptionFound,
    Frames,
    Generation,
    GenerationBroken,
    Hello,
    Latest,
    Member,
    Message,
    SaveBegun,
    SaveFailed,
    SaveOpened,
    ShardSaved,
    Welcome,
    WorkerFailed,
    decode_to_agent,
    environment,
)
from distroml.workerlink import (
    encode as encode_frame,
)
from libs.runtime.tests.template import SCRIPTS, Template

JOB = "job-1"


@pytest.fixture(autouse=True)
def no_place() -> Iterator[None]:
    """A world that a test was in here is not in the environment of what later tests start."""
    before = dict(os.environ)
    yield
    for name in (environment.RANK, environment.WORLD_SIZE, environment.LOCAL_RANK, environment.GENERATION,
                 environment.MASTER_ADDR, environment.MASTER_PORT):  # fmt: skip
        os.environ.pop(name, None)
        if name in before:
            os.environ[name] = before[name]


@pytest.fixture(scope="session")
def template() -> Iterator[Template]:
    warm = Template()
    yield warm
    warm.close()


@dataclass
class Worker:
    rank: int
    incarnation: int
    pid: int
    connection: socket.socket | None = None
    awaits: int = -1
    failed: WorkerFailed | None = None


@dataclass
class Agent:
    """Plays agent, rendezvous and checkpoint service for one job."""

    template: Template
    folder: Path
    options: dict
    world_size: int
    script: Path = SCRIPTS / "tiny_train.py"
    failures_left: int = 3
    workers: dict[str, Worker] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    committed: list[CheckpointRef] = field(default_factory=list)
    shards: dict[int, dict[int, bytes]] = field(default_factory=dict)
    on_message: Callable[["Agent", str, Message], None] | None = None
    generation: int = 0
    exits: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import torch.distributed as dist

        self.folder.mkdir(parents=True, exist_ok=True)
        self.sockets = Path(tempfile.mkdtemp(prefix="dml"))
        self.path = self.sockets / "link.sock"
        self.objects = open_object_store(self.folder / "store")
        self.keys = Keys(JOB)
        self.store = dist.TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
        self.lock = threading.RLock()
        self.open = True
        self.serve()

    # ---- the link

    def serve(self) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._hear, args=(connection,), daemon=True).start()

    def _hear(self, connection: socket.socket) -> None:
        frames, name = Frames(), ""
        with connection:
            while True:
                try:
                    data = connection.recv(1 << 16)
                except OSError:
                    return
                if not data:
                    return
                for body in frames.feed(data):
                    message = decode_to_agent(body)
                    with self.lock:
                        self.messages.append(message)
                        if isinstance(message, Hello):
                            name = message.worker
                            self.workers[name].connection = connection
                            self.tell(name, Welcome(job=JOB, attempt=1, node="node-1"))
                        else:
                            self.handle(name, message)
                        if self.on_message is not None:
                            self.on_message(self, name, message)

    def vanish(self) -> None:
        """The agent dies: its socket and every connection end."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.path.unlink()
        for worker in self.workers.values():
            if worker.connection is not None:
                worker.connection.shutdown(socket.SHUT_RDWR)
                worker.connection = None

    def come_back(self) -> None:
        """A new agent at the same place."""
        self.serve()

    def tell(self, name: str, message: Message) -> None:
        connection = self.workers[name].connection
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.sendall(encode_frame(message))

    def tell_all(self, message: Message) -> None:
        for name in list(self.workers):
            self.tell(name, message)

    def handle(self, name: str, message: Message) -> None:
        match message:
            case AwaitGeneration(after=after):
                self.workers[name].awaits = max(after, self.workers[name].awaits)
            case WorkerFailed():
                self.workers[name].failed = message
            case SaveBegun(step=step, generation=generation):
                base = self.committed[-1].manifest_hash if self.committed else ""
                save_id = f"g{generation}s{step}"
                self.tell(
                    name,
                    SaveOpened(
                        step=step, save_id=save_id, base_manifest_hash=base, object_prefix=self.keys.data_of(save_id)
                    ),
                )
            case ShardSaved():
                self.shard(name, message)
            case SaveFailed(step=step, message=text):
                self.tell_all(CheckpointFailed(step=step, message=text))
            case CorruptionFound(manifest_hash=bad):
                for ref in [ref for ref in self.committed if ref.manifest_hash == bad]:
                    self.committed.remove(ref)
                    (self.folder / f"committed-{ref.step}").unlink()
                self.tell(name, Latest(restore=self.committed[-1] if self.committed else None))
            case _:
                pass

    def shard(self, name: str, message: ShardSaved) -> None:
        if message.generation != self.generation:
            return  # fenced
        for ref in self.committed:
            if ref.step == message.step:  # said again: answered again
                self.tell(name, CheckpointCommitted(step=ref.step, manifest_hash=ref.manifest_hash))
                return
        parts = self.shards.setdefault(message.step, {})
        parts[message.rank] = read_shard(self.objects.get(message.shard_key), message.shard_hash)
        if len(parts) == message.world_size:
            body = encode(merge(list(parts.values())))
            ref = CheckpointRef(step=message.step, manifest_hash=hash_of(body))
            self.objects.put(self.keys.manifest(ref.manifest_hash), body)
            self.committed.append(ref)
            (self.folder / f"committed-{ref.step}").touch()
            self.tell_all(CheckpointCommitted(step=ref.step, manifest_hash=ref.manifest_hash))

    # ---- generations

    def latest(self) -> CheckpointRef | None:
        return self.committed[-1] if self.committed else None

    def start(self) -> None:
        with self.lock:
            self.generation += 1
            for rank in range(self.world_size):
                self.spawn(f"{JOB}.1.node-1.{rank}", rank, 1)

    def spawn(self, name: str, rank: int, incarnation: int) -> None:
        restore = self.latest()
        env = {
            environment.RANK: str(rank),
            environment.LOCAL_RANK: str(rank),
            environment.WORLD_SIZE: str(self.world_size),
            environment.LOCAL_WORLD_SIZE: str(self.world_size),
            environment.MASTER_ADDR: "127.0.0.1",
            environment.MASTER_PORT: str(self.store.port),
            environment.TORCHELASTIC_USE_AGENT_STORE: "True",
            environment.LINK_SOCKET: str(self.path),
            environment.WORKER: name,
            environment.INCARNATION: str(incarnation),
            environment.JOB: JOB,
            environment.GENERATION: str(self.generation),
            environment.OBJECTS: f"file://{self.folder / 'store'}",
            environment.RESTORE: f"{restore.step}:{restore.manifest_hash}" if restore else "",
        }
        options = json.dumps({**self.options, "out": str(self.folder)})
        pid = self.template.fork([str(self.script), options], env, self.folder / f"rank-{rank}.log")
        self.workers[name] = Worker(rank, incarnation, pid)

    def ended(self) -> dict[str, int]:
        """Exit codes of the workers whose processes are gone."""
        with self.template.news:
            return {n: self.template.ended[w.pid] for n, w in self.workers.items() if w.pid in self.template.ended}

    def next_generation(self, dead: set[str], cause: str, world_size: int | None = None) -> None:
        """Break the generation, wait for the survivors, form the next one with replacements."""
        before = self.generation
        with self.lock:
            for name in set(self.workers) - dead:
                self.tell(name, GenerationBroken(number=before, cause=cause))
            self.shards.clear()
        survivors = {n for n in self.workers if n not in dead}
        self.until(lambda: all(self.workers[n].awaits >= before for n in survivors), f"{survivors} to await")
        self.form(survivors, world_size or self.world_size)

    def form(self, survivors: set[str], world_size: int) -> None:
        with self.lock:
            self.generation += 1
            self.world_size = world_size
            free = [rank for rank in range(world_size)]
            ranks: dict[str, int] = {}
            for name in sorted(survivors):
                wanted = self.workers[name].rank
                ranks[name] = wanted if wanted in free else free[-1]
                free.remove(ranks[name])
            members = [Member(worker=n, node="node-1", rank=r, local_rank=r) for n, r in ranks.items()]
            for name, rank in ranks.items():
                self.workers[name].rank = rank
                self.tell(
                    name,
                    Generation(
                        number=self.generation, rank=rank, local_rank=rank, node_rank=0, world_size=world_size,
                        local_world_size=world_size, store_host="127.0.0.1", store_port=self.store.port,
                        members=members, restore=self.latest(),
                    ),
                )  # fmt: skip
            for rank in free:
                name = f"{JOB}.1.node-1.{rank}"
                old = self.workers.get(name)
                self.spawn(name, rank, (old.incarnation if old else 0) + 1)

    def run(self, timeout_s: float = 60.0) -> dict:
        """Start, replace whoever dies by a signal, and return rank 0's result."""
        self.start()
        return self.finish(timeout_s)

    def finish(self, timeout_s: float = 60.0) -> dict:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            ended = self.ended()
            dead = {name for name, code in ended.items() if code != 0}
            if dead and self.failures_left:
                self.failures_left -= 1
                self.exits.setdefault(str(self.generation), []).extend(ended[name] for name in dead)
                self.next_generation(dead, f"{dead} died")
            elif dead:
                pytest.fail(f"workers ended with {ended}\n{self.logs()}")
            elif len(ended) == len(self.workers):
                return json.loads((self.folder / "result.json").read_text())
            with self.template.news:
                self.template.news.wait(0.02)
        pytest.fail(f"not finished in {timeout_s} s: {self.ended()}\n{self.logs()}")

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"waited {timeout_s} s for {what}\n{self.logs()}")
            time.sleep(0.005)

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def steps(self) -> list[dict]:
        """Every step every process made, in the order of generations."""
        lines = [
            json.loads(text) for path in self.folder.glob("steps-*.jsonl") for text in path.read_text().splitlines()
        ]
        return sorted(lines, key=lambda line: (line["generation"], line["step"], line["rank"]))

    def of_kind(self, kind: type) -> list:
        with self.lock:
            return [message for message in self.messages if isinstance(message, kind)]

    def close(self) -> None:
        for name, worker in self.workers.items():
            if name not in self.ended():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
        for worker in self.workers.values():
            with self.template.news:
                self.template.news.wait_for(lambda pid=worker.pid: pid in self.template.ended, 10)
        self.listener.close()
        for worker in self.workers.values():
            if worker.connection is not None:
                worker.connection.close()
        self.objects.close()
        shutil.rmtree(self.sockets)


@pytest.fixture
def agent(template: Template, tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    made: list[Agent] = []

    def make(world_size: int, name: str = "run", **options: object) -> Agent:
        made.append(Agent(template, tmp_path / name, options, world_size))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="session")
def ends() -> dict[str, dict]:
    """Results of trainings that nothing disturbed, by what was trained."""
    return {}


@pytest.fixture
def straight(agent: Callable[..., Agent], ends: dict[str, dict]) -> Callable[..., dict]:
    """The result of a training that nothing disturbs: the same for every test that asks for the same one."""

    def result(world_size: int, **options: object) -> dict:
        asked = json.dumps([world_size, options], sort_keys=True)
        if asked not in ends:
            ends[asked] = agent(world_size, "straight", **options).run()
        return ends[asked]

    return result
