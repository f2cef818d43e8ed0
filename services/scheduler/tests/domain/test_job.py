from __future__ import annotations

from dataclasses import replace

import pytest

from distroml.events import given
from distroml.scheduler.domain.job import FINISHED, JOB, JobState
from distroml.scheduler.domain.job import commands as c
from distroml.scheduler.domain.job import events as e
from distroml.scheduler.domain.spec import FailureCategory, JobSpec, Placement, RetryPolicy, WorkerRange

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


# ---- submit


def test_a_submitted_job_is_queued():
    sentence = given(JOB).when(c.Submit(at_ms=1, job="j", spec=SPEC, actor="ann"))
    sentence.then(*submitted())
    assert sentence.state.state is JobState.QUEUED
    assert (sentence.state.id, sentence.state.actor, sentence.state.submitted_at_ms) == ("j", "ann", 1)


def test_submitting_again_is_no_news():
    given(JOB, *RUNNING).when(c.Submit(at_ms=8, job="j", spec=SPEC)).then()


@pytest.mark.parametrize("command", [c.Pause(at_ms=1), c.Cancel(at_ms=1), c.Admit(at_ms=1, placement=GANG)])
def test_nothing_can_be_done_with_a_job_that_is_not_there(command: c.Command):
    given(JOB).when(command).then_rejected("NoSuchJob")


# ---- admission and start


def test_admission_begins_the_next_attempt_with_the_failures_that_are_left():
    given(JOB, *submitted()).when(c.Admit(at_ms=2, placement=GANG)).then(*admitted())


def test_failures_of_earlier_attempts_count():
    counted = e.FailureCounted(at_ms=4, category=FailureCategory.SIGNAL, generation=1)
    history = (
        *RUNNING,
        counted,
        *PREEMPTING[-1:],
        e.Preempted(at_ms=5, reason="NodeLost"),
        e.Requeued(at_ms=5, reason="NodeLost"),
    )
    given(JOB, *history).when(c.Admit(at_ms=2, placement=GANG)).then(*admitted(attempt=2, left=0))


@pytest.mark.parametrize("history", [RUNNING, PAUSING, PAUSED, SUCCEEDED])
def test_only_a_queued_job_is_admitted(history: tuple[e.Event, ...]):
    given(JOB, *history).when(c.Admit(at_ms=5, placement=GANG)).then_rejected("NotQueued")


def test_a_gang_outside_the_range_is_refused():
    small = replace(SPEC, workers=WorkerRange(3, 4))
    given(JOB, *submitted(small)).when(c.Admit(at_ms=2, placement=GANG)).then_rejected("BadGang")


def test_a_formed_generation_means_running():
    sentence = given(JOB, *submitted(), *admitted()).when(c.Start(at_ms=3, attempt=1, generation=1))
    sentence.then(e.Started(at_ms=3, attempt=1, generation=1))
    assert (sentence.state.state, sentence.state.started_at_ms) == (JobState.RUNNING, 3)


def test_a_newer_generation_is_followed_and_the_first_start_kept():
    sentence = given(JOB, *RUNNING).when(c.Start(at_ms=7, attempt=1, generation=2))
    sentence.then(e.Started(at_ms=7, attempt=1, generation=2))
    assert (sentence.state.generation, sentence.state.started_at_ms) == (2, 3)


@pytest.mark.parametrize(("attempt", "generation"), [(1, 1), (1, 0), (2, 5), (0, 5)])
def test_news_of_old_generations_and_other_attempts_changes_nothing(attempt: int, generation: int):
    given(JOB, *RUNNING).when(c.Start(at_ms=7, attempt=attempt, generation=generation)).then()


@pytest.mark.parametrize("history", [PAUSING, CANCELLING, PREEMPTING, SUCCEEDED])
def test_a_generation_that_forms_too_late_does_not_start_the_job(history: tuple[e.Event, ...]):
    given(JOB, *history).when(c.Start(at_ms=7, attempt=1, generation=9)).then()


# ---- progress


def test_progress_is_told_once_per_percent():
    history = (*RUNNING, e.Progressed(at_ms=4, step=20, total_steps=2000))
    given(JOB, *history).when(c.Progress(at_ms=5, attempt=1, step=39, total_steps=2000)).then()
    given(JOB, *history).when(c.Progress(at_ms=5, attempt=1, step=40, total_steps=2000)).then(
        e.Progressed(at_ms=5, step=40, total_steps=2000)
    )


def test_steps_done_again_after_a_failure_are_no_progress():
    history = (*RUNNING, e.Progressed(at_ms=4, step=50, total_steps=100))
    given(JOB, *history).when(c.Progress(at_ms=5, attempt=1, step=30, total_steps=100)).then()


def test_another_total_is_news():
    history = (*RUNNING, e.Progressed(at_ms=4, step=50, total_steps=100))
    given(JOB, *history).when(c.Progress(at_ms=5, attempt=1, step=50, total_steps=200)).then(
        e.Progressed(at_ms=5, step=50, total_steps=200)
    )


def test_without_a_total_each_doubling_is_news():
    history = (*RUNNING, e.Progressed(at_ms=4, step=8, total_steps=0))
    given(JOB, *history).when(c.Progress(at_ms=5, attempt=1, step=15, total_steps=0)).then()
    given(JOB, *history).when(c.Progress(at_ms=5, attempt=1, step=16, total_steps=0)).then(
        e.Progressed(at_ms=5, step=16, total_steps=0)
    )


@pytest.mark.parametrize("history", [submitted(), PAUSED, SUCCEEDED])
def test_who_does_not_run_makes_no_progress(history: tuple[e.Event, ...]):
    given(JOB, *history).when(c.Progress(at_ms=5, attempt=1, step=5, total_steps=10)).then()


# ---- pause, resume, cancel


def test_a_queued_job_is_paused_at_once():
    given(JOB, *submitted()).when(c.Pause(at_ms=2, actor="bob")).then(
        e.PauseRequested(at_ms=2, actor="bob"), e.Paused(at_ms=2)
    )


def test_a_running_job_is_paused_when_nothing_of_it_runs():
    given(JOB, *RUNNING).when(c.Pause(at_ms=4, actor="ann")).then(PAUSING[-1])
    sentence = given(JOB, *PAUSING).when(c.EndAttempt(at_ms=5, attempt=1))
    sentence.then(e.Paused(at_ms=5))
    assert sentence.state.placement == ()


def test_a_job_on_its_way_back_to_the_queue_can_be_paused():
    given(JOB, *PREEMPTING).when(c.Pause(at_ms=5, actor="ann")).then(e.PauseRequested(at_ms=5, actor="ann"))


@pytest.mark.parametrize("history", [PAUSING, PAUSED])
def test_pausing_twice_is_no_news(history: tuple[e.Event, ...]):
    given(JOB, *history).when(c.Pause(at_ms=6)).then()


def test_resuming_queues_the_job_at_its_old_place():
    sentence = given(JOB, *PAUSED).when(c.Resume(at_ms=6, actor="ann"))
    sentence.then(e.Resumed(at_ms=6, actor="ann"), e.Queued(at_ms=6, reason="Resumed"))
    assert (sentence.state.state, sentence.state.submitted_at_ms) == (JobState.QUEUED, 1)


@pytest.mark.parametrize(
    ("history", "reason"), [(RUNNING, "NotPaused"), (PAUSING, "StillPausing"), (submitted(), "NotPaused")]
)
def test_only_a_paused_job_is_resumed(history: tuple[e.Event, ...], reason: str):
    given(JOB, *history).when(c.Resume(at_ms=6)).then_rejected(reason)


@pytest.mark.parametrize("history", [submitted(), PAUSED])
def test_a_job_without_slots_is_cancelled_at_once(history: tuple[e.Event, ...]):
    sentence = given(JOB, *history).when(c.Cancel(at_ms=6, actor="bob", why="typo"))
    sentence.then(e.CancelRequested(at_ms=6, actor="bob", why="typo"), e.Cancelled(at_ms=6))
    assert (sentence.state.state, sentence.state.message) == (JobState.CANCELLED, "typo")


@pytest.mark.parametrize("history", [RUNNING, PAUSING, PREEMPTING])
def test_a_running_job_is_cancelled_when_nothing_of_it_runs(history: tuple[e.Event, ...]):
    given(JOB, *history).when(c.Cancel(at_ms=6, actor="bob")).then(e.CancelRequested(at_ms=6, actor="bob"))
    given(JOB, *CANCELLING).when(c.EndAttempt(at_ms=7, attempt=1)).then(e.Cancelled(at_ms=7))


@pytest.mark.parametrize("history", [CANCELLING, CANCELLED])
def test_cancelling_twice_is_no_news(history: tuple[e.Event, ...]):
    given(JOB, *history).when(c.Cancel(at_ms=6)).then()


@pytest.mark.parametrize("history", [SUCCEEDED, FAILED])
@pytest.mark.parametrize(
    "command",
    [
        c.Cancel(at_ms=10),
        c.Pause(at_ms=10),
        c.Resume(at_ms=10),
        c.Resize(at_ms=10, min_workers=1, max_workers=2),
        c.SetPriority(at_ms=10, priority=3),
    ],
)
def test_nothing_can_be_asked_of_a_finished_job(history: tuple[e.Event, ...], command: c.Command):
    given(JOB, *history).when(command).then_rejected("JobFinished")


@pytest.mark.parametrize(
    "command", [c.Pause(at_ms=5), c.Resume(at_ms=5), c.Resize(at_ms=5, min_workers=1, max_workers=2)]
)
def test_a_job_that_is_being_cancelled_only_ends(command: c.Command):
    given(JOB, *CANCELLING).when(command).then_rejected("JobCancelling")


# ---- resize, priority


def test_resizing_a_queued_job_changes_what_it_waits_for():
    sentence = given(JOB, *submitted()).when(c.Resize(at_ms=2, min_workers=2, max_workers=2, actor="ann"))
    sentence.then(e.ResizeRequested(at_ms=2, min_workers=2, max_workers=2, actor="ann"))
    assert (sentence.state.spec.workers, sentence.state.resizing) == (WorkerRange(2, 2), False)


def test_a_running_job_gets_another_gang_under_the_same_attempt():
    resizing = (*RUNNING, e.ResizeRequested(at_ms=5, min_workers=4, max_workers=4))
    assert given(JOB, *resizing).state.resizing
    sentence = given(JOB, *resizing).when(c.Regang(at_ms=6, placement=OTHER_GANG))
    sentence.then(e.Resized(at_ms=6, placement=OTHER_GANG))
    state = sentence.state
    assert (state.placement, state.attempt, state.gang_workers, state.resizing) == (
        OTHER_GANG,
        1,
        WorkerRange(4, 4),
        False,
    )


def test_a_range_whose_maximum_the_gang_has_needs_no_other_gang():
    assert not given(JOB, *RUNNING, e.ResizeRequested(at_ms=5, min_workers=1, max_workers=2)).state.resizing


def test_a_gang_is_changed_only_where_that_was_asked():
    given(JOB, *RUNNING).when(c.Regang(at_ms=6, placement=OTHER_GANG)).then_rejected("NotResizing")
    resizing = (*RUNNING, e.ResizeRequested(at_ms=5, min_workers=3, max_workers=3))
    given(JOB, *resizing).when(c.Regang(at_ms=6, placement=OTHER_GANG)).then_rejected("BadGang")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3, 2)])
def test_an_empty_range_is_refused(low: int, high: int):
    given(JOB, *RUNNING).when(c.Resize(at_ms=5, min_workers=low, max_workers=high)).then_rejected("BadWorkerRange")


def test_a_range_without_a_multiple_of_per_node_is_refused():
    spec = replace(SPEC, workers=WorkerRange(4, 4, per_node=4))
    given(JOB, *submitted(spec)).when(c.Resize(at_ms=5, min_workers=5, max_workers=7)).then_rejected("BadWorkerRange")


def test_an_mpi_world_is_resized_to_one_number():
    spec = replace(SPEC, backend="mpi", workers=WorkerRange(2, 2))
    given(JOB, *submitted(spec)).when(c.Resize(at_ms=5, min_workers=2, max_workers=3)).then_rejected("BadWorkerRange")
    sentence = given(JOB, *submitted(spec)).when(c.Resize(at_ms=5, min_workers=3, max_workers=3, actor="ann"))
    sentence.then(e.ResizeRequested(at_ms=5, min_workers=3, max_workers=3, actor="ann"))


def test_the_same_range_is_no_news():
    given(JOB, *RUNNING).when(c.Resize(at_ms=5, min_workers=1, max_workers=4)).then()


def test_priority():
    given(JOB, *RUNNING).when(c.SetPriority(at_ms=5, priority=7, actor="ann")).then(
        e.PriorityChanged(at_ms=5, priority=7, actor="ann")
    )
    given(JOB, *RUNNING).when(c.SetPriority(at_ms=5, priority=0)).then()


# ---- the fold


@pytest.mark.parametrize("history", [PAUSED, FAILED, CANCELLED, PREEMPTING, SUCCEEDED])
def test_a_state_and_its_tail_are_the_whole_history(history: tuple[e.Event, ...]):
    for cut in range(len(history) + 1):
        assert JOB.fold(history[cut:], since=JOB.fold(history[:cut])) == JOB.fold(history)


@pytest.mark.parametrize("history", [SUCCEEDED, FAILED, CANCELLED])
def test_finished_jobs_have_no_gang(history: tuple[e.Event, ...]):
    state = JOB.fold(history)
    assert state.state in FINISHED
    assert state.placement == ()
