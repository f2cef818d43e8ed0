"""Stored forms of events and state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Final

import msgspec

from distroml.api.rendezvous.v1 import rendezvous_pb2 as pb
from distroml.events import stream
from distroml.eventstore.codec import DataclassCodec, JoinedCodec
from distroml.eventstore.draft import Repository
from distroml.eventstore.port import EventStore
from distroml.rendezvous.domain import RENDEZVOUS, Command, Event, Generation, JoinedNode, Rendezvous, evolve, model
from distroml.rendezvous.domain import events as ev
from distroml.rendezvous.domain.events import PrivateEvent, PublicEvent
from distroml.rendezvous.domain.model import Mark
from distroml.rpc.publicevents import PublicCodec

STREAM_PREFIX: Final = "rendezvous/job/"

PUBLIC_EVENTS: Final = PublicCodec[PublicEvent](
    {
        "rendezvous.generation.GenerationOpened": (ev.GenerationOpened, pb.GenerationOpened, 1),
        "rendezvous.generation.GenerationFormed": (ev.GenerationFormed, pb.GenerationFormed, 1),
        "rendezvous.generation.MemberLost": (ev.MemberLost, pb.MemberLost, 1),
        "rendezvous.generation.GenerationBroken": (ev.GenerationBroken, pb.GenerationBroken, 1),
        "rendezvous.generation.Closed": (ev.Closed, pb.Closed, 1),
        "rendezvous.worker.Started": (ev.WorkerStarted, pb.WorkerStarted, 1),
        "rendezvous.worker.Exited": (ev.WorkerExited, pb.WorkerExited, 1),
        "rendezvous.worker.HangDetected": (ev.HangDetected, pb.HangDetected, 1),
        "rendezvous.worker.NonFiniteDetected": (ev.NonFiniteDetected, pb.NonFiniteDetected, 1),
        "rendezvous.plan.PlanChosen": (ev.PlanChosen, pb.PlanChosen, 1),
        "rendezvous.plan.PlanMeasured": (ev.PlanMeasured, pb.PlanMeasured, 1),
        "rendezvous.plan.LinksProbed": (ev.LinksProbed, pb.LinksProbed, 1),
        "rendezvous.compression.SchemeChanged": (ev.SchemeChanged, pb.SchemeChanged, 1),
        "rendezvous.compression.CompressionAdvised": (ev.CompressionAdvised, pb.CompressionAdvised, 1),
        "rendezvous.step.StepRecorded": (ev.StepRecorded, pb.StepRecorded, 1),
    }
)
PRIVATE_EVENTS: Final = DataclassCodec[PrivateEvent](
    {
        "rendezvous.member.NodeJoined": (ev.NodeJoined, 1),
        "rendezvous.member.NodeReady": (ev.NodeReady, 1),
        "rendezvous.member.NodeLeft": (ev.NodeLeft, 1),
        "rendezvous.generation.DrainBegun": (ev.DrainBegun, 1),
    }
)
EVENTS: Final = JoinedCodec[Event]([PUBLIC_EVENTS, PRIVATE_EVENTS])


class RendezvousParts:
    """A job's state in parts of their own pace: `formed` changes once a generation, `nodes` hardly ever.

    What changes with every message (who is ready, what is recorded) is small and apart.
    """

    _OWN = ("joined", "took_part", "formed", "marks")

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder(order="deterministic")
        self._core = msgspec.json.Decoder(Rendezvous)
        self._formed = msgspec.json.Decoder(Generation)
        self._took_part = msgspec.json.Decoder(dict[str, int])
        self._marks = msgspec.json.Decoder(dict[str, Mark])
        # In the order of joining, which JSON objects written in order of their keys would lose.
        self._nodes = msgspec.json.Decoder(list[tuple[str, JoinedNode]])
        self._ready = msgspec.json.Decoder(dict[str, str])

    def parts(self, state: Rendezvous) -> Mapping[str, bytes]:
        """Named parts; equal states give equal bytes."""
        core = {field.name: getattr(state, field.name) for field in fields(state) if field.name not in self._OWN}
        nodes = [(name, replace(node, ready=False, error="")) for name, node in state.joined.items()]
        parts: dict[str, object] = {
            "core": core,
            "nodes": nodes,
            "ready": {name: node.error for name, node in state.joined.items() if node.ready},
            "took_part": state.took_part,
            "marks": state.marks,
        }
        if state.formed is not None:
            parts["formed"] = state.formed
        return {name: self._encoder.encode(part) for name, part in parts.items()}

    def from_parts(self, parts: Mapping[str, bytes]) -> Rendezvous:
        """The state; raises `ValueError`."""
        try:
            ready = self._ready.decode(parts["ready"])
            joined = {
                name: replace(node, ready=name in ready, error=ready.get(name, ""))
                for name, node in self._nodes.decode(parts["nodes"])
            }
            formed = self._formed.decode(parts["formed"]) if "formed" in parts else None
            return replace(
                self._core.decode(parts["core"]),
                joined=joined,
                took_part=self._took_part.decode(parts["took_part"]),
                formed=formed,
                marks=self._marks.decode(parts["marks"]),
            )
        except KeyError as error:
            raise ValueError(f"the part {error} is missing") from error


STATE: Final = RendezvousParts()

RendezvousRepository = Repository[Rendezvous, Command, Event]


def repository(store: EventStore) -> RendezvousRepository:
    """The jobs' streams on `store`."""
    return Repository(store, RENDEZVOUS, EVENTS, STATE, (model, evolve))


def stream_of(job: str) -> str:
    """The name of a job's stream."""
    return stream("rendezvous", "job", job)
