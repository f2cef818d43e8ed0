"""Stored names and forms of the scheduler's events and states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from distroml.api.scheduler.v1 import events_pb2 as pb
from distroml.eventstore.codec import DataclassCodec, JsonState
from distroml.rpc.publicevents import PublicCodec
from distroml.scheduler.domain import ledger as pool
from distroml.scheduler.domain import node as nodes
from distroml.scheduler.domain.job import Job
from distroml.scheduler.domain.job import events as e
from distroml.scheduler.domain.ledger import Holding, Ledger, Offer
from distroml.scheduler.domain.node import Node

JOB_EVENTS: Final[PublicCodec[e.Event]] = PublicCodec(
    {
        "scheduler.job.Submitted": (e.Submitted, pb.JobSubmitted, 1),
        "scheduler.job.Validated": (e.Validated, pb.JobValidated, 1),
        "scheduler.job.Queued": (e.Queued, pb.JobQueued, 1),
        "scheduler.job.Admitted": (e.Admitted, pb.JobAdmitted, 1),
        "scheduler.job.AttemptStarted": (e.AttemptStarted, pb.JobAttemptStarted, 1),
        "scheduler.job.Started": (e.Started, pb.JobStarted, 1),
        "scheduler.job.Progressed": (e.Progressed, pb.JobProgressed, 1),
        "scheduler.job.PauseRequested": (e.PauseRequested, pb.JobPauseRequested, 1),
        "scheduler.job.Paused": (e.Paused, pb.JobPaused, 1),
        "scheduler.job.Resumed": (e.Resumed, pb.JobResumed, 1),
        "scheduler.job.ResizeRequested": (e.ResizeRequested, pb.JobResizeRequested, 1),
        "scheduler.job.Resized": (e.Resized, pb.JobResized, 1),
        "scheduler.job.PriorityChanged": (e.PriorityChanged, pb.JobPriorityChanged, 1),
        "scheduler.job.PreemptionRequested": (e.PreemptionRequested, pb.JobPreemptionRequested, 1),
        "scheduler.job.Preempted": (e.Preempted, pb.JobPreempted, 1),
        "scheduler.job.Requeued": (e.Requeued, pb.JobRequeued, 1),
        "scheduler.job.FailureCounted": (e.FailureCounted, pb.JobFailureCounted, 1),
        "scheduler.job.Succeeded": (e.Succeeded, pb.JobSucceeded, 1),
        "scheduler.job.Failed": (e.Failed, pb.JobFailed, 1),
        "scheduler.job.CancelRequested": (e.CancelRequested, pb.JobCancelRequested, 1),
        "scheduler.job.Cancelled": (e.Cancelled, pb.JobCancelled, 1),
    }
)

NODE_EVENTS: Final[PublicCodec[nodes.Event]] = PublicCodec(
    {
        "scheduler.node.Registered": (nodes.Registered, pb.NodeRegistered, 1),
        "scheduler.node.Cordoned": (nodes.Cordoned, pb.NodeCordoned, 1),
        "scheduler.node.Uncordoned": (nodes.Uncordoned, pb.NodeUncordoned, 1),
        "scheduler.node.Drained": (nodes.Drained, pb.NodeDrained, 1),
        "scheduler.node.Lost": (nodes.Lost, pb.NodeLost, 1),
        "scheduler.node.Returned": (nodes.Returned, pb.NodeReturned, 1),
    }
)

POOL_EVENTS: Final[DataclassCodec[pool.Event]] = DataclassCodec(
    {
        "scheduler.pool.SlotsOffered": (pool.SlotsOffered, 1),
        "scheduler.pool.NodeWithdrawn": (pool.NodeWithdrawn, 1),
        "scheduler.pool.SlotsAssigned": (pool.SlotsAssigned, 1),
        "scheduler.pool.SlotsLeaving": (pool.SlotsLeaving, 1),
        "scheduler.pool.AttemptStopped": (pool.AttemptStopped, 1),
        "scheduler.pool.SlotsFreed": (pool.SlotsFreed, 1),
    }
)

JOB_STATE: Final = JsonState(Job)
NODE_STATE: Final = JsonState(Node)

_OFFER = "node."
_HOLDING = "holding."


class LedgerState:
    """The ledger in one part per node and one per holding, so that an admission writes a few hundred bytes."""

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder(order="deterministic")
        self._offer = msgspec.json.Decoder(Offer)
        self._holding = msgspec.json.Decoder(Holding)

    def parts(self, state: Ledger) -> Mapping[str, bytes]:
        """Parts by node and by holding."""
        offers = {_OFFER + node: self._encoder.encode(offer) for node, offer in state.offers.items()}
        return offers | {_HOLDING + key: self._encoder.encode(holding) for key, holding in state.holdings.items()}

    def from_parts(self, parts: Mapping[str, bytes]) -> Ledger:
        """The ledger; raises `ValueError`."""
        if strange := [name for name in parts if not name.startswith((_OFFER, _HOLDING))]:
            raise ValueError(f"the ledger has no parts such as {strange[0]!r}")
        return Ledger(
            {
                key.removeprefix(_OFFER): self._offer.decode(data)
                for key, data in parts.items()
                if key.startswith(_OFFER)
            },
            {
                key.removeprefix(_HOLDING): self._holding.decode(data)
                for key, data in parts.items()
                if key.startswith(_HOLDING)
            },
        )


LEDGER_STATE: Final = LedgerState()
