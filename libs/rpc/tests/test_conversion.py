from __future__ import annotations

import enum
from dataclasses import dataclass

import pytest

from distroml.api.scheduler.v1 import events_pb2, jobs_pb2
from distroml.rpc.conversion import ContractMismatch, compile_converter, enum_prefix
from libs.rpc.tests.contract_samples import (
    Failed,
    Placement,
    RetryPolicy,
)


@dataclass(frozen=True)
class Lacks:
    at_ms: int


@dataclass(frozen=True)
class Differs:
    at_ms: float
    category: str
    reason: str | None
    message: bytes


@dataclass(frozen=True)
class ListPlacement:
    at_ms: int
    attempt: int
    placement: list[Placement]


class TwoCategories(enum.Enum):
    EXCEPTION = 1
    SIGNAL = 2


@dataclass(frozen=True)
class FewCategories:
    at_ms: int
    category: TwoCategories
    reason: str
    message: str


@pytest.mark.parametrize(
    ("cls", "message", "named"),
    [
        (Lacks, events_pb2.JobFailed, ["lacks category, message, reason"]),
        (Failed, events_pb2.JobValidated, ["category, message, reason not in message"]),
        (
            Differs,
            events_pb2.JobFailed,
            [
                "at_ms: float does not hold",
                "category: str is no enum",
                "reason: may be None",
                "message: bytes does not",
            ],
        ),
        (ListPlacement, events_pb2.JobAdmitted, ["placement: is repeated in the message; use tuple"]),
        (FewCategories, events_pb2.JobFailed, ["differ in CORRUPTION"]),
        (RetryPolicy, jobs_pb2.WorkerRange, ["lacks max, min, per_node", "max_failures, max_preemptions not in"]),
    ],
    ids=["missing", "extra", "types", "list", "enum", "both"],
)
def test_every_difference_from_the_contract_is_named(cls: type, message: type, named: list[str]) -> None:
    with pytest.raises(ContractMismatch) as refused:
        compile_converter(cls, message)
    for text in named:
        assert any(text in problem for problem in refused.value.problems), refused.value.problems


def test_prefixes_of_enum_values() -> None:
    assert enum_prefix(jobs_pb2.JobState.DESCRIPTOR) == "JOB_STATE_"
