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
    lines: Sequence[LogRecord] = ()
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
    single = request.logs[:MAX_RECORDS]
    blocks, over = _unpacked(request.log_blocks, MAX_RECORDS - len(single))
    steps = [s for s in request.steps[:MAX_RECORDS] if _step_is_sound(s)]
    resources = [r for r in request.resources[:MAX_RECORDS] if _resource_is_sound(r)]
    lines = [_cut(r, line_bytes) for r in (*single, *blocks) if _line_is_sound(r)]
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
        malformed_lines=len(request.logs) + len(blocks) + over - len(lines),
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


def _unpacked(blocks: Iterable[LogBlock], most: int) -> tuple[list[LogRecord], int]:
    """Lines of blocks, each as if it had come alone, and how many lines are in blocks for which there is no room."""
    records: list[LogRecord] = []
    over = 0
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
        if lines.count > most - len(records):
            over += lines.count
            continue
        common = LogRecord(
            job=block.job,
            rank=block.rank,
            worker=block.worker,
            generation=block.generation,
            stream=block.stream,
            at_ms=block.at_ms,
            incarnation=block.incarnation,
            attempt=block.attempt,
        )
        for offset, text, said in lines.each():
            record = LogRecord()
            record.CopyFrom(common)
            record.offset, record.text = offset, text
            record.level, record.trace_id, record.span_id = said
            records.append(record)
    return records, over


def _line_is_sound(r: LogRecord) -> bool:
    return (
        is_name(r.job)
        and r.stream in ("stdout", "stderr")
        and len(r.worker) <= MAX_NAME
        and -1 <= r.rank < MAX_RANK
        and _in_range(r.generation, r.at_ms, r.offset, r.incarnation, r.attempt)
        and all(len(text) <= MAX_NAME for text in (r.level, r.trace_id, r.span_id))
    )


def _span_is_sound(s: SpanRecord) -> bool:
    texts = (s.trace_id, s.span_id, s.parent_span_id, s.name)
    if not is_name(s.job) or any(len(t) > MAX_NAME for t in texts) or not _in_range(s.start_ns, s.end_ns):
        return False
    return len(s.attributes) <= MAX_EXTRA and all(len(v) <= 1024 for v in s.attributes.values())


def _cut(record: LogRecord, limit: int) -> LogRecord:
    if len(record.text) > limit or len(record.text.encode()) > limit:
        record.text = record.text.encode()[: limit - len(_CUT.encode())].decode(errors="ignore") + _CUT
    return record
