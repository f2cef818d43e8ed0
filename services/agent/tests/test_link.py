from __future__ import annotations

import asyncio
import os
import socket
import struct
from pathlib import Path

import pytest

from distroml.agent.link import LinkServer, socket_path
from distroml.workerlink import PROTOCOL, Frames, Heartbeat, Hello, Stop, ToAgent, decode_to_worker, encode
from services.agent.tests.plane import until


class Peer:
    def __init__(self) -> None:
        self.hellos: list[Hello] = []
        self.messages: list[ToAgent] = []
        self.lost = 0

    def on_hello(self, hello: Hello) -> None:
        self.hellos.append(hello)

    def on_message(self, message: ToAgent) -> None:
        self.messages.append(message)

    def on_link_lost(self) -> None:
        self.lost += 1


def hello(**changes: object) -> bytes:
    facts = {"protocol": PROTOCOL, "worker": "w", "incarnation": 1, "pid": os.getpid(), "generation": 1}
    return encode(Hello(**{**facts, "managed": True, **changes}))  # pyright: ignore[reportArgumentType]


@pytest.fixture
async def server(tmp_path: Path):
    server = LinkServer(tmp_path / "link.sock")
    await server.start()
    yield server
    await server.close()


async def talk(server: LinkServer, data: bytes) -> bytes:
    """Send, then read until the server closes the connection."""
    reader, writer = await asyncio.open_unix_connection(server.path)
    writer.write(data)
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_a_known_worker_is_heard_and_told(server: LinkServer) -> None:
    peer = Peer()
    server.expect("w", 1, peer)
    assert not server.tell("w", Stop(reason="x", grace_s=1, checkpoint=False))
    reader, writer = await asyncio.open_unix_connection(server.path)
    # Its Hello may come before the agent knows its process id.
    writer.write(hello() + encode(Heartbeat(generation=1, step=3, phase="train")))
    await asyncio.sleep(0.05)
    assert not peer.hellos
    server.is_pid("w", os.getpid())
    await until(lambda: peer.messages)
    assert peer.hellos[0].managed
    assert peer.messages == [Heartbeat(generation=1, step=3, phase="train")]
    assert server.tell("w", Stop(reason="x", grace_s=1, checkpoint=True))
    bodies = list(Frames().feed(await reader.read(1000)))
    assert decode_to_worker(bodies[0]) == Stop(reason="x", grace_s=1, checkpoint=True)
    writer.close()
    await until(lambda: peer.lost == 1)
    assert server.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00" * 1000,
        struct.pack(">I", 1 << 31) + b"x",
        struct.pack(">I", 5) + b"\xc1\xc1\xc1\xc1\xc1",
        os.urandom(5000),
        encode(Heartbeat(generation=1, step=1, phase="train")),
        hello(worker="somebody else"),
        hello(incarnation=2),
        hello(pid=1),
        hello(protocol=99),
    ],
    # The bytes hold this process's id: names of their own, since every test process must find the same ones.
    ids=("http", "zeros", "length", "msgpack", "noise", "message", "worker", "incarnation", "pid", "protocol"),
)
async def test_whatever_is_no_known_worker_is_closed_and_harms_nobody(server: LinkServer, data: bytes) -> None:
    peer = Peer()
    server.expect("w", 1, peer)
    server.is_pid("w", os.getpid())
    _, good = await asyncio.open_unix_connection(server.path)
    good.write(hello())
    await until(lambda: peer.hellos)
    if data[:4] == b"\x00\x00\x00\x00":
        data = data[:4] + data
    assert await talk(server, data) == b""
    assert server.refused == 1
    good.write(encode(Heartbeat(generation=1, step=1, phase="train")))
    await until(lambda: peer.messages)
    assert len(peer.hellos) == 1
    good.close()


async def test_garbage_after_a_good_hello_ends_that_connection(server: LinkServer) -> None:
    peer = Peer()
    server.expect("w", 1, peer)
    server.is_pid("w", os.getpid())
    assert await talk(server, hello() + struct.pack(">I", 3) + b"\xc1\xc1\xc1") == b""
    await until(lambda: peer.lost == 1)
    _, writer = await asyncio.open_unix_connection(server.path)
    writer.write(hello())
    await until(lambda: len(peer.hellos) == 2)
    writer.close()


async def test_a_worker_that_does_not_read_is_cut_off(server: LinkServer) -> None:
    peer = Peer()
    server.expect("w", 1, peer)
    server.is_pid("w", os.getpid())
    _, writer = await asyncio.open_unix_connection(server.path)
    writer.write(hello())
    await until(lambda: peer.hellos)
    big = Stop(reason="x" * 1_000_000, grace_s=1, checkpoint=False)
    sent = [server.tell("w", big) for _ in range(30)]
    assert sent[0]
    assert not sent[-1]
    writer.close()


def test_a_long_data_folder_gets_a_short_private_socket(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    assert socket_path(tmp_path, {}) == tmp_path / "link.sock"
    path = socket_path(long, {"XDG_RUNTIME_DIR": str(tmp_path)})
    assert len(os.fsencode(path)) <= 107
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert socket_path(long, {"XDG_RUNTIME_DIR": str(tmp_path)}) == path
    with socket.socket(socket.AF_UNIX) as probe:
        probe.bind(str(path))
    path.parent.chmod(0o755)
    with pytest.raises(PermissionError, match="mode 0700"):
        socket_path(long, {"XDG_RUNTIME_DIR": str(tmp_path)})
