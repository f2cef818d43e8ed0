"""The messages and methods of etcd's API v3 that we use, with etcd's names and numbers (`etcdserverpb/rpc.proto`)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Generic, TypeVar

from distroml.statestore.etcd.wire import Message

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Response]):
    """One RPC: its path, what it takes and returns, and whether it takes and gives streams of them."""

    path: str
    takes: type[Request]
    returns: type[Response]
    streaming: bool = False


class Target(IntEnum):
    """What a comparison looks at."""

    MOD = 2
    VALUE = 3


LESS = 2
"""`Compare.result` for less than; without one it is for equality."""

ASCENDING = 1
"""`RangeRequest.sort_order` for the lowest first."""
SORT_BY_MOD = 3
"""`RangeRequest.sort_target` for the revision of the last write; its numbers differ from those of comparisons."""

EVENT_DELETE = 1
"""`Event.type` of a deletion."""

NO_DELETE = 1
"""`WatchCreateRequest.filters`: deletions are not sent."""


class ResponseHeader(Message, frozen=True):
    """Heads every response; `revision` is the key space's when it was made."""

    revision: Annotated[int, 3] = 0


class KeyValue(Message, frozen=True):
    """One key as it stands."""

    key: Annotated[bytes, 1] = b""
    create_revision: Annotated[int, 2] = 0
    mod_revision: Annotated[int, 3] = 0
    version: Annotated[int, 4] = 0
    value: Annotated[bytes, 5] = b""
    lease: Annotated[int, 6] = 0


class RangeRequest(Message, frozen=True):
    """Keys from `key` up to but without `range_end`, or `key` alone."""

    key: Annotated[bytes, 1] = b""
    range_end: Annotated[bytes, 2] = b""
    limit: Annotated[int, 3] = 0
    revision: Annotated[int, 4] = 0
    sort_order: Annotated[int, 5] = 0
    sort_target: Annotated[int, 6] = 0
    keys_only: Annotated[bool, 8] = False
    count_only: Annotated[bool, 9] = False
    min_mod_revision: Annotated[int, 10] = 0
    max_mod_revision: Annotated[int, 11] = 0


class RangeResponse(Message, frozen=True):
    """What was found, and whether there is more past the limit."""

    header: Annotated[ResponseHeader | None, 1] = None
    kvs: Annotated[tuple[KeyValue, ...], 2] = ()
    more: Annotated[bool, 3] = False
    count: Annotated[int, 4] = 0


class PutRequest(Message, frozen=True):
    """Write a key, bound to a lease where one is given and else to none."""

    key: Annotated[bytes, 1] = b""
    value: Annotated[bytes, 2] = b""
    lease: Annotated[int, 3] = 0


class DeleteRangeRequest(Message, frozen=True):
    """Delete a key, or a range as in `RangeRequest`."""

    key: Annotated[bytes, 1] = b""
    range_end: Annotated[bytes, 2] = b""


class RequestOp(Message, frozen=True):
    """One operation of a transaction; exactly one of the fields is set."""

    range: Annotated[RangeRequest | None, 1] = None
    put: Annotated[PutRequest | None, 2] = None
    delete_range: Annotated[DeleteRangeRequest | None, 3] = None


class ResponseOp(Message, frozen=True):
    """What a read inside a transaction found; writes say nothing that we use."""

    range: Annotated[RangeResponse | None, 1] = None


class Compare(Message, frozen=True):
    """One condition of a transaction on a key or each of a range; an absent one has revision 0, and no value."""

    result: Annotated[int, 1] = 0
    target: Annotated[int, 2] = Target.MOD
    key: Annotated[bytes, 3] = b""
    mod_revision: Annotated[int | None, 6] = None
    value: Annotated[bytes | None, 7] = None
    range_end: Annotated[bytes, 64] = b""


class TxnRequest(Message, frozen=True):
    """`success` where every comparison holds, else `failure`."""

    compare: Annotated[tuple[Compare, ...], 1] = ()
    success: Annotated[tuple[RequestOp, ...], 2] = ()
    failure: Annotated[tuple[RequestOp, ...], 3] = ()


class TxnResponse(Message, frozen=True):
    """Which of the two was done, and what its operations found."""

    header: Annotated[ResponseHeader | None, 1] = None
    succeeded: Annotated[bool, 2] = False
    responses: Annotated[tuple[ResponseOp, ...], 3] = ()


class CompactionRequest(Message, frozen=True):
    """Forget history before a revision."""

    revision: Annotated[int, 1] = 0
    physical: Annotated[bool, 2] = False


class HeaderResponse(Message, frozen=True):
    """The response of methods that say nothing more."""

    header: Annotated[ResponseHeader | None, 1] = None


class WatchCreateRequest(Message, frozen=True):
    """Begin to watch a range from `start_revision` on.

    `filters` is a list in etcd's contract, of which one element is sent: `NO_DELETE`, or none.
    """

    key: Annotated[bytes, 1] = b""
    range_end: Annotated[bytes, 2] = b""
    start_revision: Annotated[int, 3] = 0
    progress_notify: Annotated[bool, 4] = False
    filters: Annotated[int, 5] = 0
    fragment: Annotated[bool, 8] = False


class WatchRequest(Message, frozen=True):
    """What is sent on a stream of watches."""

    create_request: Annotated[WatchCreateRequest | None, 1] = None


class Event(Message, frozen=True):
    """One change."""

    type: Annotated[int, 1] = 0
    kv: Annotated[KeyValue | None, 2] = None


class WatchResponse(Message, frozen=True):
    """Changes; or the beginning or end of a watch; or, with none of these, how far it has come."""

    header: Annotated[ResponseHeader | None, 1] = None
    created: Annotated[bool, 3] = False
    canceled: Annotated[bool, 4] = False
    compact_revision: Annotated[int, 5] = 0
    cancel_reason: Annotated[str, 6] = ""
    fragment: Annotated[bool, 7] = False
    events: Annotated[tuple[Event, ...], 11] = ()


class LeaseGrantRequest(Message, frozen=True):
    """A lease of so many seconds; the server picks the id."""

    ttl: Annotated[int, 1] = 0


class LeaseGrantResponse(Message, frozen=True):
    """The new lease."""

    id: Annotated[int, 2] = 0
    ttl: Annotated[int, 3] = 0


class LeaseRequest(Message, frozen=True):
    """Revoke, keep alive, or tell about, the lease of this id."""

    id: Annotated[int, 1] = 0


class LeaseKeepAliveResponse(Message, frozen=True):
    """The ttl after the renewal; 0 where the lease is gone."""

    id: Annotated[int, 2] = 0
    ttl: Annotated[int, 3] = 0


class LeaseTimeToLiveResponse(Message, frozen=True):
    """Whole seconds left of those granted; -1 where the lease is gone."""

    ttl: Annotated[int, 3] = 0
    granted_ttl: Annotated[int, 4] = 0


class AuthenticateRequest(Message, frozen=True):
    """A user's name and password."""

    name: Annotated[str, 1] = ""
    password: Annotated[str, 2] = ""


class AuthenticateResponse(Message, frozen=True):
    """A token to send with every call."""

    token: Annotated[str, 2] = ""


class StatusRequest(Message, frozen=True):
    """Ask one member for its status."""


class StatusResponse(Message, frozen=True):
    """One member's status."""

    version: Annotated[str, 2] = ""
    errors: Annotated[tuple[str, ...], 8] = ()
    """Alarms, and that there is no leader."""


RANGE = Method("/etcdserverpb.KV/Range", RangeRequest, RangeResponse)
TXN = Method("/etcdserverpb.KV/Txn", TxnRequest, TxnResponse)
COMPACT = Method("/etcdserverpb.KV/Compact", CompactionRequest, HeaderResponse)
WATCH = Method("/etcdserverpb.Watch/Watch", WatchRequest, WatchResponse, streaming=True)
LEASE_GRANT = Method("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest, LeaseGrantResponse)
LEASE_REVOKE = Method("/etcdserverpb.Lease/LeaseRevoke", LeaseRequest, HeaderResponse)
LEASE_KEEP_ALIVE = Method("/etcdserverpb.Lease/LeaseKeepAlive", LeaseRequest, LeaseKeepAliveResponse, streaming=True)
LEASE_TIME_TO_LIVE = Method("/etcdserverpb.Lease/LeaseTimeToLive", LeaseRequest, LeaseTimeToLiveResponse)
AUTHENTICATE = Method("/etcdserverpb.Auth/Authenticate", AuthenticateRequest, AuthenticateResponse)
STATUS = Method("/etcdserverpb.Maintenance/Status", StatusRequest, StatusResponse)
