"""What a call can end with, on both sides of it, and the one table from exceptions to status codes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata

from distroml.events import Rejection, UnknownEvent
from distroml.eventstore import (
    CommandKnown,
    CommitRefused,
    EventStoreError,
    Fenced,
    NotSealable,
    StoreDamaged,
    StoreDown,
    StoreFull,
    WrongExpectedVersion,
)
from distroml.objectstore import (
    NoSuchObject,
    ObjectDamaged,
    ObjectExists,
    ObjectStoreDown,
    ObjectStoreError,
    ObjectStoreFull,
    ObjectStoreRefused,
)
from distroml.statestore import (
    CasConflict,
    Compacted,
    LeaseGone,
    StateStoreDamaged,
    StateStoreDown,
    StateStoreError,
    StateStoreFull,
)

FULL: Final = frozenset({"StoreFull", "StateStoreFull", "ObjectStoreFull"})
"""Reasons of a refusal that ends when somebody makes room; nothing was written."""

_UNANSWERED: Final = frozenset(
    {StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED, StatusCode.UNKNOWN}
)

Violation = tuple[str, str]
"""A field's path in the request, and what is wrong with its value."""


class CallError(Exception):
    """Root of what a servicer raises to refuse a call. The message says what, why, and what to do.

    CallError
    ├── InvalidArgument      the request is wrong whatever the state is; names every wrong field
    ├── NotFound             what it is about does not exist
    ├── AlreadyExists        what it would make exists, or the request id was used for something else
    ├── FailedPrecondition   the state does not allow it
    ├── Aborted              a race was lost: read again and try again
    ├── Unauthenticated      nobody knows the caller
    ├── PermissionDenied     the caller may not
    ├── ResourceExhausted    a bound is reached
    ├── Unavailable          not now: try again
    └── DeadlineExceeded     it took longer than the caller, or the service, was ready to wait

    Beside the tree: `RemoteError` is what the calling side gets for any of them.
    """

    code: StatusCode = StatusCode.INTERNAL

    def __init__(self, reason: str, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message
        self.metadata: Mapping[str, str] = metadata
        self.violations: tuple[Violation, ...] = ()

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class InvalidArgument(CallError):
    """Wrong fields, all of them."""

    code = StatusCode.INVALID_ARGUMENT

    def __init__(
        self, violations: Iterable[Violation], *, reason: str = "InvalidArgument", message: str = "", **metadata: str
    ) -> None:
        found = tuple(violations)
        text = message or "; ".join(f"{path}: {what}" if path else what for path, what in found)
        super().__init__(reason, text, **metadata)
        self.violations = found


class NotFound(CallError):
    """What the call is about does not exist."""

    code = StatusCode.NOT_FOUND


class AlreadyExists(CallError):
    """What the call would make exists, or its request id was used for something else."""

    code = StatusCode.ALREADY_EXISTS


class FailedPrecondition(CallError):
    """The state does not allow it."""

    code = StatusCode.FAILED_PRECONDITION


class Aborted(CallError):
    """A race was lost: read again and try again."""

    code = StatusCode.ABORTED


class Unauthenticated(CallError):
    """Nobody knows the caller."""

    code = StatusCode.UNAUTHENTICATED


class PermissionDenied(CallError):
    """The caller is known and may not."""

    code = StatusCode.PERMISSION_DENIED


class ResourceExhausted(CallError):
    """A bound is reached."""

    code = StatusCode.RESOURCE_EXHAUSTED


class Unavailable(CallError):
    """Not now: try again."""

    code = StatusCode.UNAVAILABLE


class DeadlineExceeded(CallError):
    """It took longer than somebody was ready to wait."""

    code = StatusCode.DEADLINE_EXCEEDED


class RemoteError(AioRpcError):
    """How a call ended on the calling side.

    It is an `AioRpcError` too, so that gRPC's own machinery and code that knows only gRPC see what they expect.

    Attributes:
        reason: machine-readable CamelCase constant; `Unreachable` where nobody answered.
        message: what, why, and what to do, for a person.
        metadata: the values behind the message, for a program.
        violations: wrong fields of the request, all of them.
    """

    def __init__(
        self,
        code: StatusCode,
        reason: str,
        message: str,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
    ) -> None:
        super().__init__(code, Metadata(), Metadata(), message, None)
        self.status, self.reason, self.message = code, reason, message
        self.metadata: Mapping[str, str] = metadata or {}
        self.violations: tuple[Violation, ...] = tuple(violations)

    @property
    def is_transient(self) -> bool:
        """The same call may succeed later as it is: nobody answered, or not in time, or what it writes had no room.

        A service that is killed, or goes down, leaves calls cancelled, or cut off in a way that gRPC has no word for.
        """
        if self.status is StatusCode.RESOURCE_EXHAUSTED:
            # Other bounds that are reached, such as a bundle's size, are reached again.
            return self.reason in FULL
        return self.status in _UNANSWERED

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    def __repr__(self) -> str:
        return f"RemoteError({self.status.name}, {self.reason!r}, {self.message!r})"


@dataclass(frozen=True, slots=True)
class Problem:
    """A refusal as it goes over the wire."""

    code: StatusCode
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    violations: tuple[Violation, ...] = ()


X = TypeVar("X", bound=Exception)
_TABLE: dict[type[Exception], Callable[[Exception], Problem]] = {}


def _row(type_: type[X], make: Callable[[X], Problem]) -> None:
    _TABLE[type_] = make  # pyright: ignore[reportArgumentType] - looked up by the exception's own class


def _plain(type_: type[Exception], code: StatusCode, reason: str, todo: str = "") -> None:
    _row(type_, lambda error: Problem(code, reason, f"{error}; {todo}" if todo else str(error)))


def _fenced(error: Fenced) -> Problem:
    if error.key.startswith("fences/"):
        text = f"a newer generation of {error.key.removeprefix('fences/')} has begun; join it, or stop"
        return Problem(StatusCode.FAILED_PRECONDITION, "StaleGeneration", text, {"key": error.key})
    text = f"{error}; another replica has taken over: call again"
    return Problem(StatusCode.ABORTED, "Fenced", text, {"key": error.key})


def _rejected(rejection: Rejection) -> Problem:
    if (
        rejection.reason == "CommandIdReused"
    ):  # what `distroml.eventstore.handle` says of a command is said of a request
        id_ = rejection.metadata.get("command", "").rpartition("/")[2]
        text = f"request id {id_} was accepted before with other content; use a fresh id"
        return Problem(StatusCode.ALREADY_EXISTS, "RequestIdReused", text, {"request_id": id_})
    return Problem(StatusCode.FAILED_PRECONDITION, rejection.reason, rejection.message, rejection.metadata)


_row(CallError, lambda e: Problem(e.code, e.reason, e.message, e.metadata, e.violations))
_row(RemoteError, lambda e: Problem(e.status, e.reason, e.message, e.metadata, e.violations))
_row(Rejection, _rejected)
_plain(UnknownEvent, StatusCode.INTERNAL, "UnknownEvent")
_plain(TimeoutError, StatusCode.DEADLINE_EXCEEDED, "DeadlineExceeded", "the service did not finish in time: call again")

_row(Fenced, _fenced)
_row(
    CommandKnown,
    lambda e: Problem(
        StatusCode.ALREADY_EXISTS,
        "RequestIdReused",
        f"request id {e.record.id} was accepted before with other content; use a fresh id",
        {"request_id": e.record.id},
    ),
)
_row(
    WrongExpectedVersion,
    lambda e: Problem(
        StatusCode.ABORTED,
        "WrongExpectedVersion",
        f"{e}; somebody else changed it: read it again and decide again",
        {"stream": e.stream, "expected": str(e.expected), "actual": str(e.actual)},
    ),
)
_plain(CommitRefused, StatusCode.INVALID_ARGUMENT, "CommitRefused")
_plain(NotSealable, StatusCode.UNAVAILABLE, "NotSealable")
_plain(StoreFull, StatusCode.RESOURCE_EXHAUSTED, "StoreFull")
_plain(StoreDamaged, StatusCode.DATA_LOSS, "StoreDamaged")
_plain(StoreDown, StatusCode.UNAVAILABLE, "StoreDown", "try again")
_plain(EventStoreError, StatusCode.INTERNAL, "EventStoreError")

_plain(CasConflict, StatusCode.ABORTED, "CasConflict", "somebody else changed it: read it again and try again")
_plain(LeaseGone, StatusCode.FAILED_PRECONDITION, "LeaseGone", "take a new lease")
_plain(Compacted, StatusCode.OUT_OF_RANGE, "Compacted", "list again, then watch from there")
_plain(StateStoreFull, StatusCode.RESOURCE_EXHAUSTED, "StateStoreFull")
_plain(StateStoreDamaged, StatusCode.DATA_LOSS, "StateStoreDamaged")
_plain(StateStoreDown, StatusCode.UNAVAILABLE, "StateStoreDown", "try again")
_plain(StateStoreError, StatusCode.INTERNAL, "StateStoreError")

_row(NoSuchObject, lambda e: Problem(StatusCode.NOT_FOUND, "NoSuchObject", str(e), {"key": e.key}))
_row(ObjectExists, lambda e: Problem(StatusCode.ALREADY_EXISTS, "ObjectExists", str(e), {"key": e.key}))
_plain(ObjectDamaged, StatusCode.DATA_LOSS, "ObjectDamaged")
_plain(ObjectStoreFull, StatusCode.RESOURCE_EXHAUSTED, "ObjectStoreFull")
_plain(ObjectStoreDown, StatusCode.UNAVAILABLE, "ObjectStoreDown", "try again")
_plain(ObjectStoreRefused, StatusCode.FAILED_PRECONDITION, "ObjectStoreRefused")
_plain(ObjectStoreError, StatusCode.INTERNAL, "ObjectStoreError")

TABLE: Final[Mapping[type[Exception], Callable[[Exception], Problem]]] = _TABLE
"""Exception class to the status it becomes. A class without a row has its nearest base's."""


def problem_of(error: Exception) -> Problem | None:
    """The status that `error` becomes, None where nobody foresaw it: a defect, to be logged and not explained."""
    for type_ in type(error).__mro__:
        if (make := TABLE.get(type_)) is not None:
            return make(error)
    return None
