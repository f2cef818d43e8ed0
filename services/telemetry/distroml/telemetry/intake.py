"""What agents push, checked before it goes further: anything may stand in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from distroml.api.telemetry.v1.telemetry_pb2 import (
    LogBlock,
    LogRecord,
    PushRequest,
    ResourceSample,
    SpanRecord,
    StepSample,
)
from distroml.events import is_name
from distroml.logstore import Block
from distroml.telemetry.domain.rows import NewLine

MAX_RANK = 1 << 16
MAX_EXTRA = 32
MAX_WAYS = 64
MAX_NAME = 128
MAX_RECORDS = 20_000
_CUT = " … [cut]"
_MAX_INT = 1 << 62
_WIRE = "wire_bytes"
_OWN_NAMES = frozenset(
    ["loss", "grad_norm", "step_s", "tokens_per_s", "samples_per_s", "data_wait_s", "comm_wait_s", "learning_rate",
     "samples", "tokens"]
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Batch:
    """Records fit to be stored, and how many were not."""

    node: str
    steps: Sequence[StepSample] = ()
    resources: Sequence[ResourceSample] = ()
    lines: Sequence[NewLine] = ()
    spans: Sequence[SpanRecord] = ()
    bytes: int = 0
    malformed_samples: int = 0
    malformed_lines: int = 0
    jobs: set[str] = field(default_factory=set[str])

    @property
    def records(self) -> int:
        """How many there are."""
        return len(self.steps) + len(self.resources) + len(self.lines) + len(self.spans)


def checked(request: PushRequest, *, line_bytes: int) -> Batch:
    """The sound part of a push. A batch past `MAX_RECORDS` of a kind loses the rest, counted."""
    single = [new_line(r, line_bytes) for r in request.logs[:MAX_RECORDS] if _record_is_sound(r)]
    lines, in_blocks = _unpacked(request.log_blocks, MAX_RECORDS - len(single), line_bytes)
    lines = single + lines
    steps = [s for s in request.steps[:MAX_RECORDS] if _step_is_sound(s)]
    resources = [r for r in request.resources[:MAX_RECORDS] if _resource_is_sound(r)]
    spans = [s for s in request.spans[:MAX_RECORDS] if _span_is_sound(s)]
    for resource in resources:
        resource.node = resource.node or request.node[:MAX_NAME]
    return Batch(
        node=request.node,
        steps=steps,
        resources=resources,
        lines=lines,
        spans=spans,
        bytes=request.ByteSize(),
        malformed_samples=len(request.steps) + len(request.resources) - len(steps) - len(resources),
        malformed_lines=len(request.logs) + in_blocks - len(lines),
        jobs={r.job for records in (steps, resources, lines, spans) for r in records},
    )


def _in_range(*numbers: int) -> bool:
    return all(0 <= n < _MAX_INT for n in numbers)


def _step_is_sound(s: StepSample) -> bool:
    if not (is_name(s.job) and 0 <= s.rank < MAX_RANK and s.step_s >= 0):
        return False
    if not _in_range(s.generation, s.step, s.total_steps, s.at_ms, s.samples, s.tokens, s.world_size):
        return False
    for name in [n for n in s.extra if len(n) > MAX_NAME or not n or n in _OWN_NAMES or n.startswith(_WIRE)] + sorted(
        s.extra
    )[MAX_EXTRA:]:
        s.extra.pop(name, None)
    for way in [w for w, sent in s.wire_bytes.items() if len(w) > MAX_NAME or not _in_range(sent)]:
        s.wire_bytes.pop(way, None)
    for way in sorted(s.wire_bytes)[MAX_WAYS:]:
        s.wire_bytes.pop(way, None)
    return True


def _resource_is_sound(r: ResourceSample) -> bool:
    names_fit = len(r.worker) <= MAX_NAME and len(r.node) <= MAX_NAME
    return is_name(r.job) and names_fit and 0 <= r.rank < MAX_RANK and _in_range(r.at_ms, r.rss_bytes, r.gpu_bytes)


def _unpacked(blocks: Iterable[LogBlock], most: int, line_bytes: int) -> tuple[list[NewLine], int]:
    """Lines of the sound blocks for which there is room, each as if it had come alone, and how many lines there were.

    What lines have in common is looked at once: there are thousands in a block.
    """
    found: list[NewLine] = []
    told = 0
    for block in blocks:
        lines = Block(
            job=block.job,
            worker=block.worker,
            incarnation=block.incarnation,
            stream=block.stream,
            rank=block.rank,
            generation=block.generation,
            at_ms=block.at_ms,
            trace_id=block.trace_id,
            offset=block.offset,
            data=block.data if block.data.endswith(b"\n") else block.data + b"\n",
        )
        told += lines.count
        if lines.count > most - len(found) or not _line_is_sound(block):
            continue
        before = block.job, block.worker, block.incarnation, block.stream
        where = block.rank, block.generation, block.at_ms
        for offset, text, said in lines.each():
            text, size = _cut(text, line_bytes)
            job, worker, incarnation, stream = before
            found.append(NewLine(job, size, worker, incarnation, stream, offset, *where, text, block.attempt, *said))
    return found, told


def _line_is_sound(r: LogRecord | LogBlock) -> bool:
    """Whether it is, but for what it says of itself."""
    return (
        is_name(r.job)
        and r.stream in ("stdout", "stderr")
        and len(r.worker) <= MAX_NAME
        and -1 <= r.rank < MAX_RANK
        and _in_range(r.generation, r.at_ms, r.offset, r.incarnation, r.attempt)
        and len(r.trace_id) <= MAX_NAME
    )


def _record_is_sound(r: LogRecord) -> bool:
    return _line_is_sound(r) and len(r.level) <= MAX_NAME and len(r.span_id) <= MAX_NAME


def new_line(r: LogRecord, line_bytes: int) -> NewLine:
    """A sound record as the store takes it, of at most `line_bytes` of text."""
    text, size = _cut(r.text, line_bytes)
    return NewLine(
        r.job, size, r.worker, r.incarnation, r.stream, r.offset, r.rank, r.generation, r.at_ms, text, r.attempt,
        r.level, r.trace_id, r.span_id,
    )  # fmt: skip


def _span_is_sound(s: SpanRecord) -> bool:
    texts = (s.trace_id, s.span_id, s.parent_span_id, s.name)
    if not is_name(s.job) or any(len(t) > MAX_NAME for t in texts) or not _in_range(s.start_ns, s.end_ns):
        return False
    return len(s.attributes) <= MAX_EXTRA and all(len(v) <= 1024 for v in s.attributes.values())


def _cut(text: str, limit: int) -> tuple[str, int]:
    """The text, cut where it has more than `limit` bytes, and how many bytes it has then."""
    size = len(text) if text.isascii() else len(text.encode())
    if size > limit:
        text = text.encode()[: limit - len(_CUT.encode())].decode(errors="ignore") + _CUT
        size = len(text.encode())
    return text, size
