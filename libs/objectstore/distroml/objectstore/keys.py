"""What may be a key."""

from __future__ import annotations

MAX_KEY_BYTES = 1024
MAX_PART_BYTES = 200


def check_key(key: str) -> None:
    """Raise `ValueError` unless `key` is `/`-separated names that every back end can store.

    No part is empty, `.` or `..`, or longer than 200 bytes; the text is printable, at most 1024 bytes of UTF-8.
    """
    if not key.isprintable() or "\\" in key or not 0 < len(key.encode(errors="replace")) <= MAX_KEY_BYTES:
        raise ValueError(f"{key[:80]!r} is no object key: expected 1 to {MAX_KEY_BYTES} bytes of printable text")
    for part in key.split("/"):
        if part in ("", ".", ".."):
            raise ValueError(f"{key!r} is no object key: no part between slashes may be empty, '.' or '..'")
        if len(part.encode()) > MAX_PART_BYTES:
            raise ValueError(f"{key!r} is no object key: {part[:20]!r}… is longer than {MAX_PART_BYTES} bytes")


def check_range(offset: int, length: int | None) -> None:
    """Raise `ValueError` for a negative offset or length."""
    if offset < 0 or (length is not None and length < 0):
        raise ValueError(f"offset {offset} and length {length} must not be negative")
