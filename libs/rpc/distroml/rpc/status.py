"""`google.rpc.Status` on the wire: ErrorInfo for programs, BadRequest for wrong fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from grpc.aio import AioRpcError

from distroml.rpc.errors import Problem, RemoteError

DOMAIN: Final = "distroml"
KEY: Final = "grpc-status-details-bin"

# gRPC sends trailers in one header frame; a peer refuses more than 8 KiB by default.
_MAX_TEXT: Final = 2048
_MAX_VIOLATIONS: Final = 20


def encode(problem: Problem) -> tuple[str, tuple[str, bytes]]:
    """The status' message and the trailing metadata that carries its details, both bounded."""
    message = _cut(problem.message)
    status = Status(code=problem.code.value[0], message=message)  # pyright: ignore[reportArgumentType] - (int, str)
    info = ErrorInfo(
        reason=problem.reason,
        domain=DOMAIN,
        metadata={_cut(key, 64): _cut(str(value), 256) for key, value in list(problem.metadata.items())[:16]},
    )
    status.details.add().Pack(info)
    if problem.violations:
        fields = [
            BadRequest.FieldViolation(field=_cut(path, 128), description=_cut(what, 256))
            for path, what in problem.violations[:_MAX_VIOLATIONS]
        ]
        status.details.add().Pack(BadRequest(field_violations=fields))
    return message, (KEY, status.SerializeToString())


def decode(error: AioRpcError, peer: str) -> RemoteError:
    """The error as `peer` meant it, or what gRPC itself says went wrong on the way to it."""
    if isinstance(error, RemoteError):
        return error
    # The stubs describe the synchronous API's metadata.
    trailers = cast("Sequence[tuple[str, str | bytes]] | None", error.trailing_metadata())
    for key, value in trailers or ():
        if key == KEY and isinstance(value, bytes):
            return _from_status(error, value)
    return _from_transport(error, peer)


def _from_status(error: AioRpcError, data: bytes) -> RemoteError:
    try:
        status = Status.FromString(data)
    except DecodeError:
        return RemoteError(error.code(), error.code().name, error.details() or "")
    info, bad = ErrorInfo(), BadRequest()
    for detail in status.details:
        # Unpack says whether the detail is of this kind.
        if not detail.Unpack(info):
            detail.Unpack(bad)
    violations = [(violation.field, violation.description) for violation in bad.field_violations]
    return RemoteError(error.code(), info.reason or error.code().name, status.message, dict(info.metadata), violations)


def _from_transport(error: AioRpcError, peer: str) -> RemoteError:
    code, details = error.code(), error.details() or ""
    match code:
        case StatusCode.UNAVAILABLE:
            text = f"nobody answers at {peer} ({details}); is the control plane up? `distroml doctor` says"
            return RemoteError(code, "Unreachable", text, {"peer": peer})
        case StatusCode.DEADLINE_EXCEEDED:
            text = f"{peer} did not answer in time; it may be busy or stopped: try again"
            return RemoteError(code, "DeadlineExceeded", text, {"peer": peer})
        case StatusCode.RESOURCE_EXHAUSTED if "message larger than max" in details:
            text = f"a message is past the cap ({details}); ask for less at once, or send it in parts"
            return RemoteError(code, "MessageTooLarge", text, {"peer": peer})
        case StatusCode.UNIMPLEMENTED:
            text = f"{peer} does not know this call ({details}); it is another service or an older release"
            return RemoteError(code, "Unimplemented", text, {"peer": peer})
        case _:
            return RemoteError(code, code.name.title().replace("_", ""), details or code.name, {"peer": peer})


def _cut(text: str, limit: int = _MAX_TEXT) -> str:
    # Lone surrogates (bytes of a file name) cannot be sent.
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"
