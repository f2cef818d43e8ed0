"""What is wrong with a request, whatever the state is: every wrong field is named."""

from __future__ import annotations

import re
from collections.abc import Iterable

from distroml.api.checkpoint.v1 import checkpoint_pb2 as pb
from distroml.checkpoint.domain.state import MAX_KEEP, MAX_WORLD_SIZE, save_number
from distroml.events import is_name
from distroml.rpc.errors import InvalidArgument

MAX_REQUEST_ID_CHARS = 128
MAX_PIN_S = 10 * 365 * 24 * 3600
_PAGE, _MAX_PAGE = 50, 500
_MESSAGE_CHARACTERS = 4000
_SHA256 = re.compile(r"[0-9a-f]{64}")

Violations = list[tuple[str, str]]


def check_job(job: str) -> None:
    """Raise `InvalidArgument` for what cannot be a job."""
    _raise(_job(job))


def check_begin(request: pb.BeginSaveRequest) -> None:
    """Raise `InvalidArgument`."""
    _raise(
        [
            *_job(request.job),
            *_save(request.generation, request.step),
            *_between("world_size", request.world_size, 1, MAX_WORLD_SIZE),
            *_between("keep", request.keep, 0, MAX_KEEP),
        ]
    )


def check_shard(request: pb.ReportShardRequest) -> None:
    """Raise `InvalidArgument`."""
    _raise(
        [
            *_job(request.job),
            *_save(request.generation, request.step),
            *_between("world_size", request.world_size, 1, MAX_WORLD_SIZE),
            *_between("rank", request.rank, 0, max(0, request.world_size - 1)),
            *_hash("shard_hash", request.shard_hash),
            *([] if request.shard_key else [("shard_key", "is empty; it says where the shard manifest lies")]),
            *_between("bytes_written", request.bytes_written, 0, 2**62),
            *_between("bytes_reused", request.bytes_reused, 0, 2**62),
        ]
    )


def check_failed(request: pb.ReportSaveFailedRequest) -> None:
    """Raise `InvalidArgument`."""
    _raise(
        [
            *_job(request.job),
            *_save(request.generation, request.step),
            *_between("rank", request.rank, 0, MAX_WORLD_SIZE - 1),
        ]
    )


def check_corruption(request: pb.ReportCorruptionRequest) -> None:
    """Raise `InvalidArgument`."""
    _raise(
        [
            *_job(request.job),
            *_hash("manifest_hash", request.manifest_hash),
            *(_hash("chunk_hash", request.chunk_hash) if request.chunk_hash else []),
        ]
    )


def check_pin(request: pb.PinCheckpointRequest) -> None:
    """Raise `InvalidArgument`."""
    _raise(
        [
            *_job(request.job),
            *_between("ttl_s", request.ttl_s, 0, MAX_PIN_S),
            *([] if 0 < len(request.owner) <= 200 else [("owner", "says who pins, in 1 to 200 characters")]),
            *_request_id(request.request_id),
        ]
    )


def check_delete(request: pb.DeleteCheckpointRequest) -> None:
    """Raise `InvalidArgument`."""
    _raise([*_job(request.job), *_request_id(request.request_id)])


def page_token(token: str) -> str:
    """The save before which a page begins; raises `InvalidArgument`."""
    if token and save_number(token) is None:
        _raise([("page_token", "is no token of this listing; begin again without one")])
    return token


def page_size(size: int) -> int:
    """How many to list: 50 where nothing is asked for, at most 500."""
    return min(size, _MAX_PAGE) if size > 0 else _PAGE


def cut(message: str) -> str:
    """A message short enough for an event."""
    return message if len(message) <= _MESSAGE_CHARACTERS else message[:_MESSAGE_CHARACTERS] + "… (cut)"


def _job(job: str) -> Violations:
    return [] if is_name(job) else [("job", f"{job[:80]!r} is no job; use the id that `distroml jobs` prints")]


def _save(generation: int, step: int) -> Violations:
    return [*_between("generation", generation, 0, 2**53), *_between("step", step, 0, 2**53)]


def _between(field: str, value: int, low: int, high: int) -> Violations:
    return [] if low <= value <= high else [(field, f"is {value}; it is between {low} and {high}")]


def _request_id(id_: str) -> Violations:
    if len(id_) <= MAX_REQUEST_ID_CHARS and (not id_ or id_.isprintable()):
        return []
    return [("request_id", f"is longer than {MAX_REQUEST_ID_CHARS} characters or not printable; use a fresh UUID")]


def _hash(field: str, value: str) -> Violations:
    return [] if _SHA256.fullmatch(value) else [(field, f"{value[:80]!r} is no SHA-256 in hex")]


def _raise(violations: Iterable[tuple[str, str]]) -> None:
    if found := list(violations):
        raise InvalidArgument(found)
