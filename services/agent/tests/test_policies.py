from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distroml.agent.domain import effects, gang, inputs
from distroml.agent.domain.attempt import step
from distroml.agent.domain.effects import EndWorker, Join, ReportExit, SayReady, StartWorker, Tell
from distroml.agent.domain.environment import (
    Identity,
    MissingSecret,
    Rank,
    base_environment,
    default_threads,
    worker_environment,
)
from distroml.agent.domain.exits import Category, ExitRecord, Failure, Intent, Verdict, classify, intent_of
from distroml.agent.domain.gang import Attempt, Formed, Order, Phase, Place
from distroml.agent.domain.lines import MAX_LINE_BYTES, LineCutter
from distroml.agent.domain.silence import DEAF_S, STOPPED_S, Seen, forgive, judge, standstill
from distroml.agent.domain.warmth import key_of, why_cold
from distroml.workerlink import CheckpointRef, Generation, GenerationBroken, Member

# ---- exits

TRACEBACK = """noise
Traceback (most recent call last):
  File "t.py", line 3, in <module>
    f()
{}
more noise
"""


@pytest.mark.parametrize(
    ("record", "facts", "category", "message"),
    [
        (ExitRecord(), {}, Category.UNSPECIFIED, ""),
        (ExitRecord(code=3), {}, Category.EXIT_CODE, "exit code 3"),
        (ExitRecord(code=1), {"stderr": "usage: x\nwrong\n\n"}, Category.EXIT_CODE, "exit code 1: wrong"),
        (ExitRecord(code=1), {"stderr": TRACEBACK.format("ValueError: a\nb")}, Category.EXCEPTION, "ValueError: a"),
        (ExitRecord(code=1), {"stderr": TRACEBACK.format("MemoryError")}, Category.OUT_OF_MEMORY, "MemoryError"),
        (
            ExitRecord(code=1),
            {"stderr": TRACEBACK.format("torch.OutOfMemoryError: CUDA out of memory. Tried")},
            Category.OUT_OF_MEMORY,
            "torch.OutOfMemoryError: CUDA out of memory. Tried",
        ),
        (
            ExitRecord(code=127),
            {"stderr": "distroml: the worker could not be started: cannot run /x: No such file\n"},
            Category.SETUP,
            "the worker could not be started: cannot run /x: No such file",
        ),
        (ExitRecord(signal=11), {}, Category.SIGNAL, "killed by SIGSEGV"),
        (ExitRecord(signal=9), {}, Category.SIGNAL, "killed by SIGKILL"),
        (
            ExitRecord(signal=9, oom="Killed process 5"),
            {},
            Category.OUT_OF_MEMORY,
            "killed by the kernel for want of memory: Killed process 5",
        ),
        (ExitRecord(signal=15, ended_by="orphan"), {}, Category.NODE_LOST, None),
        (ExitRecord(signal=9), {"intent": Intent.HANG, "why": "no progress"}, Category.HANG, "no progress"),
        (ExitRecord(signal=9), {"intent": Intent.BROKEN, "why": "peer died"}, Category.UNSPECIFIED, "peer died"),
        (
            ExitRecord(code=1),
            {"said": Failure(category="non_finite", message="loss is nan")},
            Category.NON_FINITE,
            "loss is nan",
        ),
        (ExitRecord(code=1), {"said": Failure(category="??", message="x")}, Category.EXCEPTION, "x"),
        (ExitRecord(lost=True), {}, Category.SIGNAL, None),
    ],
)
def test_why_a_worker_ended(record: ExitRecord, facts: dict[str, object], category: Category, message: str) -> None:
    known = {"intent": Intent.NONE, "said": None, "stderr": "", **facts}
    verdict = classify(record, **known)  # pyright: ignore[reportArgumentType]
    assert verdict.category is category
    if message is not None:
        assert verdict.message == message
    assert verdict.expected == (known["intent"] in (Intent.BROKEN, Intent.STOP, Intent.DRAIN))


def test_code_0_is_the_end_of_the_work_unless_the_worker_obeyed_a_stop() -> None:
    finished = classify(ExitRecord(code=0), intent=Intent.STOP, obeyed=False, said=None, stderr="")
    stopped = classify(ExitRecord(code=0), intent=Intent.STOP, why="Paused", obeyed=True, said=None, stderr="")
    assert (finished.succeeded, finished.expected) == (True, False)
    assert (stopped.expected, stopped.message) == (True, "Paused")


def test_a_worker_s_own_words_win_over_what_it_printed_and_texts_are_bounded() -> None:
    said = Failure(category="exception", message="x" * 10_000, traceback="y" * 100_000, last_step=7)
    verdict = classify(ExitRecord(code=1), intent=Intent.NONE, said=said, stderr=TRACEBACK.format("KeyError: 1"))
    assert verdict.message.startswith("xxx")
    assert len(verdict.message) <= 2_000
    assert len(verdict.traceback) <= 16_000
    assert verdict.last_step == 7


def test_the_holder_s_record_keeps_the_intent_for_the_next_agent() -> None:
    assert intent_of("broken: generation 1 broke") is Intent.BROKEN
    assert intent_of("orphan") is Intent.NONE
    assert intent_of("") is Intent.NONE


# ---- warmth

ENV = {"OMP_NUM_THREADS": "1", "PATH": "/bin", "RANK": "0", "TORCHELASTIC_RUN_ID": "a"}


def test_only_what_is_read_at_import_keeps_a_worker_cold() -> None:
    key = key_of("/py", 0, ENV)
    assert why_cold(key_of("/py", 0, {**ENV, "RANK": "3", "PATH": "/x", "TORCHELASTIC_RUN_ID": "b"}), [key]) == ""
    assert why_cold(key, []) == "there is no warm process"
    assert why_cold(key_of("/other", 5, ENV), [key]) == "no warm process with interpreter /other, user 5"
    assert why_cold(key_of("/py", 0, {}), [key]) == "no warm process with no OMP_NUM_THREADS"
    near = key_of("/py", 0, {**ENV, "PYTHONPATH": "/lib"})
    far = key_of("/x", 1, {})
    assert why_cold(key_of("/py", 0, {**ENV, "PYTHONPATH": "/b"}), [far, near]) == "no warm process with PYTHONPATH=/b"


# ---- silence


def seen(**changes: object) -> Seen:
    base = {"managed": True, "heard_at": 100.0, "progress_at": 100.0, "cpu_at": 100.0, "running_at": 100.0}
    return Seen(**{**base, **changes})  # pyright: ignore[reportArgumentType]


def test_hangs() -> None:
    assert judge(101, seen(), 0) is None
    assert judge(100 + STOPPED_S, seen(heard_at=114.9), 0).message.startswith("the process has been stopped")
    assert judge(100 + DEAF_S, seen(running_at=159), 0).silent_s == DEAF_S
    assert judge(100 + DEAF_S, seen(running_at=159, cpu_at=120), 0) is None
    assert judge(100 + DEAF_S, seen(running_at=159, managed=False), 0) is None
    assert (
        judge(110, seen(last_step=4), 10).message == "no progress after step 4 for 10 s, more than hang_timeout_s = 10"
    )
    assert judge(110, seen(idle=True), 10) is None
    assert judge(109.9, seen(), 10) is None
    assert judge(110, seen(managed=False), 10).message.startswith("no output for 10 s")


def test_after_the_judge_s_own_standstill_everybody_has_the_full_time_again() -> None:
    late = standstill(1000.0, 101.0, 1.0)
    assert late == 899.0
    assert judge(1000, seen(), 0) is not None
    assert judge(1000, forgive(seen(), late), 10) is None
    assert standstill(103.5, 101.0, 1.0) == 0.0


# ---- lines


@settings(deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(1, 40), max_size=30))
def test_lines_are_the_file_s_whatever_pieces_it_comes_in(data: bytes, pieces: list[int]) -> None:
    cutter, at, lines = LineCutter(), 0, []
    for size in [*pieces, len(data)]:
        lines += cutter.feed(data[at : at + size])
        at += size
    lines += cutter.flush()
    assert [line.text for line in lines] == [part.decode(errors="replace").removesuffix("\r") for part in _split(data)]
    assert all(data[line.offset - 1 : line.offset] == b"\n" for line in lines if line.offset)
    assert cutter.offset == len(data)


def _split(data: bytes) -> list[bytes]:
    parts = data.split(b"\n")
    return parts if parts[-1] else parts[:-1]


def test_a_line_of_100_mb_is_cut_and_counted() -> None:
    cutter = LineCutter(5)
    lines = [line for _ in range(100) for line in cutter.feed(b"x" * 1_000_000)]
    assert lines == []
    (line,) = cutter.feed(b"\n")
    assert line.offset == 5
    assert line.cut == 100_000_000 - MAX_LINE_BYTES
    assert len(line.text) < MAX_LINE_BYTES + 100
    assert cutter.offset == 100_000_006


# ---- environment


def test_the_worker_s_environment() -> None:
    own = {"PATH": "/bin", "DISTROML_TOKEN_FILE": "/t", "OTEL_X": "1", "OMP_NUM_THREADS": "64"}
    base = base_environment(own, {"KEY": "secret:api", "A": "b"}, secrets={"api": "s3cret"}, threads=2)
    assert base == {
        "PATH": "/bin",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "1",
        "KEY": "s3cret",
        "A": "b",
    }
    assert base_environment({}, {"OMP_NUM_THREADS": "9"}, secrets={}, threads=2)["OMP_NUM_THREADS"] == "9"
    with pytest.raises(MissingSecret, match="A=secret:x, B=secret:y"):
        base_environment({}, {"B": "secret:y", "A": "secret:x"}, secrets={}, threads=1)
    identity = Identity(
        job="j", project="p", attempt=1, node="n", worker="w", incarnation=2, link="/l", objects="file:///o"
    )
    rank = Rank(
        generation=3,
        rank=1,
        local_rank=0,
        node_rank=1,
        world_size=2,
        local_world_size=1,
        nodes=2,
        store_host="127.0.0.1",
        store_port=99,
        restore="5:abc",
    )
    env = worker_environment(base, identity, rank, devices="0,1")
    torchrun = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "CUDA_VISIBLE_DEVICES")
    assert [env[name] for name in torchrun] == ["1", "2", "127.0.0.1", "99", "1", "0,1"]
    assert env["DISTROML_RESTORE"] == "5:abc"
    assert default_threads(8, 3) == 2
    assert default_threads(1, 4) == 1


# ---- the attempt

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
