"""Lines as documents in ECS shape, and back."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from itertools import repeat
from typing import Any, Final

import msgspec

from distroml.logstore.blocks import Block, Said
from distroml.logstore.elastic.template import DATASET
from distroml.logstore.port import Line
from distroml.logstore.words import joined_all
from distroml.observability import names

SERVICE: Final = "worker"
# Each byte is a character and comes back as itself: text is put together in half the time that bytes take.
_ANY: Final = "latin-1"
# What must not stand in a JSON string, but for the ends of lines.
_CONTROLS: Final = bytes(code for code in range(32) if code != 10)
_CONTROL: Final = re.compile(b"[" + re.escape(_CONTROLS) + b"]")


def encode(block: Block, host: str) -> bytes:
    """For each line the two lines of a bulk request that create its document, all in one piece."""
    id_, own, common = _in_common(block, host)
    said = block.said()
    named = map(_named, said) if isinstance(said, list) else repeat(_named(next(said)))
    messages = _escaped(block.data).decode(_ANY).split("\n")[:-1]
    words = joined_all(block.data).decode(_ANY).split("\n")
    return "".join(
        [
            f'{{"create":{{"_id":"{id_}{at}"}}}}\n{{"event.id":"{id_}{at}","event.sequence":{at},"message":"{message}",'
            f'"distroml":{{"words":"{wording}",{own}}},{common}{names_}}}\n'
            for at, message, wording, names_ in zip(map(str, block.offsets()), messages, words, named, strict=False)
        ]
    ).encode(_ANY)


def _in_common(block: Block, host: str) -> tuple[str, str, str]:
    """What the documents of all lines of a block have in common: of their ids, below `distroml`, and beside it."""
    common = {
        names.TIMESTAMP: block.at_ms,
        names.ECS_VERSION: names.ECS,
        names.SERVICE: SERVICE,
        "host.name": host,
        "event.dataset": DATASET,
    }
    own = {
        "job": block.job,
        "worker": block.worker,
        "stream": block.stream,
        "rank": block.rank,
        "attempt": block.attempt,
        "incarnation": block.incarnation,
        "generation": block.generation,
    }
    return _inside(block.id), _inside(own), _inside(common)


def _inside(value: object) -> str:
    """JSON without its quotes or braces."""
    return msgspec.json.encode(value)[1:-1].decode(_ANY)


@lru_cache(maxsize=1024)
def _named(said: Said) -> str:
    """The fields of what a line says of itself."""
    fields = zip((names.LEVEL, names.TRACE_ID, names.SPAN_ID), said, strict=True)
    return "".join(f',"{name}":{msgspec.json.encode(value).decode(_ANY)}' for name, value in fields if value)


def _escaped(lines: bytes) -> bytes:
    """Lines as they stand inside JSON strings, each with its end."""
    if not lines.isascii():
        lines = lines.decode(errors="replace").encode()
    if b"\r" in lines:
        lines = lines.replace(b"\r\n", b"\n")
    lines = lines.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    if len(lines.translate(None, _CONTROLS)) < len(lines):
        lines = _CONTROL.sub(lambda found: b"\\u%04x" % found[0][0], lines)
    return lines


def decode(source: dict[str, Any]) -> Line:
    """The line of a document that `encode` made, once it is stored."""
    own: dict[str, Any] = source["distroml"]
    return Line(
        job=own["job"],
        worker=own["worker"],
        incarnation=own["incarnation"],
        stream=own["stream"],
        offset=source["event.sequence"],
        rank=own["rank"],
        generation=own["generation"],
        attempt=own["attempt"],
        at_ms=_at_ms(source[names.TIMESTAMP]),
        text=source[names.MESSAGE],
        level=source.get(names.LEVEL, ""),
        trace_id=source.get(names.TRACE_ID, ""),
        span_id=source.get(names.SPAN_ID, ""),
    )


def _at_ms(said: int | str) -> int:
    """Time as we write it, or as somebody wrote it who indexed the documents anew."""
    if isinstance(said, int):
        return said
    return round(datetime.fromisoformat(said).astimezone(UTC).timestamp() * 1000)
