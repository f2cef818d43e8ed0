"""Where a deployment's log and state lie in etcd."""

from __future__ import annotations

from zlib import crc32

from distroml.statestore.etcd.store import key_prefix

RETIRED_KEYS = 16
"""Keys that tell of retired streams: few enough for one commit to compare all of them."""


class Keys:
    """Names of keys; everything of one deployment starts with its id.

    Attributes:
        streams: prefix of the streams' versions.
        outbox: prefix of the commits that the log may not hold yet, one key each.
        head: written by every commit with events: its revision is the newest one's, its value the last index.
        all_retired: prefix of the keys that tell of retired streams.
        trimmed: the place up to which commits have left the outbox.
    """

    def __init__(self, deployment: str) -> None:
        if not deployment or "/" in deployment:
            raise ValueError(f"{deployment!r} is no id of a deployment: it is not empty and has no '/'")
        self._keys = key_prefix(deployment)
        self._streams = f"{deployment}/stream/"
        self._commands = f"{deployment}/command/"
        self._outbox = f"{deployment}/outbox/"
        self._retired = f"{deployment}/retired/"
        self.all_retired = self._retired.encode()
        self.streams = self._streams.encode()
        self.outbox = self._outbox.encode()
        self.head = f"{deployment}/head".encode()
        self.trimmed = f"{deployment}/trimmed".encode()

    def key(self, key: str) -> bytes:
        """A key of the state store: a part, or what a guard compares."""
        return (self._keys + key).encode()

    def name(self, key: bytes) -> str:
        """The state store's name of a key."""
        return key.decode()[len(self._keys) :]

    def stream(self, stream: str) -> bytes:
        """The version of a stream."""
        return (self._streams + stream).encode()

    def stream_name(self, key: bytes) -> str:
        """The stream whose version a key holds."""
        return key.decode()[len(self._streams) :]

    def retired(self, stream: str) -> bytes:
        """Written whenever this stream, or another that shares the key, is retired; absent until then."""
        return f"{self._retired}{crc32(stream.encode()) % RETIRED_KEYS:02d}".encode()

    def command(self, id: str) -> bytes:
        """The record of an accepted command."""
        return (self._commands + id).encode()

    def entry(self, id: str) -> bytes:
        """One commit in the outbox."""
        return (self._outbox + id).encode()
