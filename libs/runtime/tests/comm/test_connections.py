"""Connections that are cut are those that were opened here, whatever becomes of their numbers meanwhile."""

from __future__ import annotations

import os
import socket

import pytest

from distroml.runtime.comm.backends import connections


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one connection over the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    theirs.settimeout(20)
    return ours, theirs


def test_a_number_that_is_used_again_at_that_moment_cuts_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread closes the connection, and the next file that is opened gets its number."""
    ours, theirs = pair()
    other, others_peer = pair()
    descriptor, inode, fstat = ours.fileno(), os.fstat(ours.fileno()).st_ino, os.fstat

    def used_again(asked: int) -> os.stat_result:
        found = fstat(asked)
        os.dup2(other.fileno(), descriptor)
        return found

    monkeypatch.setattr(connections.os, "fstat", used_again)
    connections._shut(descriptor, inode)
    monkeypatch.undo()
    assert theirs.recv(1) == b"", "the connection itself is ended"
    other.sendall(b"x")
    assert others_peer.recv(1) == b"x"
    for one in (ours, theirs, other, others_peer):
        one.close()


def test_a_number_that_another_has_by_now_is_left_alone() -> None:
    ours, theirs = pair()
    connections._shut(ours.fileno(), -1)
    ours.sendall(b"x")
    assert theirs.recv(1) == b"x"
    ours.close()
    theirs.close()
