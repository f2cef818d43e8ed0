"""What a failed call of etcd means: whether it may be made again, and which error of the state store it is."""

from __future__ import annotations

from enum import Enum

from grpc import StatusCode
from grpc.aio import AioRpcError

from distroml.statestore.port import (
    Compacted,
    LeaseGone,
    StateStoreDamaged,
    StateStoreDown,
    StateStoreError,
    StateStoreFull,
)


class Verdict(Enum):
    """What is known about a failed call."""

    UNSENT = "it reached no server that took it up: any call may be made again, at once elsewhere"
    STALE_TOKEN = "it was refused for its token: any call may be made again with a new one"
    LOST = "it may have been carried out: only a call that may happen twice may be made again"
    REFUSED = "it was answered, and making it again gives the same answer"


# gRPC's own words where no connection came to be, and etcd's where a member passes nothing on.
_UNSENT = (
    *("failed to connect to all addresses", "errors resolving", "DNS resolution failed"),
    *("etcdserver: no leader", "etcdserver: too many requests"),
)
_STALE = ("etcdserver: invalid auth token", "etcdserver: revision of auth store is old")
_LOST = frozenset(
    {StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED, StatusCode.ABORTED}
    # A connection cut in the middle of an answer.
    | {StatusCode.INTERNAL, StatusCode.UNKNOWN}
)

# What gRPC's details say of a connection that fails, and what it means and what to do: with TLS, and without.
_ANY_HINTS = (
    ("Connection refused", "nothing listens there: start etcd, or check host and port"),
    ("errors resolving", "its host name is unknown: check it"),
    ("DNS resolution failed", "its host name is unknown: check it"),
)
_TLS_HINTS = (
    *_ANY_HINTS,
    (
        "CERTIFICATE_VERIFY_FAILED",
        "no authority that we trust signed its certificate: give the one that did (DISTROML_ETCD_CA)",
    ),
    ("Hostname Verification", "its certificate is for another host: use a name that the certificate has"),
    ("Unwrap failed", "it refuses our client certificate, or misses one: give one that its authority signed"),
    ("alert", "it refuses our client certificate, or misses one: give one that its authority signed"),
    ("WRONG_VERSION_NUMBER", "it speaks no TLS there: name it http://, or give etcd a certificate"),
    ("Socket closed", "it speaks no TLS there: name it http://, or give etcd a certificate"),
    ("Connection reset", "it speaks no TLS there: name it http://, or give etcd a certificate"),
)
_PLAIN_HINTS = (
    *_ANY_HINTS,
    ("SETTINGS frame", "what answers there is no etcd: check host and port"),
    ("Socket closed", "it wants TLS, or is no etcd: name it https://, or check host and port"),
    ("Connection reset", "it wants TLS, or is no etcd: name it https://, or check host and port"),
)

# What etcd refuses, by its own words, and what to do.
_REFUSALS = (
    ("authentication failed", "it does not take this user and password: check both"),
    ("authentication is not enabled", "a user is given, but its authentication is off: enable it, or give no user"),
    ("user name is empty", "it wants a user and a password: give them"),
    ("permission denied", "the user may not touch this deployment's keys: grant its role `readwrite` on their prefix"),
)


def judge(error: AioRpcError) -> Verdict:
    """What is known about a call that failed with `error`."""
    details = error.details() or ""
    if any(words in details for words in _STALE):
        return Verdict.STALE_TOKEN
    if any(words in details for words in _UNSENT):
        return Verdict.UNSENT
    return Verdict.LOST if error.code() in _LOST else Verdict.REFUSED


def translate(error: AioRpcError, endpoint: str, *, begun: bool = True) -> StateStoreError:
    """The state store's error for a call to `endpoint` that failed with `error`, and whether it had begun by then."""
    code, details = error.code(), error.details() or ""
    said = details.removeprefix("etcdserver: ")
    if code is StatusCode.NOT_FOUND and "lease" in details:
        return LeaseGone("the lease is not alive: it expired or was revoked")
    if code is StatusCode.OUT_OF_RANGE and "compacted" in details:
        return Compacted("etcd has compacted the asked revision: list again, then watch from there")
    if code is StatusCode.RESOURCE_EXHAUSTED and "space exceeded" in details:
        return StateStoreFull(
            f"etcd at {endpoint} has reached its quota; nothing was written. Compact and defragment it, or raise"
            " --quota-backend-bytes, then `etcdctl alarm disarm`"
        )
    if code is StatusCode.DATA_LOSS:
        return StateStoreDamaged(f"etcd at {endpoint}: {said}; restore the member from a snapshot or its peers")
    if code is StatusCode.UNIMPLEMENTED:
        return StateStoreDown(f"{endpoint} answers gRPC but is no etcd ({details}): check host and port")
    for words, what_to_do in _REFUSALS:
        if words in details:
            return StateStoreDown(f"etcd at {endpoint}: {said}; {what_to_do}")
    if judge(error) is Verdict.UNSENT:
        return StateStoreDown(f"etcd at {endpoint} cannot be reached: {_connection(endpoint, details)}")
    why = "did not answer in time" if code is StatusCode.DEADLINE_EXCEEDED else f"failed: {said} ({code.name})"
    outcome = "it is not known what became of the call" if begun else "the call was not made"
    return StateStoreDown(f"etcd at {endpoint} {why}; {outcome}")


def _connection(endpoint: str, details: str) -> str:
    """Why there is no connection, and what to do where the details give it away."""
    hints = _TLS_HINTS if endpoint.startswith("https:") else _PLAIN_HINTS
    return next((f"{hint} ({details})" for words, hint in hints if words in details), details)
