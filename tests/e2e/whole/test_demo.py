"""The demo on every server of the stack: afterwards each of them tells of it, and of nobody else.

Prometheus is asked in test_demo_metrics.py; what is wrong with a server is said in test_stack.py.
"""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.cli import client
from distroml.cli.plane import profile
from distroml.telemetry.history.postgres import schema_of
from tests.e2e.conftest import tails, wait_for
from tests.e2e.whole.conftest import GRAFANA, Demo, OnStack
from tests.e2e.whole.jaeger import SUBMIT, Span, Traces
from tests.servers import Servers

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
EMBEDDED = ("control.sqlite", "history.sqlite", "objects")
"""What a data folder holds that has no servers."""


def history(plane: OnStack) -> t.ListHistoryResponse:
    async def ask(services: client.Plane) -> t.ListHistoryResponse:
        return await services.telemetry.ListHistory(t.ListHistoryRequest())

    return client.call(plane.folder.path, ask)


def test_nothing_of_the_demo_is_embedded_and_doctor_finds_every_server_well(demo: Demo, servers: Servers) -> None:
    assert not [name for name in EMBEDDED if (demo.folder.path / name).exists()]

    checked = ("etcd", "nats", "objects", "history", "log store", *demo.folder.services())
    found: dict[str, str] = {}

    def all_well() -> bool:
        found.update({one["check"]: f"{one['verdict']}: {one['text']}" for one in demo.cli.json("doctor", code=None)})
        return all(found[check].startswith("ok: ") for check in checked)

    # What was slow to answer on a busy machine is well at the next look.
    wait_for(all_well, 60, lambda: f"{found}")
    assert f"127.0.0.1:{servers.running['postgres'].port}" in found["history"]
    assert f"127.0.0.1:{servers.running['elasticsearch'].port}" in found["log store"]


def test_postgresql_has_its_history_and_of_each_deployment_its_own(demo: Demo, plane: OnStack) -> None:
    wait_for(lambda: [job.id for job in history(demo).jobs] == [demo.job], 60, lambda: tails(demo.folder))
    assert demo.job not in {job.id for job in history(plane).jobs}
    with psycopg.connect(profile.environment_of(demo.folder)["DISTROML_POSTGRES"]) as connection:
        found = connection.execute("SELECT nspname FROM pg_namespace").fetchall()
    assert {(schema_of(one.folder.deployment()),) for one in (demo, plane)} <= set(found)
    kept = history(demo).jobs
    rebuilt = json.loads(demo.told("history", "rebuild", "--json").splitlines()[-1])
    assert rebuilt["kept_in"] == "postgres"
    assert history(demo).jobs == kept
    [row] = demo.ask("cost", "--job", demo.job)["rows"]
    assert row["slot_hours"] > 0


def test_elasticsearch_finds_what_its_workers_wrote(demo: Demo) -> None:
    async def search(services: client.Plane) -> t.SearchLogsResponse:
        wanted = t.SearchLogsRequest(job=demo.job, text='"held out loss"', ranks=[0])
        return await services.telemetry.SearchLogs(wanted)

    def page() -> t.SearchLogsResponse:
        return client.call(demo.folder.path, search)

    wait_for(lambda: page().records, 60, lambda: tails(demo.folder))
    assert page().store == "elasticsearch"
    trace_id = demo.ask("job", "show", demo.job)["trace_id"]
    assert {record.trace_id for record in page().records} == {trace_id}, "each line is of its job's trace"


def data(demo: Demo, name: str) -> list[dict[str, Any]]:
    return [e["data"] for e in demo.cli.events(demo.job) if e["type"].endswith("." + name)]


def test_jaeger_has_it_as_one_trace_across_processes_and_the_log(
    demo: Demo, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    jaeger, job = servers.running["jaeger"], demo.job
    trace_id = demo.ask("job", "show", job)["trace_id"]
    # A shell that knows neither server hears of them from the control plane.
    for name in ("DISTROML_JAEGER_UI", "DISTROML_GRAFANA_URL"):
        monkeypatch.delenv(name)
    shown = demo.cli("job", "show", job).stdout
    assert f"http://127.0.0.1:{jaeger.port}/trace/{trace_id}" in shown
    assert f"{GRAFANA}/d/distroml-job?var-job_id={job}" in shown
    victim = next(e["worker"] for e in data(demo, "worker.Exited") if int(e.get("signal", 0)) == 9)
    last = max(int(e["step"]) for e in data(demo, "Committed"))
    traces = Traces(jaeger, trace_id)
    wait_for(lambda: traces.has("recover", "close attempt", "checkpoint"), 30, lambda: f"{traces.spans}")

    submit = [f"scheduler: {SUBMIT}"]
    first = ["rendezvous: form generation", *submit]
    second = ["rendezvous: form generation", "rendezvous: recover", *submit]
    assert traces.path(traces.one(SUBMIT)) == submit
    assert traces.path(traces.one("schedule", commands="Admit")) == ["scheduler: schedule", *submit]
    assert traces.path(traces.one("prepare")) == ["agent: prepare", *submit]
    assert traces.path(traces.one("form generation", generation=1)) == first
    assert traces.path(traces.one("form generation", generation=2)) == second
    assert traces.path(traces.one("close attempt", outcome="Succeeded")) == ["rendezvous: close attempt", *submit]
    for generation, above, started in ((1, first, 2), (2, second, 1)):
        starts = traces.named("start worker", generation=generation)
        assert len(starts) == started, "the survivor stays in its process"
        assert all(traces.path(one) == ["agent: start worker", *above] for one in starts)
        for name in ("set up", "restore", "first step"):
            spans = traces.named(name, generation=generation)
            assert {one.tags["distroml.rank"] for one in spans} == {0, 1}, name
            assert all(traces.path(one) == [f"worker: {name}", *above] for one in spans), name
    assert not traces.named("step"), "steps have no spans unless a job asks for them"

    recovery = traces.one("recover")
    assert recovery.tags["distroml.worker"] == victim
    reaction = traces.one("process scheduler.rendezvous", event="rendezvous.generation.GenerationBroken")
    assert traces.path(reaction) == ["scheduler: process scheduler.rendezvous", "rendezvous: recover", *submit]

    saves = traces.named("checkpoint", step=last)
    assert [traces.path(save) for save in saves] == [["worker: checkpoint", *second]] * 2
    call = "distroml.api.checkpoint.v1.CheckpointService/ReportShard"
    reported = [f"checkpoint: {call}", f"agent: {call}", "worker: checkpoint", *second]
    events = traces.named("process checkpoint.keeper", event="checkpoint.Committed")
    assert any(traces.path(one)[-len(reported) :] == reported for one in events), "the event tells who reported last"

    server = next(one for one in traces.named(call) if one.service == "checkpoint")
    assert server.tags["span.kind"] == "server"
    assert (server.tags["rpc.system"], server.tags["rpc.method"]) == ("grpc", "ReportShard")
    assert server.tags["rpc.grpc.status_code"] == 0
    assert server.tags["deployment.environment.name"] == "tests"
    assert server.tags["distroml.deployment"] == demo.folder.deployment()

    # Whoever reacts goes on from the span that wrote the event, which no queue changes; that the log came between is
    # told by the relay, below the first span whose events it published, with links to all of them.
    reactions = [span for span in traces.spans if span.name.startswith("process ")]
    wrote = {span.parents[0] for span in (*reactions, reaction)}

    def published() -> list[Span]:
        traces.has()
        return [span for span in traces.spans if span.name.startswith("publish ")]

    wait_for(lambda: wrote <= {link for span in published() for link in span.links}, 30, lambda: f"{traces.spans}")
    assert {(span.service, span.tags["messaging.system"]) for span in published()} == {("relay", "nats")}
    assert all(span.parents[0] == span.links[0] for span in published())
    assert any(span.parents == (traces.one(SUBMIT).id,) for span in published())
