"""Hosts the torch TCPStores of one job attempt, outside of every worker and of the agent.

Started like a worker, so it outlives an agent. Plain scripts write the same keys in every generation, so each needs
a store of its own.
Gloo and NCCL need a store only while they set up, so the end of this process hurts no training that runs.

Arguments: the address to bind, and nothing else. It listens on `store.sock` (0600) in its working folder; a line
with a growing number is answered by the port of the store of that number, made if there is none. The newest are
kept. Who says nothing holds nobody up, and who says something else is hung up on.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
from collections.abc import Callable
from datetime import timedelta

KEPT = 8
SOCKET = "store.sock"
MOST_SILENT = 32
"""Connections that have not said a whole line; past that the oldest is hung up on."""
_LINE_BYTES = 64


def main(address: str) -> None:
    """Serve until killed."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    stores: dict[int, TCPStore] = {}

    def port_of(generation: int) -> int:
        if generation not in stores:
            bound = _bind(address)
            stores[generation] = TCPStore(
                address,
                bound.getsockname()[1],
                is_master=True,
                wait_for_workers=False,
                timeout=timedelta(seconds=30),
                # The store owns the descriptor from here on.
                master_listen_fd=bound.detach(),
            )
        for old in sorted(stores)[:-KEPT]:
            del stores[old]
        return stores[generation].port if generation in stores else 0

    serve(listen(), port_of)


def serve(listener: socket.socket, port_of: Callable[[int], int]) -> None:
    """Answer every whole line that is a number with `port_of` it, for good."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    said: dict[socket.socket, bytes] = {}

    def hang_up(connection: socket.socket) -> None:
        del said[connection]
        selector.unregister(connection)
        connection.close()

    while True:
        for key, _ in selector.select():
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            if connection is listener:
                accepted, _ = listener.accept()
                accepted.setblocking(False)
                selector.register(accepted, selectors.EVENT_READ)
                said[accepted] = b""
            elif connection in said and not _goes_on(connection, said, port_of):
                hang_up(connection)
        while len(said) > MOST_SILENT:
            hang_up(next(iter(said)))


def _goes_on(connection: socket.socket, said: dict[socket.socket, bytes], port_of: Callable[[int], int]) -> bool:
    """Hear what a connection says; whether it has more to say before it can be answered."""
    try:
        data = connection.recv(_LINE_BYTES)
        line = said[connection] = said[connection] + data
        if data and b"\n" not in line and len(line) < _LINE_BYTES:
            return True
        number = int(line)
    except BlockingIOError:
        return True
    except (OSError, ValueError):
        return False
    # A store that cannot be made ends this process: whoever holds it starts another.
    port = port_of(number)
    with contextlib.suppress(OSError):
        connection.sendall(b"%d\n" % port)
    return False


def listen() -> socket.socket:
    """The socket in the working folder, for its owner alone."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(SOCKET)
    finally:
        os.umask(before)
    listener.listen(MOST_SILENT)
    return listener


def _bind(address: str) -> socket.socket:
    family = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0][0]
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.bind((address, 0))
    bound.listen(512)
    return bound


if __name__ == "__main__":
    main(sys.argv[1])
