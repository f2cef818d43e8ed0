"""Streams as NATS subjects: one token for each part of a stream's name, so that a server can filter by pattern. Pure.

    distroml.<deployment>.<incarnation>.<part>.<part>…

The incarnation is drawn when the JetStream stream is made. Who still publishes for a stream that was deleted and made
anew hits a subject that nobody stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

_ROOT = "distroml"
_NAME_ROOT = "distroml-log-"


def token(text: str) -> str:
    """One subject token for any text; different texts give different tokens."""
    # An empty token is no token, and what `quote` writes never is a lone "%".
    return quote(text, safe="").replace(".", "%2E") or "%"


def stream_name(deployment: str) -> str:
    """Name of the JetStream stream of a deployment's log."""
    return _NAME_ROOT + token(deployment)


def root(deployment: str, incarnation: str) -> str:
    """What all subjects of one incarnation begin with; `*` for any incarnation."""
    return f"{_ROOT}.{token(deployment)}.{incarnation}"


def subject(root: str, stream: str) -> str:
    """The subject of one stream's events."""
    return ".".join((root, *map(token, stream.split("/"))))


def selection(root: str, patterns: Sequence[str]) -> str:
    """One subject that covers every stream which a pattern selects, and perhaps others; all without patterns."""
    if len(set(patterns)) == 1 and not patterns[0].endswith("/"):
        return subject(root, patterns[0])
    # The last part of an exact name is left out: `a.>` does not cover `a`. That of "a/" is empty.
    shared = [pattern.split("/")[:-1] for pattern in patterns]
    common: list[str] = []
    for parts in zip(*shared, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join((root, *map(token, common), ">"))
