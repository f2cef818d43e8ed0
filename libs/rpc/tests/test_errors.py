from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from grpc import StatusCode

import distroml.eventstore.port
import distroml.objectstore.port
import distroml.statestore.port
from distroml.events import Rejection, UnknownEvent
from distroml.eventstore import (
    CommandKnown,
    CommandRecord,
    EventStoreError,
    Fenced,
    NotSealable,
    StoreFull,
    WrongExpectedVersion,
)
from distroml.objectstore import NoSuchObject, ObjectExists, ObjectStoreError, ObjectStoreFull
from distroml.rpc import errors
from distroml.rpc.errors import TABLE, CallError, RemoteError, problem_of
from distroml.statestore import CasConflict, StateStoreError, StateStoreFull

ROOTS = (EventStoreError, StateStoreError, ObjectStoreError)


def family(root: type[Exception]) -> Iterator[type[Exception]]:
    yield root
    for child in root.__subclasses__():
        yield from family(child)


MADE = {
    Rejection: Rejection("NotQueued", "it runs"),
    UnknownEvent: UnknownEvent("a.B", 1),
    RemoteError: RemoteError(StatusCode.NOT_FOUND, "NoSuchJob", "there is no job x"),
    CallError: CallError("Odd", "odd"),
    errors.InvalidArgument: errors.InvalidArgument([("a", "is wrong")]),
    WrongExpectedVersion: WrongExpectedVersion("scheduler/job/x", 1, 2),
    Fenced: Fenced("leases/scheduler/cycle"),
    CommandKnown: CommandKnown(CommandRecord("c", b"", b"")),
    NotSealable: NotSealable("scheduler/job/x", 7, 5),
    CasConflict: CasConflict("k", 1, 2),
    NoSuchObject: NoSuchObject("k"),
    ObjectExists: ObjectExists("k"),
}


def make(type_: type[Exception]) -> Exception:
    if type_ in MADE:
        return MADE[type_]
    return type_("Reason", "text") if issubclass(type_, CallError) else type_("text")


@pytest.mark.parametrize("type_", [type_ for root in ROOTS for type_ in family(root)], ids=lambda t: t.__name__)
def test_every_store_error_has_its_own_row(type_: type[Exception]) -> None:
    assert type_ in TABLE


@pytest.mark.parametrize(
    "type_",
    [*MADE, *(type_ for root in (*ROOTS, CallError) for type_ in family(root) if type_ not in MADE)],
    ids=lambda t: t.__name__,
)
def test_everything_foreseen_becomes_a_status_with_a_reason_and_a_text(type_: type[Exception]) -> None:
    problem = problem_of(make(type_))
    assert problem is not None
    assert re.fullmatch(r"[A-Z][A-Za-z0-9]+", problem.reason)
    assert problem.message
    assert problem.code not in (StatusCode.OK, StatusCode.UNKNOWN)


def test_a_class_without_a_row_has_that_of_its_nearest_base() -> None:
    class Narrower(WrongExpectedVersion):
        pass

    problem = problem_of(Narrower("s", 1, 2))
    assert problem is not None
    assert problem.code is StatusCode.ABORTED


def test_nobody_foresaw_a_defect() -> None:
    assert problem_of(KeyError("x")) is None


def test_the_fence_of_a_job_and_that_of_a_lease_are_told_apart() -> None:
    job, lease = problem_of(Fenced("fences/job-1")), problem_of(Fenced("leases/scheduler/cycle"))
    assert job is not None
    assert lease is not None
    assert (job.code, job.reason) == (StatusCode.FAILED_PRECONDITION, "StaleGeneration")
    assert (lease.code, lease.reason) == (StatusCode.ABORTED, "Fenced")


@pytest.mark.parametrize(
    "module",
    [errors, distroml.eventstore.port, distroml.statestore.port, distroml.objectstore.port],
    ids=lambda module: module.__name__,
)
def test_the_drawn_tree_is_the_real_one(module: object) -> None:
    roots = {errors: CallError, distroml.eventstore.port: EventStoreError}
    roots |= {distroml.statestore.port: StateStoreError, distroml.objectstore.port: ObjectStoreError}
    root = roots[module]
    drawn = set(re.findall(r"[├└]── (\w+)", root.__doc__ or ""))
    assert drawn == {
        type_.__name__ for type_ in family(root) if type_ is not root and type_.__module__ == root.__module__
    }


def test_what_had_no_room_may_be_tried_again_and_what_is_past_a_bound_may_not() -> None:
    for full in (StoreFull(), StateStoreFull(), ObjectStoreFull()):
        problem = problem_of(full)
        assert problem is not None
        assert RemoteError(problem.code, problem.reason, problem.message).is_transient
    assert not RemoteError(StatusCode.RESOURCE_EXHAUSTED, "BundleTooLarge", "too large").is_transient


def test_a_call_that_a_service_left_unanswered_as_it_went_down_may_be_made_again() -> None:
    assert RemoteError(StatusCode.CANCELLED, "Cancelled", "CANCELLED").is_transient
    assert RemoteError(StatusCode.UNKNOWN, "Unknown", "Stream removed").is_transient
    assert not RemoteError(StatusCode.FAILED_PRECONDITION, "StaleGeneration", "stop").is_transient
