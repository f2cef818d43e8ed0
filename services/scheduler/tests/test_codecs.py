from __future__ import annotations

from distroml.eventstore.codec import StateCodec
from distroml.rpc.publicevents import check_codec
from distroml.scheduler.adapters import codecs
from distroml.scheduler.adapters.messages import STATES, category_message, category_of
from distroml.scheduler.domain import ledger as pool
from distroml.scheduler.domain import node as n
from distroml.scheduler.domain.job import JOB, Job, JobState
from distroml.scheduler.domain.job import events as e
from distroml.scheduler.domain.ledger import LEDGER, Ledger
from distroml.scheduler.domain.spec import (
    CheckpointPolicy,
    FailureCategory,
    JobSpec,
    Placement,
    RetryPolicy,
    Slot,
    WorkerRange,
)

SPEC = JobSpec(
    name="gpt",
    project="lab",
    command=("-m", "train"),
    env={"A": "1"},
    bundle="b" * 64,
    python="/usr/bin/python3",
    workers=WorkerRange(2, 8, 2),
    priority=-3,
    retry=RetryPolicy(0, -1),
    checkpoint=CheckpointPolicy(7),
    grace_s=5,
    hang_timeout_s=60,
    labels={"team": "x"},
    packages="c" * 64,
    dataset="d",
    log_cap_bytes=1 << 30,
    compress="powersgd:4",
    sync_every=50,
    backend="gloo",
)
GANG = (Placement("a", ("0", "1")), Placement("b", ("0",)))


def test_every_job_event_survives_the_log():
    samples: list[e.Event] = [
        e.Submitted(job="j", spec=SPEC, at_ms=1, actor="ann"),
        e.Validated(at_ms=2),
        e.Queued(at_ms=3, reason="Submitted"),
        e.Admitted(at_ms=4, attempt=1, placement=GANG),
        e.AttemptStarted(at_ms=4, attempt=1, placement=GANG, failures_left=3),
        e.Started(at_ms=5, attempt=1, generation=9),
        e.Progressed(at_ms=6, step=10, total_steps=1 << 40),
        e.PauseRequested(at_ms=7, actor="ann"),
        e.Paused(at_ms=8),
        e.Resumed(at_ms=9, actor="ann"),
        e.ResizeRequested(at_ms=10, min_workers=1, max_workers=2, actor="ann"),
        e.Resized(at_ms=11, placement=GANG),
        e.PriorityChanged(at_ms=12, priority=-1, actor="ann"),
        e.PreemptionRequested(at_ms=13, reason="NodeLost", message="m"),
        e.Preempted(at_ms=14, reason="NodeLost", counted=False),
        e.Requeued(at_ms=15, reason="NodeLost", message="m"),
        e.FailureCounted(at_ms=16, category=FailureCategory.HANG, generation=2, message="m"),
        e.Succeeded(at_ms=17),
        e.Failed(at_ms=18, category=FailureCategory.UNSPECIFIED, reason="R", message="m"),
        e.CancelRequested(at_ms=19, actor="ann", why="w"),
        e.Cancelled(at_ms=20),
    ]
    check_codec(codecs.JOB_EVENTS, {type(sample): sample for sample in samples})


def test_every_node_event_survives_the_log():
    slots = (Slot("0", "cuda", "cuda:0"),)
    samples: list[n.Event] = [
        n.Registered(at_ms=1, node="a", boot_id="b", agent_id="g", slots=slots, address="h", labels={"k": "v"}),
        n.Cordoned(at_ms=2, actor="ann"),
        n.Uncordoned(at_ms=3, actor="ann"),
        n.Drained(at_ms=4),
        n.Lost(at_ms=5, message="m"),
        n.Returned(at_ms=6, agent_id="g"),
    ]
    check_codec(codecs.NODE_EVENTS, {type(sample): sample for sample in samples})


def test_every_ledger_event_survives_the_log():
    samples: list[pool.Event] = [
        pool.SlotsOffered(node="a", slots=(Slot("0", "cuda", "cuda:0"),)),
        pool.NodeWithdrawn(node="a", lost=True),
        pool.SlotsAssigned(job="j", attempt=1, placement=GANG),
        pool.SlotsLeaving(job="j", attempt=1, placement=GANG),
        pool.AttemptStopped(job="j", attempt=1, node="a"),
        pool.SlotsFreed(job="j", attempt=1, node="a", slots=("0",)),
    ]
    assert {type(sample) for sample in samples} == codecs.POOL_EVENTS.classes
    for sample in samples:
        stored = codecs.POOL_EVENTS.encode(sample, id="evt")
        assert not stored.public
        assert codecs.POOL_EVENTS.decode(stored.type, stored.schema, stored.data) == sample


def test_states_survive_their_parts():
    job = JOB.fold(
        [
            e.Submitted(job="j", spec=SPEC, at_ms=1, actor="ann"),
            e.Queued(at_ms=1),
            e.Admitted(at_ms=4, attempt=1, placement=GANG),
        ]
    )
    codec: StateCodec[Job] = codecs.JOB_STATE
    assert codec.from_parts(codec.parts(job)) == job


def test_an_admission_changes_one_part_of_the_ledger():
    offered = LEDGER.fold(
        pool.SlotsOffered(node=node, slots=(Slot("0"), Slot("1"), Slot("2"))) for node in ("a", "b", "c")
    )
    held = LEDGER.fold([pool.SlotsAssigned(job="j", attempt=1, placement=GANG)], since=offered)
    codec: StateCodec[Ledger] = codecs.LEDGER_STATE
    before, after = codec.parts(offered), codec.parts(held)
    assert codec.from_parts(after) == held
    assert [name for name in after if before.get(name) != after[name]] == ["holding.j.1"]


def test_every_state_and_category_has_its_number():
    assert set(STATES) == set(JobState) - {JobState.NEW}
    assert len(set(STATES.values())) == len(STATES)
    for category in FailureCategory:
        assert category_of(category_message(category)) is category
    assert category_of(4711) is FailureCategory.UNSPECIFIED
