"""The dashboard's port, taken before anything heavy is imported: a taken one is said at once."""

from __future__ import annotations

import socket

from distroml.rpc import PortTaken
from distroml.rpc.settings import split_address


def take(listen: str) -> socket.socket:
    """A listening socket on `listen` (host:port; port 0 takes a free one).

    Raises:
        PortTaken: something else listens there.
    """
    host, port = split_address(listen)
    taken = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
        taken.listen(128)
    except OSError as error:
        taken.close()
        raise PortTaken(listen, error.strerror or str(error)) from None
    taken.setblocking(False)
    return taken
