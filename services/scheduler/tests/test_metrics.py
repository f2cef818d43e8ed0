"""Metrics of queue, jobs, nodes and slots: what the calls of a life come to, and looks at made-up snapshots."""

from __future__ import annotations

from typing import Any

from prometheus_client import REGISTRY

from distroml.scheduler import metrics
from distroml.scheduler.domain import node as n
from distroml.scheduler.domain.job import JOB, Job
from distroml.scheduler.domain.job import events as e
from distroml.scheduler.domain.ledger import LEDGER, Ledger, NodeWithdrawn, SlotsAssigned, SlotsOffered
from distroml.scheduler.domain.plan import Pending, Snapshot
from distroml.scheduler.domain.spec import JobSpec, Placement, Slot
from services.scheduler.tests.conftest import until


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"distroml_scheduler_{name}", labels) or 0.0


async def test_what_is_committed_is_counted_once(world: Any):
    submitted, failed = value("jobs_submitted_total"), dict(outcome="failed", category="exit_code")
    before, waits = value("jobs_finished_total", **failed), value("queue_wait_seconds_count")
    node = await world.agent("a", 2)
    job = await world.submit()
    await node.told(job.id)
    await world.form(job.id, 1, 1)
    await world.state_of(job.id, "RUNNING")
    held = value("slot_seconds_total", state="held")

    async def told() -> bool:
        return value("jobs", state="running") == 1 and value("node_slots", node="a", state="held") == 2

    await until(told, "the gauges")
    await world.close_job(job.id, 1, "Failed", "EXIT_CODE")
    await world.state_of(job.id, "FAILED")
    assert value("jobs_submitted_total") == submitted + 1
    assert value("jobs_finished_total", **failed) == before + 1
    assert value("queue_wait_seconds_count") == waits + 1

    async def counted() -> bool:
        return value("job_slot_seconds_total", job_id=job.id) > 0 and value("slot_seconds_total", state="held") > held

    await until(counted, "slot-seconds of the job and of all")


def queued(id_: str, *, at_ms: int) -> Job:
    return JOB.fold([e.Submitted(job=id_, spec=JobSpec(name=id_), at_ms=at_ms), e.Queued(at_ms=at_ms)])


def look(gauges: metrics.Gauges, ledger: Ledger, *jobs: Job, now_ms: int, **why: str) -> None:
    pending = {job: Pending(1, reason, "") for job, reason in why.items()}
    nodes = {node: n.Node(id=node, state=n.NodeState.READY) for node in ledger.offers}
    gauges.look(Snapshot({job.id: job for job in jobs}, nodes, ledger), pending, now_ms)


def test_the_queue_tells_how_many_wait_why_and_how_long():
    gauges = metrics.Gauges()
    first, second = queued("first", at_ms=1000), queued("second", at_ms=4000)
    look(gauges, Ledger(), first, second, now_ms=9000, first="NoNodes", second="BehindOthers")
    assert (value("queued_jobs", reason="NoNodes"), value("queued_jobs", reason="BehindOthers")) == (1, 1)
    assert value("queue_oldest_seconds") == 8
    count, total = value("queue_wait_seconds_count"), value("queue_wait_seconds_sum")
    placed = JOB.fold([e.Admitted(at_ms=9500, attempt=1, placement=())], since=first)
    # The second one was cancelled: it never got a gang, and its time in the queue says nothing about others.
    cancelled = JOB.fold([e.Cancelled(at_ms=9500)], since=second)
    look(gauges, Ledger(), placed, cancelled, now_ms=9500)
    assert value("queue_oldest_seconds") == value("queued_jobs", reason="NoNodes") == 0
    assert (value("queue_wait_seconds_count"), value("queue_wait_seconds_sum")) == (count + 1, total + 8.5)
    gauges.clear()


def test_a_lost_node_closes_its_slots_and_many_nodes_share_a_label():
    gauges, slots = metrics.Gauges(), (Slot("0"), Slot("1"))
    ledger = LEDGER.fold(SlotsOffered(node=f"n{i:04}", slots=slots) for i in range(metrics.MAX_NODES + 3))
    gang = (Placement("n0000", ("0",)),)
    ledger = LEDGER.fold([SlotsAssigned(job="job-x", attempt=1, placement=gang)], since=ledger)
    ledger = LEDGER.fold([NodeWithdrawn(node="n0000", lost=True)], since=ledger)
    look(gauges, ledger, now_ms=1)
    states = ("free", "held", "closed")
    assert [value("node_slots", node="n0000", state=state) for state in states] == [0, 1, 1]
    assert [value("node_slots", node="others", state=state) for state in states] == [6, 0, 0]
    assert [value("slots", state=state) for state in states] == [2 * metrics.MAX_NODES + 4, 1, 1]
    series = [s for family in REGISTRY.collect() for s in family.samples if s.name.endswith("_node_slots")]
    assert len(series) == 3 * (metrics.MAX_NODES + 1)
    look(gauges, Ledger(), now_ms=2)
    assert REGISTRY.get_sample_value("distroml_scheduler_node_slots", {"node": "n0001", "state": "free"}) is None
    gauges.clear()
    assert REGISTRY.get_sample_value("distroml_scheduler_slots", {"state": "free"}) is None
