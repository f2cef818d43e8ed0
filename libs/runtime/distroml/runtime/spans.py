"""Spans of a worker: made of times that are known anyway, and handed to the agent, which exports them.

No SDK and no exporter runs in the training process: a span is one small message in a bounded buffer of the link.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from distroml.observability import names, trace
from distroml.observability.trace import TraceContext
from distroml.runtime.elastic import World
from distroml.runtime.link import Link
from distroml.workerlink import Span, environment


@dataclass(frozen=True, slots=True)
class OpenSpan:
    """A span that has begun; `context` is for whatever is done within it elsewhere."""

    name: str
    context: TraceContext
    start_ns: int
    step: int

    @property
    def traceparent(self) -> str:
        """The context as a header."""
        return self.context.traceparent


class WorkerSpans:
    """The spans of one rank in one generation, under the span in which that formed; none where nobody traces."""

    def __init__(self, link: Link, world: World) -> None:
        above = trace.parse(world.traceparent) if link.attached else None
        self._link, self._world = link, world
        self._above = above if above is not None and above.sampled else None
        self.every_step = self._above is not None and os.environ.get(environment.TRACE_STEPS) == "1"

    def begin(self, name: str, *, step: int = 0, start_ns: int = 0) -> OpenSpan | None:
        """A span from `start_ns` on, now by default; None where nobody traces."""
        if self._above is None:
            return None
        return OpenSpan(name, self._above.child(), start_ns or time.time_ns(), step)

    def end(self, span: OpenSpan | None, *, error: str = "") -> None:
        """The span is over, with `error` where what it stands for failed."""
        if span is None or self._above is None:
            return
        attributes: dict[str, str | int | float | bool] = {
            names.SPAN_GENERATION: self._world.generation,
            names.SPAN_RANK: self._world.rank,
        }
        if span.step:
            attributes[names.SPAN_STEP_NUMBER] = span.step
        self._link.span(
            Span(
                trace_id=span.context.trace_id,
                span_id=span.context.span_id,
                parent_span_id=self._above.span_id,
                name=span.name,
                start_ns=span.start_ns,
                end_ns=time.time_ns(),
                attributes=attributes,
                error=error[:1000],
            )
        )
