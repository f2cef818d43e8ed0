from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distroml.agent.domain.environment import (
    Identity,
    MissingSecret,
    Rank,
    base_environment,
    default_threads,
    worker_environment,
)
from distroml.agent.domain.exits import (
    DOWN,
    Category,
    ExitRecord,
    Failure,
    Intent,
    Verdict,
    classify,
    intent_of,
    over_mpi,
)
from distroml.agent.domain.lines import MAX_LINE_BYTES, LineCutter
from distroml.agent.domain.silence import DEAF_S, STOPPED_S, Seen, forgive, judge, standstill
from distroml.agent.domain.warmth import key_of, why_cold

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
        (ExitRecord(code=0, ended_by="orphan"), {}, Category.NODE_LOST, None),
        (ExitRecord(code=0, ended_by="holder told to end"), {}, Category.NODE_LOST, None),
        (ExitRecord(signal=15, ended_by="holder told to end"), {}, Category.SIGNAL, "killed by SIGTERM"),
        (ExitRecord(signal=15, ended_by=DOWN), {}, Category.NODE_LOST, None),
        (ExitRecord(code=0, ended_by=DOWN), {}, Category.NODE_LOST, None),
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
    assert verdict.succeeded == (record == ExitRecord())


def test_over_mpi_a_failure_says_that_all_ranks_end_with_it() -> None:
    lost = over_mpi(Verdict(code=0, signal=9, category=Category.SIGNAL, message="killed by SIGKILL"), None)
    assert lost.message == (
        "killed by SIGKILL; MPI cannot go on without a rank: all end, and a retry begins with fresh processes"
    )
    for fine in (Verdict(code=0, signal=0), Verdict(code=0, signal=9, expected=True, message="generation 1 broke")):
        assert over_mpi(fine, None) == fine
    alone = over_mpi(Verdict(code=195, signal=0, message="exit code 195"), ExitRecord(signal=9))
    assert alone.message.startswith("mpirun ended (killed by SIGKILL), and its ranks with it: exit code 195; MPI")


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
    cutter, at, found = LineCutter(), 0, []
    for size in [*pieces, len(data)]:
        found += cutter.feed(data[at : at + size])
        at += size
    found += cutter.flush()
    end = b"" if data.endswith(b"\n") or not data else b"\n"
    assert b"".join(piece.data for piece in found) == data + end
    assert [piece.offset for piece in found] == [0, *accumulate(len(piece.data) for piece in found)][:-1]
    assert all(piece.data.endswith(b"\n") for piece in found)
    assert cutter.offset == len(data)


def test_a_line_of_100_mb_is_cut_and_counted() -> None:
    cutter = LineCutter(5)
    assert [piece for _ in range(100) for piece in cutter.feed(b"x" * 1_000_000)] == []
    cut, rest = cutter.feed(b"\nshort\n\n" + b"y" * MAX_LINE_BYTES)
    assert cut.offset == 5
    assert cut.data[MAX_LINE_BYTES - 1 :].decode() == (
        f"x … [{100_000_000 - MAX_LINE_BYTES} bytes of this line left out]\n"
    )
    assert (rest.offset, rest.data) == (100_000_006, b"short\n\n")
    # As long as a line may be, and two bytes longer.
    (whole,) = cutter.feed(b"\n")
    assert whole.data == b"y" * MAX_LINE_BYTES + b"\n"
    two, last = cutter.feed(b"z" * (MAX_LINE_BYTES + 2) + b"\nend\n")
    assert two.data.endswith("z … [2 bytes of this line left out]\n".encode())
    assert (last.offset, last.data) == (cutter.offset - 4, b"end\n")


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
    torchrun = (
        "RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "GROUP_RANK",
        "CUDA_VISIBLE_DEVICES",
        "CUDA_DEVICE_ORDER",
    )
    assert [env[name] for name in torchrun] == ["1", "2", "127.0.0.1", "99", "1", "0,1", "PCI_BUS_ID"]
    assert env["DISTROML_RESTORE"] == "5:abc"
    assert not {"DISTROML_COMPRESS", "DISTROML_SYNC_EVERY"} & set(env)
    asked = worker_environment(base, replace(identity, compress="auto", sync_every=50), rank, devices="")
    assert (asked["DISTROML_COMPRESS"], asked["DISTROML_SYNC_EVERY"]) == ("auto", "50")
    assert "DISTROML_BACKEND" not in asked
    over = worker_environment(base, replace(identity, backend="mpi"), rank, devices="")
    assert over["DISTROML_BACKEND"] == "mpi"
    assert default_threads(8, 3) == 2
    assert default_threads(1, 4) == 1
