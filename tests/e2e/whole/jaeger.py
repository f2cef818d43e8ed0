"""What Jaeger has of a trace."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from deploy.stack import Running

SUBMIT = "distroml.api.scheduler.v1.JobService/SubmitJob"


@dataclass(frozen=True)
class Span:
    """A span as Jaeger tells it."""

    id: str
    name: str
    service: str
    parents: tuple[str, ...]
    links: tuple[str, ...]
    tags: dict[str, Any]


class Traces:
    """What Jaeger has of one trace."""

    def __init__(self, jaeger: Running, trace_id: str) -> None:
        self._url = f"http://127.0.0.1:{jaeger.port}/api/traces/{trace_id}"
        self.spans: list[Span] = []

    def has(self, *names: str) -> bool:
        self.spans = [_span(one, span) for one in self._asked() for span in one["spans"]]
        return set(names) <= {span.name for span in self.spans}

    def named(self, name: str, **tags: Any) -> list[Span]:
        wanted = {f"distroml.{key}": value for key, value in tags.items()}
        return [span for span in self.spans if span.name == name and wanted.items() <= span.tags.items()]

    def one(self, name: str, **tags: Any) -> Span:
        found = self.named(name, **tags)
        assert len(found) == 1, (name, tags, found)
        return found[0]

    def path(self, span: Span) -> list[str]:
        """Service and name of the span and of all above it, the root last."""
        by_id = {one.id: one for one in self.spans}
        found = [f"{span.service}: {span.name}"]
        while span.parents:
            span = by_id[span.parents[0]]
            found.append(f"{span.service}: {span.name}")
        return found

    def _asked(self) -> list[dict[str, Any]]:
        try:
            with urllib.request.urlopen(self._url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError:
            return []


def _span(one: dict[str, Any], span: dict[str, Any]) -> Span:
    process = one["processes"][span["processID"]]
    return Span(
        id=span["spanID"],
        name=span["operationName"],
        service=process["serviceName"],
        # A parent that is linked, too, is there as a link only.
        parents=_referred(span, "CHILD_OF") or _referred(span, "FOLLOWS_FROM")[:1],
        links=_referred(span, "FOLLOWS_FROM"),
        tags={tag["key"]: tag["value"] for tag in (*process["tags"], *span["tags"])},
    )


def _referred(span: dict[str, Any], how: str) -> tuple[str, ...]:
    return tuple(one["spanID"] for one in span["references"] if one["refType"] == how)
