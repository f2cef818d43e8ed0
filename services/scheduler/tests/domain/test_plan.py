from __future__ import annotations

from dataclasses import replace

from distroml.scheduler.domain import ledger as pool
from distroml.scheduler.domain import node as n
from distroml.scheduler.domain.desired import GangMember, Stop, desired
from distroml.scheduler.domain.explain import explain
from distroml.scheduler.domain.job import JOB, Job, JobState
from distroml.scheduler.domain.job import commands as c
from distroml.scheduler.domain.job import events as e
from distroml.scheduler.domain.ledger import LEDGER, Ledger
from distroml.scheduler.domain.plan import Plan, Snapshot, Step, place_queue, settle, silent
from distroml.scheduler.domain.queue import STRICT_FIFO
from distroml.scheduler.domain.spec import FailureCategory, JobSpec, Placement, Slot, WorkerRange


def pool_of(**nodes: int) -> Ledger:
    offers = (
        pool.SlotsOffered(node=node, slots=tuple(Slot(str(i)) for i in range(count))) for node, count in nodes.items()
    )
    return LEDGER.fold(offers)


def waiting(id: str, workers: int, *, high: int = 0, at: int = 1, priority: int = 0) -> Job:
    spec = JobSpec(name=id, workers=WorkerRange(workers, high or workers), priority=priority)
    return JOB.fold([e.Submitted(job=id, spec=spec, at_ms=at), e.Queued(at_ms=at)])


def running(ledger: Ledger, job: Job, placement: tuple[Placement, ...]) -> tuple[Job, Ledger]:
    attempt = job.attempt + 1
    job = JOB.fold([e.Admitted(at_ms=2, attempt=attempt, placement=placement)], since=job)
    job = JOB.fold([e.Started(at_ms=3, attempt=attempt, generation=attempt)], since=job)
    held = LEDGER.fold([pool.SlotsAssigned(job=job.id, attempt=attempt, placement=placement)], since=ledger)
    return job, held


def plan(ledger: Ledger, *jobs: Job) -> Plan:
    return place_queue(Snapshot({job.id: job for job in jobs}, {}, ledger), STRICT_FIFO, 9)


def started(found: Plan) -> list[str]:
    return [step.job for step in found.steps]


# ---- the queue


def test_first_come_first_served_within_a_priority():
    found = plan(pool_of(a=2), waiting("late", 1, at=2), waiting("early", 1, at=1), waiting("third", 1, at=3))
    assert started(found) == ["early", "late"]
    assert (found.pending["third"].index, found.pending["third"].reason) == (1, "WaitingForSlots")


def test_higher_priority_goes_first():
    assert started(plan(pool_of(a=1), waiting("old", 1, at=1), waiting("high", 1, at=2, priority=1))) == ["high"]


def test_a_blocked_job_is_not_starved_by_smaller_ones_behind_it():
    job, ledger = running(pool_of(a=4), waiting("busy", 2), (Placement("a", ("0", "1")),))
    found = plan(ledger, job, waiting("large", 4, at=2), waiting("small", 1, at=3))
    assert started(found) == []
    assert (found.pending["large"].reason, found.pending["small"].reason) == ("WaitingForSlots", "BehindOthers")
    assert "large" in found.pending["small"].message
    assert [found.pending[name].index for name in ("large", "small")] == [1, 2]


def test_a_job_that_no_node_could_take_holds_nobody_back():
    found = plan(pool_of(a=2), waiting("huge", 3, at=1, priority=9), waiting("small", 1, at=2))
    assert started(found) == ["small"]
    assert found.pending["huge"].reason == "ExceedsCapacity"


def test_what_is_behind_a_blocked_job_and_hopeless_is_told_so():
    job, ledger = running(pool_of(a=2), waiting("busy", 2), (Placement("a", ("0", "1")),))
    found = plan(ledger, job, waiting("next", 1, at=2), waiting("huge", 3, at=3))
    assert found.pending["huge"].reason == "ExceedsCapacity"


def test_placements_of_one_plan_do_not_overlap():
    found = plan(pool_of(a=2, b=2), *(waiting(f"j{i}", 1, at=i) for i in range(4)))
    slots = [
        (part.node, slot)
        for step in found.steps
        for command in step.ledger_commands
        if isinstance(command, pool.Assign)
        for part in command.placement
        for slot in part.slots
    ]
    assert len(slots) == len(set(slots)) == 4


def test_a_resize_that_waits_for_its_minimum_keeps_its_place_in_the_queue():
    job, ledger = running(pool_of(a=4), waiting("elastic", 1, high=2), (Placement("a", ("0", "1")),))
    other, ledger = running(ledger, waiting("other", 1), (Placement("a", ("2",)),))
    job = JOB.fold([e.ResizeRequested(at_ms=5, min_workers=4, max_workers=4)], since=job)
    found = plan(ledger, job, other, waiting("small", 1, at=9))
    assert started(found) == []
    assert found.pending["elastic"].reason == "WaitingForSlots"
    assert found.pending["small"].reason == "BehindOthers"


def test_shrinking_is_not_held_back():
    job, ledger = running(pool_of(a=4), waiting("elastic", 1, high=4, at=5), (Placement("a", ("0", "1", "2")),))
    job = JOB.fold([e.ResizeRequested(at_ms=5, min_workers=1, max_workers=1)], since=job)
    found = plan(ledger, waiting("large", 4, at=1), job)
    assert started(found) == ["elastic"]


def over_mpi(id: str, workers: int) -> Job:
    job = waiting(id, workers)
    return replace(job, spec=replace(job.spec, backend="mpi"))


def test_the_ranks_of_mpi_are_all_on_one_node():
    found = plan(pool_of(a=2, b=3), over_mpi("j", 3))
    (step,) = found.steps
    assert step.job_commands == (c.Admit(at_ms=9, placement=(Placement("b", ("0", "1", "2")),)),)
    spread = explain(over_mpi("j", 4), plan(pool_of(a=2, b=3), over_mpi("j", 4)).pending["j"])
    assert spread.reason == "ExceedsCapacity"
    assert spread.message.endswith("ranks of MPI are all on one node")
    assert "gloo" in spread.next_steps[1]


def test_a_running_gang_over_mpi_grows_on_its_own_node_or_waits():
    job, ledger = running(pool_of(a=3, b=3), over_mpi("j", 2), (Placement("a", ("0", "1")),))
    larger = JOB.fold([e.ResizeRequested(at_ms=5, min_workers=3, max_workers=3)], since=job)
    assert started(plan(ledger, larger)) == ["j"]
    too_large = JOB.fold([e.ResizeRequested(at_ms=5, min_workers=4, max_workers=4)], since=job)
    found = plan(ledger, too_large)
    assert (started(found), found.pending["j"].reason) == ([], "WaitingForSlots")


# ---- settling


def settled(ledger: Ledger, job: Job, **nodes: n.Node) -> tuple[Step, ...]:
    return settle(Snapshot({job.id: job}, nodes, ledger), 9)


GANG = (Placement("a", ("0",)), Placement("b", ("0",)))


def test_a_running_job_whose_nodes_are_there_is_left_alone():
    job, ledger = running(pool_of(a=1, b=1), waiting("j", 2), GANG)
    assert settled(ledger, job) == ()


def test_a_lost_node_is_taken_back_and_the_rest_told_to_stop():
    job, ledger = running(pool_of(a=1, b=1), waiting("j", 2), GANG)
    ledger = LEDGER.fold([pool.NodeWithdrawn(node="b", lost=True)], since=ledger)
    (step,) = settled(ledger, job)
    assert step.ledger_commands == (pool.Free(job="j", attempt=1, node="b"),)
    assert step.job_commands == (
        c.Preempt(at_ms=9, attempt=1, reason="NodeLost", message="nothing was heard of b for too long"),
    )


def test_a_gang_that_lost_every_node_goes_back_to_the_queue_at_once():
    job, ledger = running(pool_of(a=1, b=1), waiting("j", 2), GANG)
    ledger = LEDGER.fold([pool.NodeWithdrawn(node=node, lost=True) for node in ("a", "b")], since=ledger)
    (step,) = settled(ledger, job)
    assert [type(command) for command in step.job_commands] == [c.Preempt, c.EndAttempt]


def test_a_node_that_came_back_without_a_slot_of_the_gang():
    job, ledger = running(pool_of(a=1, b=1), waiting("j", 2), GANG)
    ledger = LEDGER.fold([pool.SlotsOffered(node="b", slots=(Slot("7"),))], since=ledger)
    (step,) = settled(ledger, job)
    assert isinstance(step.job_commands[0], c.Preempt)
    assert step.job_commands[0].reason == "SlotsLost"
    assert step.ledger_commands == ()


def test_slots_of_an_ended_job_are_freed_node_by_node():
    job, ledger = running(pool_of(a=1, b=1), waiting("j", 2), GANG)
    job = JOB.fold([e.Succeeded(at_ms=5)], since=job)
    assert settled(ledger, job) == ()
    ledger = LEDGER.fold([pool.AttemptStopped(job="j", attempt=1, node="a")], since=ledger)
    (step,) = settled(ledger, job)
    assert step.ledger_commands == (pool.Free(job="j", attempt=1, node="a"),)
    assert step.job_commands == ()


def test_an_unasked_stop_frees_nothing_and_is_noticed():
    job, ledger = running(pool_of(a=1, b=1), waiting("j", 2), GANG)
    stops = [pool.AttemptStopped(job="j", attempt=1, node=node) for node in ("a", "b")]
    snapshot = Snapshot({"j": job}, {}, LEDGER.fold(stops[:1], since=ledger))
    assert (settle(snapshot, 9), silent(snapshot)) == ((), ())
    snapshot = Snapshot({"j": job}, {}, LEDGER.fold(stops, since=ledger))
    assert (settle(snapshot, 9), silent(snapshot)) == ((), (("j", 1),))


def test_an_empty_cordoned_node_is_drained():
    node = n.Node(id="c", state=n.NodeState.CORDONED, cordoned=True)
    job, ledger = running(pool_of(a=1, b=1), waiting("j", 2), GANG)
    assert settled(ledger, job, c=node) == (Step(node="c", node_commands=(n.Drain(at_ms=9),)),)
    assert settled(ledger, job, a=replace(node, id="a")) == ()


# ---- the desired state


def test_what_a_node_shall_run():
    job, ledger = running(pool_of(a=2, b=1), waiting("j", 3), (Placement("a", ("0", "1")), Placement("b", ("0",))))
    (attempt,) = desired(ledger, {"j": job}, "a")
    assert (attempt.job, attempt.attempt, attempt.slots, attempt.stop) == ("j", 1, ("0", "1"), None)
    assert attempt.gang == (GangMember("a", 2), GangMember("b", 1))
    assert desired(ledger, {"j": job}, "c") == ()


def test_a_range_that_the_gang_does_not_follow_yet_is_not_told():
    job, ledger = running(pool_of(a=2), waiting("j", 1), (Placement("a", ("0",)),))
    before = desired(ledger, {"j": job}, "a")
    job = JOB.fold([e.ResizeRequested(at_ms=5, min_workers=2, max_workers=2)], since=job)
    assert desired(ledger, {"j": job}, "a") == before


def test_every_way_to_end_has_its_stop():
    job, ledger = running(pool_of(a=1), waiting("j", 1), (Placement("a", ("0",)),))
    endings: dict[e.Event, tuple[str, bool]] = {
        e.PauseRequested(at_ms=5): ("Paused", True),
        e.PreemptionRequested(at_ms=5, reason="X"): ("Preempted", True),
        e.CancelRequested(at_ms=5): ("Cancelled", False),
        e.Succeeded(at_ms=5): ("Finished", False),
        e.Failed(at_ms=5, category=FailureCategory.HANG, reason="X"): ("Failed", False),
    }
    for event, (reason, checkpoint) in endings.items():
        (attempt,) = desired(ledger, {"j": JOB.fold([event], since=job)}, "a")
        assert attempt.stop == Stop(reason, 30, checkpoint)


def test_what_was_reported_as_stopped_is_not_asked_for_again():
    job, ledger = running(pool_of(a=1), waiting("j", 1), (Placement("a", ("0",)),))
    ledger = LEDGER.fold([pool.AttemptStopped(job="j", attempt=1, node="a")], since=ledger)
    assert desired(ledger, {"j": job}, "a") == ()


def test_a_node_that_left_the_gang_stops_what_it_has():
    job, ledger = running(pool_of(a=1, b=1), waiting("j", 2), GANG)
    ledger = LEDGER.fold([pool.SlotsLeaving(job="j", attempt=1, placement=(Placement("b", ("0",)),))], since=ledger)
    (attempt,) = desired(ledger, {"j": job}, "b")
    assert (attempt.slots, attempt.gang, attempt.stop) == ((), (GangMember("a", 1),), Stop("Resized", 30, True))


# ---- explaining


def test_every_state_can_be_explained():
    for state in JobState:
        explanation = explain(replace(waiting("j", 1), state=state), None)
        assert explanation.message


def test_a_running_job_says_what_it_survived_and_over_what_it_runs():
    job, _ = running(pool_of(a=1), over_mpi("j", 1), (Placement("a", ("0",)),))
    assert "over mpi in generation 1" in explain(job, None).message
    assert "failure" not in explain(job, None).message
    lost = e.FailureCounted(at_ms=4, category=FailureCategory.SIGNAL, generation=1, message="killed by SIGKILL")
    survived = JOB.fold([lost], since=job)
    assert explain(survived, None).message.endswith("attempt 1, after 1 failure: killed by SIGKILL")
    assert explain(JOB.fold([e.Succeeded(at_ms=5)], since=survived), None).message == (
        "every worker ended well, after 1 failure: killed by SIGKILL"
    )


def test_what_to_do_names_the_job():
    found = plan(pool_of(a=1), waiting("j", 2))
    explanation = explain(waiting("j", 2), found.pending["j"])
    assert explanation.reason == "ExceedsCapacity"
    assert "`distroml job resize j N`" in explanation.next_steps[0]
