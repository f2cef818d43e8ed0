"""Hosts the torch TCPStores of one job attempt, outside of every worker and of the agent.

Started like a worker, so it outlives an agent. One store per generation: plain scripts write the same keys in each.
Gloo and NCCL need a store only while they set up, so the end of this process hurts no training that runs.

Arguments: the address to bind, and nothing else. It listens on `store.sock` (0600) in its working folder; a line
with a generation's number is answered by the port of that generation's store, made if there is none. The three
newest are kept.
"""

from __future__ import annotations

import os
import socket
import sys
from datetime import timedelta

KEPT = 3
SOCKET = "store.sock"


def main(address: str) -> None:
    """Serve until killed."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    stores: dict[int, TCPStore] = {}
    listener = _listen()
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            try:
                generation = int(connection.makefile("rb").readline(64))
            except (OSError, ValueError):
                continue
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
            port = stores[generation].port if generation in stores else 0
            try:
                connection.sendall(b"%d\n" % port)
            except OSError:
                continue


def _listen() -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(SOCKET)
    finally:
        os.umask(before)
    listener.listen(4)
    return listener


def _bind(address: str) -> socket.socket:
    family = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0][0]
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.bind((address, 0))
    bound.listen(512)
    return bound


if __name__ == "__main__":
    main(sys.argv[1])
