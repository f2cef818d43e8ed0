"""Given what happened, when something is asked, then this follows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rendezvous_words import (
    PAIR,
    after,
    by,
    exited,
    formed_pair,
    gang,
    join,
    killed,
    kinds,
    leave,
    lost,
    ready,
    tick,
    worker,
)

from distroml.rendezvous import domain as d
from distroml.rendezvous.domain import events as ev


def ranks(state: d.Rendezvous) -> dict[str, int]:
    assert state.formed is not None
    return {m.worker: m.rank for m in state.formed.members}


def last(sentence, kind):
    return next(event for event in reversed(sentence.outcome) if isinstance(event, kind))


def test_the_first_join_opens_the_attempt_and_the_last_ready_forms_it():
    after().when(join("a")).then(
        ev.GenerationOpened(
            at_ms=0,
            job="j",
            number=1,
            attempt=1,
            reason="attempt 1 began",
            expected=PAIR,
            min_workers=2,
            failures_left=1,
            join_timeout_s=30,
        ),
        last(after().when(join("a")), ev.NodeJoined),
    )
    formed = after(join("a"), join("b"), ready("a")).when(ready("b"))
    assert kinds(formed.outcome) == ["NodeReady", "GenerationFormed"]
    generation = last(formed, ev.GenerationFormed).generation
    assert (generation.number, generation.world_size, generation.mesh) == (1, 2, {"dp_replicate": 2})
    assert generation.store_endpoint == "a.host:29500"
    assert ranks(formed.state) == {worker("a"): 0, worker("b"): 1}


def test_messages_said_twice_change_nothing():
    for before, again in [
        ((join("a"),), join("a")),
        ((join("a"), join("b"), ready("a")), ready("a")),
        (formed_pair(), ready("a")),
        ((*formed_pair(), killed("b")), killed("b")),
        ((*formed_pair(), exited("b")), exited("b")),
        ((*formed_pair(), leave("a")), leave("a")),
        ((*formed_pair(), lost("a")), lost("a")),
    ]:
        after(*before).when(again).then()


def test_a_killed_worker_breaks_the_generation_and_opens_the_next_in_one_decision():
    killing = after(*formed_pair()).when(killed("b"))
    assert kinds(killing.outcome) == ["WorkerExited", "MemberLost", "GenerationBroken", "GenerationOpened"]
    broken = last(killing, ev.GenerationBroken)
    assert (broken.number, broken.worker, broken.rank, broken.category) == (1, worker("b"), 1, d.FailureCategory.SIGNAL)
    opened = last(killing, ev.GenerationOpened)
    assert (opened.number, opened.failures_left, opened.reason) == (2, 0, "worker exited")


def test_survivors_and_replacements_form_with_the_same_ranks():
    formed = after(*formed_pair(), killed("a"), ready("b", 1)).when(ready("a", 1))
    assert last(formed, ev.GenerationFormed).generation.number == 2
    assert ranks(formed.state) == {worker("a"): 0, worker("b"): 1}


def test_one_failure_too_many_closes_and_says_what_the_exception_was():
    crash = exited("b", code=1, message="ValueError: bad shape")
    closing = after(*formed_pair(failures_left=0)).when(crash)
    assert kinds(closing.outcome) == ["WorkerExited", "MemberLost", "GenerationBroken", "Closed"]
    closed = last(closing, ev.Closed)
    assert (closed.outcome, closed.reason, closed.category) == (
        "Failed",
        "RetryBudgetExhausted",
        d.FailureCategory.EXCEPTION,
    )
    assert "ValueError: bad shape" in closed.message
    assert "rank 1" in closed.message


def test_several_deaths_of_one_generation_count_once():
    second = after(*formed_pair(), killed("a")).when(killed("b"))
    assert kinds(second.outcome) == ["WorkerExited"]
    assert second.state.failures_left == 0
    assert second.state.phase is d.Phase.OPENING


def test_an_exit_of_an_older_generation_is_recorded_and_breaks_nothing():
    again = (*formed_pair(), killed("a"), ready("a", 1), ready("b", 1))
    late = after(*again).when(exited("b", 1, code=1))
    assert kinds(late.outcome) == ["WorkerExited"]
    assert last(late, ev.WorkerExited).rank == -1
    assert late.state.phase is d.Phase.FORMED


def test_the_job_succeeds_when_all_members_exited_0():
    first = after(*formed_pair()).when(exited("a"))
    assert kinds(first.outcome) == ["WorkerExited"]
    assert first.state.phase is d.Phase.FORMED
    done = after(*formed_pair(), exited("a")).when(exited("b"))
    assert last(done, ev.Closed).outcome == "Succeeded"


def test_a_worker_that_was_ended_from_outside_has_not_finished_whatever_its_code_says():
    orphan = replace(exited("b"), category=d.FailureCategory.NODE_LOST, message="no agent was there")
    broken = after(*formed_pair(), exited("a")).when(orphan)
    assert kinds(broken.outcome) == ["WorkerExited", "MemberLost", "GenerationBroken", "GenerationOpened"]
    assert worker("b") not in broken.state.finished
    assert after(*formed_pair(), orphan).state.finished == ()


def test_a_finished_worker_runs_again_when_another_fails():
    again = after(*formed_pair(), exited("a"), killed("b"), ready("a", 1), ready("b", 1))
    assert again.state.finished == ()
    assert kinds(again.when(exited("a", 2)).outcome) == ["WorkerExited"]


def test_expected_exits_never_count_and_leaving_closes_as_stopped():
    stopping = (*formed_pair(), exited("a", signal=15, expected=True))
    # The peer trips over the stopped one before its own agent was told to stop.
    peer = after(*stopping).when(exited("b", code=1))
    assert kinds(peer.outcome) == ["WorkerExited"]
    assert peer.state.failures_left == 1
    assert kinds(after(*stopping).when(leave("a")).outcome) == ["NodeLeft"]
    closed = after(*stopping, leave("a")).when(leave("b"))
    assert last(closed, ev.Closed).outcome == "Stopped"
    assert last(closed, ev.Closed).message == "cancelled"


def test_a_generation_stopped_in_part_goes_on_without_that_part():
    sentence = after(*formed_pair(min_workers=1), leave("a"))
    sentence.when(tick(sentence.state, 60)).then()
    broken = sentence.when(tick(sentence.state, 120))
    assert kinds(broken.outcome) == ["GenerationBroken", "GenerationOpened"]
    assert broken.state.failures_left == 1


def test_a_lost_node_is_a_loss_and_no_failure():
    losing = after(*formed_pair()).when(lost("b"))
    assert kinds(losing.outcome) == ["MemberLost", "GenerationBroken", "GenerationOpened"]
    assert last(losing, ev.MemberLost).cause == "lease expired"
    assert last(losing, ev.GenerationBroken).category is d.FailureCategory.NODE_LOST
    assert losing.state.failures_left == 1
    assert list(losing.state.joined) == ["a"]


def test_a_loss_judged_of_a_replaced_agent_is_old_news():
    after(*formed_pair(), join("b", agent="newer")).when(lost("b")).then()


def test_too_few_workers_for_twice_the_join_timeout_close_the_attempt():
    sentence = after(*formed_pair(), lost("b"), ready("a", 1))
    sentence.when(tick(sentence.state, 59.9)).then()
    closed = sentence.when(tick(sentence.state, 60))
    assert last(closed, ev.Closed).category is d.FailureCategory.RENDEZVOUS_TIMEOUT
    assert "1 of 2 workers" in last(closed, ev.Closed).message


def test_enough_workers_form_without_the_stragglers_after_the_join_timeout():
    sentence = after(*(join(n, min_workers=1) for n in "ab"), ready("b"))
    sentence.when(tick(sentence.state, 29.9)).then()
    formed = sentence.when(tick(sentence.state, 30))
    assert last(formed, ev.GenerationFormed).generation.world_size == 1
    # The straggler comes: the small generation is drained for the whole gang.
    late = after(*(join(n, min_workers=1) for n in "ab"), ready("b"), tick(sentence.state, 30)).when(ready("a", 1))
    assert kinds(late.outcome) == ["NodeReady", "DrainBegun"]


def test_a_tick_for_another_wait_is_old_news():
    sentence = after(join("a", min_workers=1), ready("a"))
    stale = tick(sentence.state, 3600)
    after(*formed_pair(min_workers=1)).when(stale).then()


def test_a_resize_drains_and_then_opens_with_the_new_gang():
    three = gang(a=1, b=1, c=1)
    resized = after(*formed_pair()).when(join("a", three))
    assert kinds(resized.outcome) == ["NodeJoined", "DrainBegun"]
    history = (*formed_pair(), join("a", three))
    # Nodes that still name the older gang repeat themselves; the new one brings its own workers.
    assert kinds(after(*history).when(join("b", agent="newer")).outcome) == ["NodeJoined"]
    assert kinds(after(*history).when(join("c", three)).outcome) == ["NodeJoined"]
    history = (*history, join("c", three), ready("c"), ready("a", 1))
    formed = after(*history).when(ready("b", 1))
    assert kinds(formed.outcome) == ["NodeReady", "GenerationOpened", "GenerationFormed"]
    assert ranks(formed.state) == {worker("a"): 0, worker("b"): 1, worker("c"): 2}
    assert formed.state.failures_left == 1


def test_a_resize_down_waits_for_the_node_that_goes():
    one = gang(a=1)
    history = (*formed_pair(), join("a", one), ready("a", 1))
    assert after(*history).state.phase is d.Phase.FORMED
    formed = after(*history).when(leave("b"))
    assert kinds(formed.outcome) == ["NodeLeft", "GenerationOpened", "GenerationFormed"]
    assert ranks(formed.state) == {worker("a"): 0}


def test_a_drain_that_takes_too_long_breaks_the_generation_without_counting():
    sentence = after(*formed_pair(), join("a", gang(a=1)))
    broken = sentence.when(tick(sentence.state, 120))
    assert kinds(broken.outcome) == ["GenerationBroken", "GenerationOpened"]
    assert (broken.state.failures_left, broken.state.expected) == (1, gang(a=1))


def test_a_failure_while_draining_opens_the_new_gang_without_counting():
    broken = after(*formed_pair(failures_left=0), join("a", gang(a=1))).when(killed("b"))
    assert kinds(broken.outcome)[-1] == "GenerationOpened"
    assert broken.state.expected == gang(a=1)


def test_workers_that_leave_by_themselves_break_the_generation_once_all_have_left():
    one = after(*formed_pair()).when(ready("a", 1, error="connection reset"))
    assert kinds(one.outcome) == ["NodeReady"]
    assert d.limit_ms(one.state) == 5000
    all_left = after(*formed_pair(), ready("a", 1, error="connection reset")).when(ready("b", 1))
    assert kinds(all_left.outcome) == ["NodeReady", "GenerationBroken", "GenerationOpened", "GenerationFormed"]
    assert last(all_left, ev.GenerationBroken).message == "connection reset"
    assert all_left.state.failures_left == 0
    some = after(*formed_pair(), ready("a", 1))
    assert kinds(some.when(tick(some.state, 5)).outcome) == ["GenerationBroken", "GenerationOpened"]


def test_a_hang_breaks_the_generation_and_the_kill_after_it_does_not_count_again():
    hang = d.ReportHang(at_ms=0, sender=by("b"), worker=worker("b"), generation=1, silent_s=61.5, last_step=7)
    hanging = after(*formed_pair()).when(hang)
    assert kinds(hanging.outcome) == ["HangDetected", "MemberLost", "GenerationBroken", "GenerationOpened"]
    assert last(hanging, ev.GenerationBroken).category is d.FailureCategory.HANG
    assert kinds(after(*formed_pair(), hang).when(killed("b")).outcome) == ["WorkerExited"]


def test_a_newer_agent_takes_over_and_the_older_is_fenced():
    history = (*formed_pair(), join("b", agent="newer"))
    assert after(*history).state.phase is d.Phase.FORMED
    after(*history).when(killed("b")).then_rejected("AgentReplaced")
    after(*history).when(join("b")).then_rejected("AgentReplaced")
    assert "GenerationBroken" in kinds(after(*history).when(killed("b", agent="newer")).outcome)


def test_a_new_agent_has_to_say_again_that_its_node_is_ready():
    sentence = after(join("a"), join("b"), ready("a"), join("a", agent="newer")).when(ready("b"))
    assert kinds(sentence.outcome) == ["NodeReady"]


def test_a_late_ready_of_before_a_generation_does_not_count_after_it():
    # The second generation forms without a, whose worker may still be in the first one.
    alone = (*formed_pair(min_workers=1), killed("b"), ready("b", 1))
    without = (*alone, tick(after(*alone).state, 30))
    assert after(*without).state.formed.nodes == ("b",)
    after(*without).when(ready("a", 0)).then()
    assert kinds(after(*without).when(ready("a", 1)).outcome) == ["NodeReady", "DrainBegun"]


def test_a_new_attempt_goes_on_with_the_number():
    stopped = (*formed_pair(), leave("a"), leave("b"))
    after(*stopped).when(join("a", attempt=1)).then(last(after(*stopped).when(join("a", attempt=1)), ev.NodeJoined))
    second = after(*stopped).when(join("a", attempt=2))
    assert last(second, ev.GenerationOpened).number == 2
    assert second.state.formed is None
    running = after(*formed_pair()).when(join("a", attempt=2))
    assert kinds(running.outcome) == ["Closed", "GenerationOpened", "NodeJoined"]
    assert last(running, ev.Closed).reason == "Superseded"
    after(*stopped, join("a", attempt=2)).when(join("b")).then_rejected("StaleAttempt")
    after(*stopped, join("a", attempt=2)).when(ready("b")).then_rejected("StaleAttempt")


def test_what_cannot_be_is_refused_with_a_reason():
    after(join("a")).when(ready("a", 9)).then_rejected("UnknownGeneration")
    after(join("a")).when(killed("a", 2)).then_rejected("UnknownGeneration")
    after(join("a")).when(killed("a", 1, index=256)).then_rejected("UnknownWorker")
    after(join("a")).when(ready("b")).then_rejected("NotJoined")
    after(join("a", gang(a=2))).when(ready("a", count=1)).then_rejected("UnknownWorker")
    for wrong in (
        join("c"),
        join("a", (*PAIR, *gang(a=1))),
        join("a", gang(a=0, b=1)),
        join("a", min_workers=3),
        join("a", gang(a=257)),
        replace(join("a"), workers=("j.1.b.0",)),
        replace(join("a", gang(a=200)), address="x" * 1000),
    ):
        after().when(wrong).then_rejected("BadGang")


def test_steps_plans_and_the_like_are_recorded_once():
    step = d.ReportStep(
        at_ms=0,
        sender=by("a"),
        generation=1,
        step=10,
        sample_from=0,
        sample_to=320,
        epoch=0,
        loss=1.5,
        fingerprint="f",
        why="checkpoint",
    )
    plan = d.ReportPlan(at_ms=0, sender=by("a"), generation=1, plan="{}", inputs="", prediction="")
    nan = d.ReportNonFinite(at_ms=0, sender=by("a"), worker=worker("a"), generation=1, step=3, what="loss")
    start = d.ReportStart(
        at_ms=0, sender=by("a"), worker=worker("a"), generation=1, pid=1, start="warm", seconds=0.1, why_cold=""
    )
    measured = d.ReportMeasured(
        at_ms=0,
        sender=by("a"),
        generation=1,
        steps=20,
        step_seconds=0.3,
        peak_bytes_per_rank=1 << 28,
        predicted_step_seconds=0.25,
        predicted_peak_bytes_per_rank=1 << 28,
        parts="{}",
        verdict="Slower",
        message="",
    )
    links = d.ReportLinks(at_ms=0, sender=by("a"), generation=1, topology="{}", seconds=0.5, reused=False)
    scheme = d.ReportScheme(
        at_ms=0,
        sender=by("a"),
        generation=1,
        buckets=(2, 3, 7),
        from_scheme="none",
        to_scheme="int8",
        reason="LinkSlower",
        why="the links do 10 Mbit/s",
        from_step=12,
    )
    advice = d.ReportAdvice(
        at_ms=0,
        sender=by("a"),
        generation=1,
        step=23,
        step_seconds=0.5,
        exposed_seconds=0.3,
        predicted_step_seconds=0.22,
        faster=2.1,
        schemes="int8",
    )
    for report in (step, plan, measured, links, scheme, advice, nan, start):
        assert len(after(*formed_pair()).when(report).outcome) == 1
        after(*formed_pair(), report).when(report).then()
    after(*formed_pair(), step).when(replace(step, sender=by("b"))).then()
    assert kinds(after(*formed_pair(), step).when(replace(step, why="start")).outcome) == ["StepRecorded"]
    after(*formed_pair(), step).when(replace(step, step=9)).then()
    assert kinds(after(*formed_pair(), measured).when(replace(measured, steps=40)).outcome) == ["PlanMeasured"]
    after(*formed_pair(), measured).when(replace(measured, steps=10)).then()
    for large in (
        replace(plan, plan="x" * 40_000, best="x" * 25_000),
        replace(measured, parts="x" * 70_000),
        replace(links, topology="x" * 70_000),
        replace(links, sums="x" * 70_000),
    ):
        after(*formed_pair()).when(large).then_rejected("TooLarge")


def test_reports_of_a_plan_keep_to_their_generation_over_attempts():
    plan = d.ReportPlan(at_ms=0, sender=by("a"), generation=1, plan="{}", inputs="", prediction="")
    links = d.ReportLinks(at_ms=0, sender=by("a"), generation=1, topology="{}", seconds=0.5, reused=False)
    second = join("a", attempt=2)
    late = {"sender": second.sender}
    for report in (plan, links):
        after(*formed_pair(), report, second).when(replace(report, **late)).then()


@pytest.mark.parametrize("text", ["x" * 100_000, "ü" * 100_000])
def test_long_texts_are_cut_at_both_ends(text):
    crash = replace(exited("b", code=1, message="start " + text + " end"), traceback=text)
    recorded = after(*formed_pair()).when(crash).outcome[0]
    assert len(recorded.message.encode()) <= 4000
    assert recorded.message.startswith("start ")
    assert recorded.message.endswith(" end")
    assert len(recorded.traceback.encode()) <= 32_000
