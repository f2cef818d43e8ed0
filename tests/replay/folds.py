"""How the streams of each kind are folded: with the codecs and `evolve` of the service that owns them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from distroml.checkpoint.adapters import codecs as checkpoint
from distroml.eventstore import EventStore
from distroml.eventstore.codec import TableCodec
from distroml.eventstore.draft import Repository
from distroml.eventstore.memory import open_event_store
from distroml.rendezvous.adapters import codec as rendezvous
from distroml.scheduler.adapters import codecs as scheduler
from distroml.scheduler.streams import JOB_PREFIX, NODE_PREFIX, POOL_PREFIX, Streams
from tests.replay.log import Line


def kinds_on(store: EventStore) -> dict[str, Repository[Any, Any, Any]]:
    """By the prefix of their names: the streams of every owner, on a store."""
    streams = Streams(store, "recorded")
    return {
        JOB_PREFIX: streams.jobs,
        NODE_PREFIX: streams.nodes,
        POOL_PREFIX: streams.ledgers,
        rendezvous.STREAM_PREFIX: rendezvous.repository(store),
        checkpoint.STREAMS: checkpoint.repository(store),
    }


# Nothing is stored in it: a repository is what knows decider and codecs of its streams.
KINDS: Mapping[str, Repository[Any, Any, Any]] = kinds_on(open_event_store())
"""The same for streams that are folded from lines alone."""
TABLES: Sequence[TableCodec[Any]] = (
    scheduler.JOB_EVENTS,
    scheduler.NODE_EVENTS,
    scheduler.POOL_EVENTS,
    rendezvous.PUBLIC_EVENTS,
    rendezvous.PRIVATE_EVENTS,
    checkpoint.PUBLIC,
    checkpoint.PRIVATE,
)
"""What knows the stored names of all events."""


def kind_of(stream: str, kinds: Mapping[str, Repository[Any, Any, Any]] = KINDS) -> Repository[Any, Any, Any]:
    """What folds a stream; raises `KeyError` for one that no service of this release owns."""
    return next((kind for prefix, kind in kinds.items() if stream.startswith(prefix)), None) or kinds[stream]


def fold(stream: str, lines: list[Line]) -> dict[str, Any]:
    """The state of a stream after its recorded events, as a JSON document.

    Raises:
        UnknownEvent: an event of a name or schema that this release cannot read.
        ValueError: an event whose bytes it cannot read.
    """
    kind = kind_of(stream)
    events = (kind.codec.decode(line.type, line.schema, line.data) for line in lines)
    return document(kind.decider.fold(events))


def document(state: Any) -> dict[str, Any]:
    """A state as a JSON document."""
    return json.loads(msgspec.json.encode(state, order="sorted"))


def digest(state: Any) -> str:
    """SHA-256 of a JSON document, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(state, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
