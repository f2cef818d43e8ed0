"""Both ends of a connection that is timed: `stream.py sink ADDRESS`, `stream.py source ADDRESS BYTES...`.

The source prints the seconds from the first byte of each message until the sink said that it has the last one.
"""

from __future__ import annotations

import socket
import sys
import time

_PORT = 29_871
_HEAD_BYTES = 8
_PAUSE_S = 0.05


def sink(address: str) -> None:
    """Take one connection's messages, each behind its length, and answer each with one byte."""
    with socket.create_server((address, _PORT)) as server:
        print("listening", flush=True)
        connection, _ = server.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            room = bytearray(1 << 20)
            while head := connection.recv(_HEAD_BYTES, socket.MSG_WAITALL):
                left = int.from_bytes(head, "big")
                while left:
                    left -= connection.recv_into(room, min(left, len(room)))
                connection.sendall(b".")


def source(address: str, sizes: list[int]) -> None:
    """Send messages of those sizes, with pauses in which the limiter forgets the one before."""
    with socket.create_connection((address, _PORT), timeout=600) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for size in sizes:
            time.sleep(_PAUSE_S)
            message = size.to_bytes(_HEAD_BYTES, "big") + bytes(size)
            started = time.perf_counter()
            connection.sendall(message)
            connection.recv(1)
            print(time.perf_counter() - started)


if __name__ == "__main__":
    if sys.argv[1] == "sink":
        sink(sys.argv[2])
    else:
        source(sys.argv[2], [int(word) for word in sys.argv[3:]])
