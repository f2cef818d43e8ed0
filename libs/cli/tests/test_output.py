"""What the terminal gets."""

import pytest

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.cli import output


def test_a_table_is_aligned_whatever_is_coloured(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        ("job-1", output.state_text("JOB_STATE_RUNNING"), "x"),
        ("job-22", output.state_text("JOB_STATE_PAUSING"), ""),
    ]
    output.table(("JOB", "STATE", "REASON"), rows, empty="none")
    assert capsys.readouterr().out.splitlines() == [
        "JOB     STATE    REASON",
        "job-1   running  x",
        "job-22  pausing",
    ]


def test_a_terminal_gets_colours_that_do_not_move_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output.out, "_force_terminal", True)
    output.table(("STATE", "X"), [(output.state_text("JOB_STATE_FAILED"), "y")], empty="none")
    assert capsys.readouterr().out.splitlines()[1] == "\x1b[1;31mfailed\x1b[0m  y"


def test_what_is_said_of_a_job_is_shown_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    for reason, message in (("Exception", "KeyError: '[/INST]' is no [dim] of x[bold]"), ("", "runs"), ("Paused", "")):
        output.out.print(output.job_text(jobs_pb2.JOB_STATE_FAILED, reason, message))
    assert capsys.readouterr().out.splitlines() == [
        "failed Exception: KeyError: '[/INST]' is no [dim] of x[bold]",
        "failed: runs",
        "failed Paused",
    ]


def test_durations_and_sizes() -> None:
    assert [output.duration(s) for s in (5, 65, 3700, 90000)] == ["5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"]
    assert [output.size(n) for n in (999, 1500, 2_500_000)] == ["999 B", "1.5 kB", "2.5 MB"]
