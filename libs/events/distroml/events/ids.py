"""Names of streams and fresh ids.

Domains never make ids: they come in with the command. `fresh_id` is for the shells around them.
"""

from __future__ import annotations

import re
import secrets

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


def fresh_id(prefix: str) -> str:
    """A new random id such as `job-1f0c9ab24e7d` (48 random bits)."""
    return f"{prefix}-{secrets.token_hex(6)}"


def is_name(text: str) -> bool:
    """Whether `text` may name a job, project or node: lower case letters, digits, `.`, `_` and `-`, at most 63."""
    return _NAME.fullmatch(text) is not None


def stream(service: str, kind: str, id: str) -> str:
    """The name of one stream, such as `scheduler/job/job-1f0c9ab24e7d`."""
    return f"{service}/{kind}/{id}"


def matches(pattern: str, stream: str) -> bool:
    """Whether a stream is selected: an exact name, or every name below a pattern that ends in `/`."""
    return stream.startswith(pattern) if pattern.endswith("/") else stream == pattern
