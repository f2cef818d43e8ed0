from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from distroml.agent.domain import effects, gang, inputs
from distroml.agent.domain.attempt import step
from distroml.agent.domain.effects import EndWorker, Join, ReportExit, SayReady, StartWorker, Tell
from distroml.agent.domain.exits import Category, Intent, Verdict
from distroml.agent.domain.gang import Attempt, Formed, Order, Phase, Place
from distroml.workerlink import CheckpointRef, Generation, GenerationBroken, Member

A, B = "j.1.n.0", "j.1.n.1"


def formed(number: int, *workers: str) -> Formed:
    members = tuple(Member(worker=w, node="n", rank=r, local_rank=r) for r, w in enumerate(workers or (A, B)))
    return Formed(
        number=number,
        world_size=len(members),
        members=members,
        node_ranks={"n": 0},
        local_world_sizes={"n": len(members)},
        store_host="127.0.0.1",
        store_port=number,
    )


class Scene:
    """Given: what happened so far. `when` says what is to be done about the next thing."""

    def __init__(self, *happened: inputs.Input) -> None:
        self.state = Attempt(places=(Place(worker=A), Place(worker=B)), grace_s=30)
        for each in happened:
            self.when(each)

    def when(self, happened: inputs.Input) -> list[effects.Effect]:
        self.state, todo = step(self.state, happened)
        return list(todo)


def exit_of(worker: str, incarnation: int = 1, **facts: object) -> inputs.Exited:
    return inputs.Exited(worker, incarnation, Verdict(**{"code": 0, "signal": 0, **facts}))


BAD = {"signal": 9, "category": Category.SIGNAL, "message": "killed"}
JOINED = (inputs.Prepared(), inputs.Accepted(), inputs.Opened(1))
RUNNING = (*JOINED, inputs.GenerationIs(formed(1)), inputs.RestoreIs(1, None))
MANAGED = (*RUNNING, inputs.SaidHello(A, True, 1), inputs.SaidHello(B, True, 1))


def kinds(todo: list[effects.Effect]) -> list[str]:
    return [type(each).__name__ for each in todo]


def test_ready_joined_formed_started() -> None:
    scene = Scene()
    assert scene.when(inputs.Prepared()) == [Join(0, (A, B))]
    assert scene.when(inputs.Accepted()) == [SayReady(0, (A, B))]
    assert kinds(scene.when(inputs.Opened(4))) == ["SayReady"]
    assert kinds(scene.when(inputs.GenerationIs(formed(4)))) == ["AskRestore"]
    restore = CheckpointRef(step=7, manifest_hash="h")
    todo = scene.when(inputs.RestoreIs(4, restore))
    assert [(e.worker, e.incarnation, e.restore) for e in todo if isinstance(e, StartWorker)] == [
        (A, 1, restore),
        (B, 1, restore),
    ]
    assert scene.state.running_generation == 4


def test_nothing_starts_before_the_catalogue_has_answered() -> None:
    scene = Scene(*JOINED, inputs.GenerationIs(formed(1)))
    assert scene.when(inputs.RestoreIs(0, None)) == []
    assert kinds(scene.when(inputs.Broke(1, "x"))) == ["Join"]
    assert scene.when(inputs.RestoreIs(1, None)) == []


def test_plain_survivors_are_killed_and_start_again_with_a_fresh_store() -> None:
    scene = Scene(*RUNNING)
    assert kinds(scene.when(exit_of(A, **BAD))) == ["ReportExit"]
    (end,) = scene.when(inputs.Broke(1, "worker exited"))
    assert (end.worker, end.grace_s) == (B, 0)
    assert scene.when(inputs.Opened(2)) == []
    todo = scene.when(exit_of(B, signal=9, expected=True))
    assert kinds(todo) == ["ReportExit", "Join"]
    assert scene.when(inputs.Accepted()) == [SayReady(1, (A, B))]
    scene.when(inputs.GenerationIs(formed(2)))
    assert [e.incarnation for e in scene.when(inputs.RestoreIs(2, None)) if isinstance(e, StartWorker)] == [2, 2]


def test_managed_survivors_that_cannot_form_another_world_are_killed() -> None:
    scene = Scene(*MANAGED)
    scene.state = replace(scene.state, reforms=False)
    scene.when(exit_of(A, **BAD))
    (end,) = scene.when(inputs.Broke(1, "worker exited"))
    assert (end.worker, end.grace_s) == (B, 0)
    assert kinds(scene.when(exit_of(B, signal=9, expected=True))) == ["ReportExit", "Join"]


def test_managed_survivors_are_told_and_handed_the_next_generation() -> None:
    scene = Scene(*MANAGED)
    scene.when(exit_of(A, **BAD))
    todo = scene.when(inputs.Broke(1, "gone"))
    assert todo[0] == Tell(B, GenerationBroken(number=1, cause="gone"))
    assert kinds(todo) == ["Tell", "Wake"]
    scene.when(inputs.Opened(2))
    assert kinds(scene.when(inputs.Awaits(B, 1, "peer reset"))) == ["Join"]
    assert scene.when(inputs.Accepted()) == [SayReady(1, (A, B), "peer reset")]
    scene.when(inputs.GenerationIs(formed(2)))
    todo = scene.when(inputs.RestoreIs(2, CheckpointRef(step=3, manifest_hash="h")))
    assert kinds(todo) == ["StartWorker", "Tell"]
    assert isinstance(todo[1].message, Generation)
    assert (todo[1].message.number, todo[1].message.rank, todo[1].message.restore.step) == (2, 1, 3)
    late = inputs.Overdue(B, 1, Intent.BROKEN, 1)
    assert scene.when(late) == []


def test_who_does_not_leave_in_time_is_killed() -> None:
    scene = Scene(*MANAGED, exit_of(A, **BAD), inputs.Broke(1, "gone"))
    (end,) = scene.when(inputs.Overdue(B, 1, Intent.BROKEN, 1))
    assert (end.grace_s, end.incarnation) == (0, 1)
    assert scene.when(inputs.Overdue(B, 1, Intent.BROKEN, 1)) == [] or scene.state.places[1].process.doomed


def test_workers_that_left_by_themselves_are_a_broken_generation() -> None:
    scene = Scene(*MANAGED)
    assert scene.when(inputs.Awaits(A, 1, "connection reset")) == []
    assert kinds(scene.when(inputs.Awaits(B, 1, "connection reset"))) == ["Join"]
    assert scene.when(inputs.Accepted()) == [SayReady(1, (A, B), "connection reset")]
    assert scene.when(inputs.Accepted())[0] == SayReady(1, (A, B), "connection reset")


def test_one_that_ended_well_waits_for_the_others_and_starts_again_with_them() -> None:
    scene = Scene(*RUNNING)
    assert kinds(scene.when(exit_of(A))) == ["ReportExit"]
    assert kinds(scene.when(exit_of(B, **BAD))) == ["ReportExit"]
    scene.when(inputs.Broke(1, "x"))
    scene.when(inputs.Opened(2))
    scene.when(inputs.Accepted())
    scene.when(inputs.GenerationIs(formed(2)))
    assert kinds(scene.when(inputs.RestoreIs(2, None))) == ["StartWorker", "StartWorker"]


def test_a_worker_of_an_older_generation_is_killed_when_a_newer_one_forms() -> None:
    scene = Scene(*RUNNING)
    todo = scene.when(inputs.GenerationIs(formed(3)))
    assert [e.grace_s for e in todo if isinstance(e, EndWorker)] == [0, 0]
    scene.when(inputs.RestoreIs(3, None))
    scene.when(exit_of(A, signal=9, expected=True))
    assert [p.process.generation for p in scene.state.places if p.process] == [3, 1]


def test_stop_orders() -> None:
    plain = Scene(*RUNNING)
    order = Order(reason="Cancelled", grace_s=7, checkpoint=False)
    assert [e.grace_s for e in plain.when(inputs.Ordered(order))] == [7, 7]
    assert kinds(plain.when(exit_of(A, signal=15, expected=True))) == ["ReportExit"]
    assert kinds(plain.when(exit_of(B, signal=15, expected=True))) == ["ReportExit", "Leave", "Observe"]
    assert plain.state.phase is Phase.STOPPED
    managed = Scene(*MANAGED)
    assert kinds(managed.when(inputs.Ordered(order))) == ["Tell", "Wake", "Tell", "Wake"]
    assert [e.grace_s for e in managed.when(inputs.Overdue(A, 1, Intent.STOP, 0))] == [0]
    early = Scene()
    assert kinds(early.when(inputs.Ordered(order))) == ["Observe"]
    assert early.when(inputs.Prepared()) == []


def test_closed_ends_what_still_runs() -> None:
    scene = Scene(*MANAGED, exit_of(A, **BAD))
    todo = scene.when(inputs.WasClosed("Failed", Category.SIGNAL, "no retry is left"))
    assert kinds(todo) == ["Tell", "Wake"]
    todo = scene.when(exit_of(B))
    assert kinds(todo) == ["ReportExit", "Observe"]
    assert todo[-1] == effects.Observe(Phase.STOPPED, Category.SIGNAL, "no retry is left")


def test_an_unprepared_attempt_fails_with_its_reason_and_leaves() -> None:
    scene = Scene()
    todo = scene.when(inputs.PrepareFailed("no such bundle"))
    assert todo == [effects.Observe(Phase.FAILED, Category.SETUP, "no such bundle")]
    joined = Scene(*RUNNING)
    assert kinds(joined.when(inputs.PrepareFailed("no store"))) == ["Leave", "EndWorker", "EndWorker", "Observe"]
    assert not joined.state.over


def test_drain_and_resize() -> None:
    scene = Scene(*MANAGED)
    todo = scene.when(inputs.Resized((A,)))
    assert todo == [Join(1, (A,))]
    scene.when(inputs.Accepted())
    assert kinds(scene.when(inputs.DrainAsked(1, "resized"))) == ["Tell", "Tell"]
    assert kinds(scene.when(inputs.Awaits(A, 1))) == ["SayReady"]
    assert [e.worker for e in scene.when(inputs.Awaits(B, 1))] == [B]
    scene.when(exit_of(B, signal=15, expected=True))
    assert [p.worker for p in scene.state.places] == [A]
    plain = Scene(*RUNNING)
    assert [e.grace_s for e in plain.when(inputs.DrainAsked(1, "resized"))] == [30, 30]
    plain.when(exit_of(A, signal=15, expected=True))
    assert kinds(plain.when(exit_of(B, signal=15, expected=True))) == ["ReportExit", "Join"]
    assert plain.when(inputs.Accepted()) == [SayReady(1, (A, B))]


def test_a_node_that_joins_a_running_gang_says_that_it_is_ready() -> None:
    scene = Scene(inputs.Prepared(), inputs.Accepted())
    todo = scene.when(inputs.GenerationIs(formed(5, "other.0", "other.1")))
    assert kinds(todo)[0] == "AskRestore"
    scene.when(inputs.Accepted())
    assert scene.state.ready_said == 5


def test_a_hang_is_reported_before_the_kill() -> None:
    scene = Scene(*MANAGED)
    todo = scene.when(inputs.Hung(A, 1, 20.0, "no progress", 4))
    assert kinds(todo) == ["ReportHang", "EndWorker"]
    assert scene.when(inputs.Hung(A, 1, 21.0, "no progress", 4)) == []


def test_a_reconnecting_worker_learns_what_it_missed() -> None:
    scene = Scene(*MANAGED, inputs.LinkLost(B), exit_of(A, **BAD))
    assert kinds(scene.when(inputs.Broke(1, "gone"))) == ["Wake"]
    assert scene.when(inputs.SaidHello(B, True, 1)) == [
        Tell(B, GenerationBroken(number=1, cause="generation 1 broke: gone"))
    ]
    stopping = Scene(*MANAGED, inputs.LinkLost(B), inputs.Ordered(Order(reason="x", grace_s=9, checkpoint=False)))
    assert stopping.state.places[1].process.intent is Intent.STOP


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_whatever_happens_a_place_has_one_process_and_every_end_is_reported_once(seed: int) -> None:
    random_ = random.Random(seed)
    scene = Scene()
    live: dict[str, int] = {}
    started: set[tuple[str, int]] = set()
    reported: set[tuple[str, int]] = set()
    number = 0
    order = Order(reason="Cancelled", grace_s=1, checkpoint=False)
    for _ in range(60):
        worker = random_.choice((A, B))
        choices: list[inputs.Input] = [
            inputs.Prepared(),
            inputs.Accepted(),
            inputs.JoinEnded(),
            inputs.Opened(number + 1),
            inputs.GenerationIs(formed(number)),
            inputs.RestoreIs(number, None),
            inputs.Broke(random_.randint(0, number), "x"),
            inputs.SaidHello(worker, True, number),
            inputs.LinkLost(worker),
            inputs.Awaits(worker, random_.randint(0, number)),
            inputs.Overdue(worker, live.get(worker, 0), Intent.BROKEN, number),
            inputs.Hung(worker, live.get(worker, 0), 1.0, "x", 0),
            inputs.Resized((A,) if random_.random() < 0.5 else (A, B)),
        ]
        if random_.random() < 0.02:
            choices = [inputs.Ordered(order)]
        if random_.random() < 0.2:
            number += 1
        if worker in live and random_.random() < 0.3:
            bad = random_.random() < 0.5
            choices = [exit_of(worker, live.pop(worker), **(BAD if bad else {}))]
        for effect in scene.when(random_.choice(choices)):
            match effect:
                case StartWorker(worker=name, incarnation=incarnation):
                    assert name not in live
                    assert (name, incarnation) not in started
                    assert effect.formed.number > scene.state.broken
                    live[name] = incarnation
                    started.add((name, incarnation))
                case ReportExit(worker=name):
                    assert (name, effect.generation) not in reported
                    reported.add((name, effect.generation))
                case SayReady():
                    assert all(place.ready for place in scene.state.places if not place.leaving)
                case _:
                    pass
    assert {p.worker for p in scene.state.places if p.process} == set(live)
    assert gang.TEARDOWN_S == 20
