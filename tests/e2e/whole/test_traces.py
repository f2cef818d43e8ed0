"""Spans on their way to a real Jaeger: by the old exporter, too, and counted where there is none to take them."""

from __future__ import annotations

import json
import urllib.request

import pytest

from deploy.stack import Running
from distroml.observability import trace
from distroml.observability.exporting import exporting
from distroml.observability.tracing import Tracing, resource
from tests.e2e.conftest import Plane, tails, wait_for
from tests.e2e.whole.conftest import JOBS, OnStack
from tests.e2e.whole.jaeger import SUBMIT, Traces
from tests.servers import Servers, gone

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture
def jaeger(servers: Servers) -> Running:
    return servers.running["jaeger"]


def page(plane: Plane, service: str, path: str) -> str:
    with urllib.request.urlopen(f"http://{plane.endpoints.metrics[service]}{path}", timeout=10) as answer:
        return answer.read().decode()


def dropped(plane: Plane, service: str) -> float:
    """Spans that the service could not export."""
    lines = page(plane, service, "/metrics").splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("distroml_spans_dropped_total{"))


@pytest.mark.parametrize("way", ["http", "udp"])
def test_the_old_thrift_exporter_delivers(jaeger: Running, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    ports = jaeger.ports
    if way == "http":
        endpoint = f"http://127.0.0.1:{ports['thrift_http']}/api/traces?format=jaeger.thrift"
        monkeypatch.setenv("OTEL_EXPORTER_JAEGER_ENDPOINT", endpoint)
    else:
        monkeypatch.setenv("OTEL_EXPORTER_JAEGER_AGENT_HOST", "127.0.0.1")
        monkeypatch.setenv("OTEL_EXPORTER_JAEGER_AGENT_PORT", str(ports["thrift_udp"]))
    made = exporting({"OTEL_TRACES_EXPORTER": "jaeger"})
    assert made is not None
    tracing = Tracing("scheduler", [made])
    with tracing.span("outer"):
        context = trace.current()
    assert context is not None
    tracing.record("inner", context.child(), parent=context, start_ns=10**18, end_ns=10**18 + 5, of=resource("worker"))
    tracing.close(10)
    traces = Traces(jaeger, context.trace_id)
    wait_for(lambda: traces.has("outer", "inner"), 30, jaeger.log)
    assert traces.path(traces.one("inner")) == ["worker: inner", "scheduler: outer"]


def test_without_jaeger_a_job_runs_as_ever_and_what_is_lost_is_counted(plane: OnStack, jaeger: Running) -> None:
    before = {
        service: dropped(plane, service) for service in ("scheduler", "rendezvous", "checkpoint", "relay", "agent")
    }
    with gone(jaeger):
        job = plane.cli.submit("--workers", "2", "tiny.py", "20", cwd=JOBS)
        assert plane.cli.wait_state(job, "SUCCEEDED", "FAILED") == "SUCCEEDED", tails(plane.folder)
        for service, count in before.items():
            wait_for(lambda s=service, count=count: dropped(plane, s) > count, 30, lambda: tails(plane.folder))
            health = json.loads(page(plane, service, "/healthz"))
            assert health["status"] == "DEGRADED", "it serves, and says what is amiss"
            assert health["parts"]["traces"]["why"]
    after = plane.cli.submit("--workers", "2", "--env", "DISTROML_TRACE_STEPS=1", "tiny.py", "20", cwd=JOBS)
    assert plane.cli.wait_state(after, "SUCCEEDED", "FAILED") == "SUCCEEDED", tails(plane.folder)
    traces = Traces(jaeger, plane.ask("job", "show", after)["trace_id"])
    wait_for(lambda: traces.has(SUBMIT, "start worker", "close attempt"), 30, lambda: f"{traces.spans}")
    steps = sorted(one.tags["distroml.step"] for one in traces.named("step", rank=0))
    assert steps == list(range(2, 21)), "the first one has a name of its own"
    wait_for(lambda: json.loads(page(plane, "agent", "/healthz"))["status"] == "SERVING", 30)
