"""The rules of rendezvous: pure."""

from distroml.rendezvous.domain.commands import (
    Command,
    JoinNode,
    Leave,
    MarkReady,
    Report,
    ReportExit,
    ReportHang,
    ReportLost,
    ReportNonFinite,
    ReportPlan,
    ReportStart,
    ReportStep,
    Sender,
    Tick,
)
from distroml.rendezvous.domain.decide import RENDEZVOUS
from distroml.rendezvous.domain.events import Event
from distroml.rendezvous.domain.model import (
    ExpectedMember,
    FailureCategory,
    Generation,
    JoinedNode,
    Member,
    Phase,
    Rendezvous,
)
from distroml.rendezvous.domain.waiting import Waiting, limit_ms, quorum, waiting

__all__ = [
    "RENDEZVOUS",
    "Command",
    "Event",
    "ExpectedMember",
    "FailureCategory",
    "Generation",
    "JoinNode",
    "JoinedNode",
    "Leave",
    "MarkReady",
    "Member",
    "Phase",
    "Rendezvous",
    "Report",
    "ReportExit",
    "ReportHang",
    "ReportLost",
    "ReportNonFinite",
    "ReportPlan",
    "ReportStart",
    "ReportStep",
    "Sender",
    "Tick",
    "Waiting",
    "limit_ms",
    "quorum",
    "waiting",
]
