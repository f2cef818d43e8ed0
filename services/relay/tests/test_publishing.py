"""Publishing in the traces of what is published, as the relay records it over any log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from distroml.events import Context, Position, Recorded
from distroml.eventstore.log import Place
from distroml.eventstore.relay.port import LogMoved, Tail
from distroml.observability.tracing import Tracing
from distroml.relay.publishing import TracedLog

CONTEXT = Context(deployment="d", project="p", actor="ann", causation_id="c", correlation_id="r", time_ms=1)
SENT, OTHER = "4bf92f3577b34da6a3ce929d0e0e4736", "0af7651916cd43dd8448eb211c80319c"
END = Tail("made-once", 7, (7, 0))


class FakeLog:
    """Takes everything, or moves."""

    def __init__(self) -> None:
        self.taken: list[Recorded] = []
        self.moved = False

    async def tail(self) -> Tail:
        return END

    async def publish(self, tail: Tail, previous: Place, events: Sequence[Recorded]) -> Tail:
        if self.moved:
            raise LogMoved("another one was here")
        self.taken += events
        return END


def event(number: int, trace_id: str = "", span: int = 1, *, sampled: bool = True) -> Recorded:
    traceparent = f"00-{trace_id}-{span:016x}-{int(sampled):02x}" if trace_id else ""
    context = replace(CONTEXT, traceparent=traceparent)
    return Recorded(
        id=f"e{number}", type="test.Told", schema=1, public=True, data=b"{}", stream="test/it/a", version=number,
        position=Position("log", number, 0), context=context,
    )  # fmt: skip


def shown(span: ReadableSpan) -> tuple[str, str, dict[str, object], list[str]]:
    own, above = span.get_span_context(), span.parent
    assert own is not None
    assert above is not None
    assert span.kind is SpanKind.CLIENT
    assert span.name == "publish the-log"
    links = [f"{link.context.span_id:x}" for link in span.links]
    return f"{own.trace_id:032x}", f"{above.span_id:x}", dict(span.attributes or {}), links


async def test_a_batch_is_one_span_in_each_sampled_trace_and_linked_to_its_commits() -> None:
    kept, log = InMemorySpanExporter(), FakeLog()
    traced = TracedLog(log, "the-log", Tracing("relay", [SimpleSpanProcessor(kept)]))
    batch = [event(1), event(2, SENT, 1), event(3, SENT, 1), event(4, OTHER, 5), event(5, SENT, 2)]
    silent = [event(6, SENT, 3, sampled=False), event(7, OTHER, 6, sampled=False), event(8)]
    assert await traced.tail() == END
    assert await traced.publish(END, (1, 0), [*batch, *silent]) == END
    assert log.taken == [*batch, *silent]
    same = {"messaging.system": "nats", "messaging.operation.type": "send", "messaging.operation.name": "publish",
            "messaging.destination.name": "the-log"}  # fmt: skip
    assert [shown(span) for span in kept.get_finished_spans()] == [
        (SENT, "1", {**same, "messaging.batch.message_count": 3}, ["1", "2"]),
        (OTHER, "5", {**same, "messaging.message.id": "e4"}, ["5"]),
    ]
    kept.clear()
    # 300 a second of what nobody samples, and as many as a batch holds of one trace that somebody does.
    await traced.publish(END, (1, 0), [event(number, SENT, number, sampled=False) for number in range(1, 301)])
    assert kept.get_finished_spans() == ()
    await traced.publish(END, (1, 0), [event(number, SENT, number) for number in range(1, 301)])
    (one,) = kept.get_finished_spans()
    assert (one.attributes or {})["messaging.batch.message_count"] == 300
    assert len(one.links) == 128

    kept.clear()
    log.moved = True
    with pytest.raises(LogMoved):
        await traced.publish(END, (1, 0), [event(2, SENT)])
    (failed,) = kept.get_finished_spans()
    assert failed.status.description == "LogMoved: another one was here"
