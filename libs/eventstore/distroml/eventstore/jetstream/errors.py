"""NATS's errors in the words of the log's port: one table."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import nats.errors
from nats.js.errors import APIError, NotFoundError

from distroml.eventstore.jetstream.publish import NO_STREAM, Refused
from distroml.eventstore.port import StoreDown, StoreFull
from distroml.eventstore.relay.port import LogMoved

_MOVED = frozenset({NO_STREAM, 10071, 10164})
"""Nobody stores the subject, and the last sequence is another: JetStream's `err_code`s."""

NO_MESSAGE = 10037
"""JetStream's `err_code` where a stream has no such message."""

_EXISTS = 10058
_FULL = frozenset({10002, 10023, 10028, 10047})
"""JetStream's `err_code`s for the account's limit, and too few resources, memory and storage."""

_NO_SPACE = "no space left on device"
"""What the description of a failed write (10077) holds where the disk is full."""

_MORE_STORAGE = (
    "nats-server may not store more, or has promised it to other streams: raise max_file in its jetstream settings or "
    "max_store of our account, or keep less with DISTROML_RELAY_KEEP_BYTES"
)
_NOTHING_LOST = "Nothing is lost: commits wait in the outbox"


class StreamExists(Exception):
    """A stream of this name and another configuration is there."""


@contextmanager
def translated() -> Generator[None]:
    """Raise the port's error for each of NATS's."""
    try:
        yield
    except NotFoundError as error:
        raise LogMoved(f"the stream is gone: {error}") from error
    except APIError as error:
        raise _error(error.err_code or 0, error.description or "") from error
    except Refused as error:
        raise _error(error.code, error.description) from error
    except nats.errors.NoRespondersError as error:
        raise StoreDown("no JetStream answers: nats-server needs it enabled for this account") from error
    except TimeoutError as error:
        raise StoreDown("JetStream did not answer in time") from error
    except nats.errors.Error as error:
        raise StoreDown(f"NATS failed: {error or type(error).__name__}") from error


def _error(code: int, description: str) -> Exception:
    what = f"JetStream refused ({code}): {description}"
    if code in _MOVED:
        return LogMoved(what)
    if code == _EXISTS:
        return StreamExists(what)
    if code in _FULL:
        return StoreFull(f"{what}; {_MORE_STORAGE}. {_NOTHING_LOST}")
    if _NO_SPACE in description:
        return StoreFull(f"{what}; make room on nats-server's disk and restart it. {_NOTHING_LOST}")
    return StoreDown(what)
