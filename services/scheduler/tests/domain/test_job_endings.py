from __future__ import annotations

from dataclasses import replace

import pytest

from distroml.events import given
from distroml.scheduler.domain import ledger as pool
from distroml.scheduler.domain.job import JOB, JobState
from distroml.scheduler.domain.job import commands as c
from distroml.scheduler.domain.job import events as e
from distroml.scheduler.domain.ledger import LEDGER
from distroml.scheduler.domain.retirement import retires_at_ms
from distroml.scheduler.domain.spec import FailureCategory, JobSpec, Placement, RetryPolicy, Slot, WorkerRange

SPEC = JobSpec(
    name="gpt", project="lab", command=("train.py",), workers=WorkerRange(1, 4), retry=RetryPolicy(max_failures=1)
)
GANG = (Placement("a", ("0", "1")),)
OTHER_GANG = (Placement("a", ("0", "1")), Placement("b", ("0", "1")))


def submitted(spec: JobSpec = SPEC) -> tuple[e.Event, ...]:
    return (
        e.Submitted(at_ms=1, job="j", spec=spec, actor="ann"),
        e.Validated(at_ms=1),
        e.Queued(at_ms=1, reason="Submitted"),
    )


def admitted(spec: JobSpec = SPEC, attempt: int = 1, left: int = 1) -> tuple[e.Event, ...]:
    started = e.AttemptStarted(at_ms=2, attempt=attempt, placement=GANG, failures_left=left)
    return (e.Admitted(at_ms=2, attempt=attempt, placement=GANG), started)


RUNNING = (*submitted(), *admitted(), e.Started(at_ms=3, attempt=1, generation=1))
PAUSING = (*RUNNING, e.PauseRequested(at_ms=4, actor="ann"))
PAUSED = (*PAUSING, e.Paused(at_ms=5))
PREEMPTING = (*RUNNING, e.PreemptionRequested(at_ms=4, reason="NodeLost", message="a is lost"))
CANCELLING = (*RUNNING, e.CancelRequested(at_ms=4, actor="ann", why="enough"))
SUCCEEDED = (*RUNNING, e.Succeeded(at_ms=9))
FAILED = (*RUNNING, e.Failed(at_ms=9, category=FailureCategory.HANG, reason="X", message="m"))
CANCELLED = (*CANCELLING, e.Cancelled(at_ms=9))


# ---- failures and preemptions


def test_a_failure_is_counted_once_per_generation():
    command = c.CountFailure(at_ms=5, generation=1, category=FailureCategory.SIGNAL, message="SIGKILL")
    counted = e.FailureCounted(at_ms=5, generation=1, category=FailureCategory.SIGNAL, message="SIGKILL")
    given(JOB, *RUNNING).when(command).then(counted)
    given(JOB, *RUNNING, counted).when(command).then()
    given(JOB, *SUCCEEDED).when(command).then()


def test_preemption_leads_back_to_the_queue_when_nothing_runs():
    given(JOB, *RUNNING).when(c.Preempt(at_ms=4, attempt=1, reason="NodeLost", message="a is lost")).then(
        PREEMPTING[-1]
    )
    sentence = given(JOB, *PREEMPTING).when(c.EndAttempt(at_ms=5, attempt=1))
    sentence.then(
        e.Preempted(at_ms=5, reason="NodeLost", counted=True),
        e.Requeued(at_ms=5, reason="NodeLost", message="a is lost"),
    )
    assert (sentence.state.preemptions, sentence.state.failures) == (1, 0)


@pytest.mark.parametrize("history", [submitted(), PAUSING, CANCELLING, PREEMPTING, SUCCEEDED])
def test_who_is_stopping_or_over_is_not_preempted(history: tuple[e.Event, ...]):
    given(JOB, *history).when(c.Preempt(at_ms=4, attempt=1, reason="NodeLost")).then()


def test_preemptions_have_their_own_budget():
    spec = replace(SPEC, retry=RetryPolicy(max_failures=0, max_preemptions=0))
    history = (*submitted(spec), *admitted(), *PREEMPTING[-1:])
    sentence = given(JOB, *history).when(c.EndAttempt(at_ms=5, attempt=1))
    assert isinstance(sentence.outcome, tuple)
    assert [type(event) for event in sentence.outcome] == [e.Preempted, e.Failed]
    assert (sentence.state.reason, sentence.state.category) == ("PreemptionBudgetSpent", FailureCategory.NODE_LOST)


def test_an_attempt_that_nobody_stopped_does_not_end():
    given(JOB, *RUNNING).when(c.EndAttempt(at_ms=5, attempt=1)).then_rejected("StillRunning")
    given(JOB, *RUNNING).when(c.EndAttempt(at_ms=5, attempt=2)).then()
    given(JOB, *SUCCEEDED).when(c.EndAttempt(at_ms=5, attempt=1)).then()


SETUP = c.FailAttempt(at_ms=4, attempt=1, node="a", category=FailureCategory.SETUP, message="no such script")


def test_a_failed_setup_is_tried_again_and_is_no_preemption():
    sentence = given(JOB, *submitted(), *admitted()).when(SETUP)
    sentence.then(
        e.FailureCounted(at_ms=4, category=FailureCategory.SETUP, generation=0, message="a: no such script"),
        e.PreemptionRequested(at_ms=4, reason="SetupFailed", message="a: no such script"),
    )
    assert isinstance(sentence.outcome, tuple)
    stopped = given(JOB, *submitted(), *admitted(), *sentence.outcome).when(c.EndAttempt(at_ms=5, attempt=1))
    assert (stopped.state.state, stopped.state.failures, stopped.state.preemptions) == (JobState.QUEUED, 1, 0)


def test_a_failed_setup_past_the_budget_fails_the_job():
    spec = replace(SPEC, retry=RetryPolicy(max_failures=0))
    sentence = given(JOB, *submitted(spec), *admitted()).when(SETUP)
    sentence.then(
        e.FailureCounted(at_ms=4, category=FailureCategory.SETUP, generation=0, message="a: no such script"),
        e.Failed(at_ms=4, category=FailureCategory.SETUP, reason="SetupFailed", message="a: no such script"),
    )


def test_a_gang_fails_its_setup_once():
    failed = given(JOB, *submitted(), *admitted()).when(SETUP)
    assert isinstance(failed.outcome, tuple)
    given(JOB, *submitted(), *admitted(), *failed.outcome).when(replace(SETUP, node="b")).then()


def test_a_budget_spent_while_being_preempted_fails_the_job():
    counted = e.FailureCounted(at_ms=4, category=FailureCategory.SIGNAL, generation=1)
    again = e.FailureCounted(at_ms=4, category=FailureCategory.HANG, generation=2)
    sentence = given(JOB, *RUNNING, counted, again, PREEMPTING[-1]).when(c.EndAttempt(at_ms=5, attempt=1))
    assert (sentence.state.state, sentence.state.category) == (JobState.FAILED, FailureCategory.HANG)


# ---- how rendezvous closes an attempt


@pytest.mark.parametrize("history", [RUNNING, PAUSING, PREEMPTING, (*submitted(), *admitted())])
def test_success_is_success_even_when_the_job_was_about_to_stop(history: tuple[e.Event, ...]):
    sentence = given(JOB, *history).when(c.Finish(at_ms=9, attempt=1, outcome="Succeeded"))
    sentence.then(e.Succeeded(at_ms=9))
    assert (sentence.state.placement, sentence.state.finished_at_ms) == ((), 9)


def test_failure_is_final():
    category = FailureCategory.EXCEPTION
    finish = c.Finish(at_ms=9, attempt=1, outcome="Failed", category=category, reason="R", message="boom")
    given(JOB, *RUNNING).when(finish).then(e.Failed(at_ms=9, category=category, reason="R", message="boom"))


def test_a_gang_torn_apart_from_outside_is_no_failure_of_the_job():
    lost = c.Finish(at_ms=9, attempt=1, outcome="Failed", category=FailureCategory.NODE_LOST, message="b")
    given(JOB, *RUNNING).when(lost).then(e.PreemptionRequested(at_ms=9, reason="NodeLost", message="b"))
    timeout = c.Finish(at_ms=9, attempt=1, outcome="Failed", category=FailureCategory.RENDEZVOUS_TIMEOUT)
    given(JOB, *PREEMPTING).when(timeout).then()


def test_an_attempt_that_was_stopped_behind_our_back_is_requeued():
    sentence = given(JOB, *RUNNING).when(c.Finish(at_ms=9, attempt=1, outcome="Stopped", message="agent drained"))
    sentence.then(e.PreemptionRequested(at_ms=9, reason="StoppedUnexpectedly", message="agent drained"))


@pytest.mark.parametrize("history", [PAUSING, CANCELLING, PREEMPTING])
def test_a_stop_that_was_asked_for_says_nothing_new(history: tuple[e.Event, ...]):
    given(JOB, *history).when(c.Finish(at_ms=9, attempt=1, outcome="Stopped")).then()


@pytest.mark.parametrize("outcome", ["Succeeded", "Failed", "Stopped"])
@pytest.mark.parametrize("history", [submitted(), PAUSED, CANCELLING, SUCCEEDED, CANCELLED])
def test_what_is_over_stays_as_it_is(history: tuple[e.Event, ...], outcome: str):
    given(JOB, *history).when(c.Finish(at_ms=9, attempt=1, outcome=outcome)).then()  # type: ignore[arg-type]
    given(JOB, *history).when(c.Finish(at_ms=9, attempt=7, outcome=outcome)).then()  # type: ignore[arg-type]


# ---- leaving the live state


@pytest.mark.parametrize("history", [SUCCEEDED, FAILED, CANCELLED])
def test_a_job_that_is_over_retires_a_while_after_its_end(history: tuple[e.Event, ...]):
    assert retires_at_ms(given(JOB, *history).state, LEDGER.initial, 1000) == 1009


@pytest.mark.parametrize("history", [submitted(), RUNNING, PAUSED, PREEMPTING, CANCELLING])
def test_a_job_that_may_go_on_does_not_retire(history: tuple[e.Event, ...]):
    assert retires_at_ms(given(JOB, *history).state, LEDGER.initial, 1000) is None


def test_a_job_that_is_over_and_holds_slots_waits_until_they_are_free():
    offered = pool.SlotsOffered(node="a", slots=(Slot("0"), Slot("1")))
    held = given(LEDGER, offered, pool.SlotsAssigned(job="j", attempt=1, placement=GANG)).state
    freed = LEDGER.evolve(held, pool.SlotsFreed(job="j", attempt=1, node="a", slots=("0", "1")))
    job = given(JOB, *SUCCEEDED).state
    assert (retires_at_ms(job, held, 1000), retires_at_ms(job, freed, 1000)) == (None, 1009)
