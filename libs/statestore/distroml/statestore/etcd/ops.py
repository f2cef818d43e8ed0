"""Short names for what transactions are made of, and for what is read off responses."""

from __future__ import annotations

from typing import Protocol

from distroml.statestore.etcd.messages import (
    LESS,
    Compare,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    ResponseHeader,
    Target,
)


class _Headed(Protocol):
    @property
    def header(self) -> ResponseHeader | None: ...


def put(key: bytes, value: bytes, lease: int = 0) -> RequestOp:
    """Write a key."""
    return RequestOp(put=PutRequest(key=key, value=value, lease=lease))


def delete(key: bytes) -> RequestOp:
    """Delete a key where it exists."""
    return RequestOp(delete_range=DeleteRangeRequest(key=key))


def delete_below(prefix: bytes) -> RequestOp:
    """Delete every key that starts with `prefix`."""
    return RequestOp(delete_range=DeleteRangeRequest(key=prefix, range_end=end_of(prefix)))


def get(key: bytes, *, keys_only: bool = False) -> RequestOp:
    """Read a key."""
    return RequestOp(range=RangeRequest(key=key, keys_only=keys_only))


def at_revision(key: bytes, revision: int) -> Compare:
    """The key was last written at `revision`; 0: it is absent."""
    return Compare(target=Target.MOD, key=key, mod_revision=revision)


def has_value(key: bytes, value: bytes) -> Compare:
    """The key exists and has `value`."""
    return Compare(target=Target.VALUE, key=key, value=value)


def unchanged_since(prefix: bytes, revision: int) -> Compare:
    """No key that starts with `prefix` was written after `revision`; those that were deleted do not count."""
    return Compare(result=LESS, target=Target.MOD, key=prefix, range_end=end_of(prefix), mod_revision=revision + 1)


def end_of(prefix: bytes) -> bytes:
    """The end of the range of all keys that start with `prefix`, which is UTF-8 and not empty."""
    # UTF-8 has no byte 0xff, so the last one can always be raised.
    return prefix[:-1] + bytes([prefix[-1] + 1])


def revision_of(response: _Headed) -> int:
    """The key space's revision when the response was made."""
    return response.header.revision if response.header else 0
