"""The rules of rendezvous: pure."""

from distroml.rendezvous.domain.commands import (
    Command,
    JoinNode,
    Leave,
    MarkReady,
    Report,
    ReportExit,
    ReportHang,
    ReportLinks,
    ReportLost,
    ReportMeasured,
    ReportNonFinite,
    ReportPlan,
    ReportStart,
    ReportStep,
    Sender,
    Tick,
)
from distroml.rendezvous.domain.decide import RENDEZVOUS, speaker
from distroml.rendezvous.domain.events import Event
from distroml.rendezvous.domain.model import (
    MAX_WORKERS,
    ExpectedMember,
    FailureCategory,
    Generation,
    JoinedNode,
    Member,
    Phase,
    Rendezvous,
)
from distroml.rendezvous.domain.reports import clip
from distroml.rendezvous.domain.waiting import Waiting, limit_ms, quorum, waiting

__all__ = [
    "MAX_WORKERS",
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
    "ReportLinks",
    "ReportLost",
    "ReportMeasured",
    "ReportNonFinite",
    "ReportPlan",
    "ReportStart",
    "ReportStep",
    "Sender",
    "Tick",
    "Waiting",
    "clip",
    "limit_ms",
    "quorum",
    "speaker",
    "waiting",
]
