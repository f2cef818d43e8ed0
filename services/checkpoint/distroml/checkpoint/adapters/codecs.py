"""Events and state of the catalogue as stored bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from distroml.api.checkpoint.v1 import checkpoint_pb2 as pb
from distroml.checkpoint.domain import CATALOGUE
from distroml.checkpoint.domain import evolve as evolve_module
from distroml.checkpoint.domain import state as state_module
from distroml.checkpoint.domain.commands import Command
from distroml.checkpoint.domain.events import (
    Begun,
    Committed,
    CorruptChunkFound,
    Deleted,
    Event,
    FellBack,
    PinSet,
    SaveFailed,
    ShardReported,
    Verified,
)
from distroml.checkpoint.domain.state import Catalogue, Shard
from distroml.eventstore import EventStore
from distroml.eventstore.codec import DataclassCodec, JoinedCodec
from distroml.eventstore.draft import Repository
from distroml.rpc.publicevents import PublicCodec

STREAMS = "checkpoint/job/"
_GROUP = 128

PUBLIC: PublicCodec[Event] = PublicCodec(
    {
        "checkpoint.Begun": (Begun, pb.Begun, 1),
        "checkpoint.Committed": (Committed, pb.Committed, 1),
        "checkpoint.SaveFailed": (SaveFailed, pb.SaveFailed, 1),
        "checkpoint.Verified": (Verified, pb.Verified, 1),
        "checkpoint.CorruptChunkFound": (CorruptChunkFound, pb.CorruptChunkFound, 1),
        "checkpoint.FellBack": (FellBack, pb.FellBack, 1),
        "checkpoint.Deleted": (Deleted, pb.Deleted, 1),
    }
)
PRIVATE: DataclassCodec[Event] = DataclassCodec(
    {"checkpoint.private.ShardReported": (ShardReported, 1), "checkpoint.private.PinSet": (PinSet, 1)}
)
EVENTS: JoinedCodec[Event] = JoinedCodec([PUBLIC, PRIVATE])


def stream_of(job: str) -> str:
    """The stream of a job's catalogue."""
    return STREAMS + job


@dataclass(frozen=True, slots=True)
class CatalogueState:
    """The catalogue in one part, the reported shards of an open save in parts of 128 ranks.

    A report then writes its group only, and the end of the largest save stays within the bounds of a commit.
    """

    def parts(self, state: Catalogue) -> Mapping[str, bytes]:
        """The parts of `state`."""
        shards = state.open.shards if state.open else ()
        groups: dict[int, list[Shard]] = {}
        for shard in shards:
            groups.setdefault(shard.rank // _GROUP, []).append(shard)
        bare = replace(state, open=replace(state.open, shards=())) if state.open else state
        parts = {"catalogue": msgspec.json.encode(bare, order="deterministic")}
        parts |= {f"shards-{group:03d}": msgspec.json.encode(members) for group, members in groups.items()}
        return parts

    def from_parts(self, parts: Mapping[str, bytes]) -> Catalogue:
        """The state of these parts; raises `ValueError`."""
        if "catalogue" not in parts:
            raise ValueError("the part 'catalogue' is missing")
        bare = msgspec.json.decode(parts["catalogue"], type=Catalogue)
        groups = [msgspec.json.decode(parts[name], type=list[Shard]) for name in sorted(parts) if name != "catalogue"]
        if bare.open is None:
            return bare
        return replace(bare, open=replace(bare.open, shards=tuple(shard for group in groups for shard in group)))


Repo = Repository[Catalogue, Command, Event]


def repository(store: EventStore) -> Repo:
    """The catalogues on `store`."""
    return Repository(store, CATALOGUE, EVENTS, CatalogueState(), (state_module, evolve_module))
