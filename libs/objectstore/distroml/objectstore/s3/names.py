"""Keys as names in the bucket: in the same order, and no object's name is a folder of another's.

S3 itself lets `a` and `a/b` both exist; a gateway over a file system does not. So names end in `!`, which sorts below
all that a key may hold but the space; with that and `!` itself escaped, names sort exactly as their keys do.
"""

from __future__ import annotations

MAX_NAME_BYTES = 1024
"""What S3 allows."""

_MARK = "!"
_ESCAPES = ((_MARK, "!1"), (" ", "!0"))


def name_of(key: str) -> str:
    """The name of the key's object."""
    return beginning_of(key) + _MARK


def beginning_of(prefix: str) -> str:
    """What the names of all keys with this prefix begin with."""
    for character, escape in _ESCAPES:
        prefix = prefix.replace(character, escape)
    return prefix


def key_of(name: str) -> str | None:
    """The key of an object's name; None for a name that no key has."""
    key = name.removesuffix(_MARK)
    if key == name:
        return None
    for character, escape in reversed(_ESCAPES):
        key = key.replace(escape, character)
    return key if name_of(key) == name else None


def can_begin_keys(prefix: str) -> bool:
    """Whether any key may have this prefix: one with an empty part or one of dots is none's beginning."""
    return not any(part in ("", ".", "..") for part in prefix.split("/")[:-1])
