"""Comparing what is with what was recorded: what was recorded must be there as it was, and more may be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def differences(recorded: Any, now: Any, path: str = "") -> Iterator[str]:
    """Each place where `now`, a JSON document, does not say what `recorded` says; new fields of objects pass."""
    if isinstance(recorded, dict) and isinstance(now, dict):
        for name, value in recorded.items():
            below = f"{path}.{name}" if path else name
            if name in now:
                yield from differences(value, now[name], below)
            else:
                yield f"{below} was {value!r} and is gone"
    elif isinstance(recorded, list) and isinstance(now, list) and len(recorded) == len(now):
        for index, (one, other) in enumerate(zip(recorded, now, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")
    elif type(recorded) is not type(now) or recorded != now:
        yield f"{path} was {recorded!r} and is {now!r}"
