"""Length-prefixed msgpack frames: four bytes of big-endian length, then the message."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from distroml.workerlink.message import MAX_FRAME_BYTES, Message
from distroml.workerlink.toagent import ToAgent
from distroml.workerlink.toworker import ToWorker

_LENGTH = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()
_to_agent: msgspec.msgpack.Decoder[ToAgent] = msgspec.msgpack.Decoder(ToAgent)
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)


class LinkError(Exception):
    """The other end sent what is no message of this protocol; the connection is of no more use."""


def encode(message: Message) -> bytes:
    """One frame.

    Raises:
        LinkError: the message is larger than `MAX_FRAME_BYTES`.
    """
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise LinkError(f"a {type(message).__name__} of {len(body)} bytes exceeds the frame limit {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Cuts a byte stream into frames; feed it whatever arrived."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies completed by `data`; raises `LinkError` for a length past the limit."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise LinkError(
                    f"a frame announces {length} bytes, more than {MAX_FRAME_BYTES}: this is not our protocol"
                )
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield body


def decode_to_agent(body: bytes) -> ToAgent:
    """A worker's message; raises `LinkError` for anything else."""
    try:
        return _to_agent.decode(body)
    except msgspec.MsgspecError as error:
        raise LinkError(f"not a message to the agent: {error}") from error


def decode_to_worker(body: bytes) -> ToWorker:
    """An agent's message; raises `LinkError` for anything else."""
    try:
        return _to_worker.decode(body)
    except msgspec.MsgspecError as error:
        raise LinkError(f"not a message to a worker: {error}") from error
