from __future__ import annotations

import pytest

from distroml.logstore import LEVELS, at_least, ids_of, level_of
from distroml.logstore.port import Cursor
from distroml.logstore.words import phrases, words


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("2026-11-26 08:00:01,123 WARNING root: slow", "warning"),
        ("[rank0] INFO:train:step 3", "info"),
        ('{"@timestamp":"…","log.level":"error","message":"x"}', "error"),
        ('{"levelname": "CRITICAL", "msg": "INFO"}', "critical"),
        ("time=1 level=warn msg=x", "warning"),
        ("Traceback (most recent call last):", "error"),
        ("torch.OutOfMemoryError: CUDA out of memory", "error"),
        ("RuntimeError", "error"),
        ("/usr/lib/x.py:12: UserWarning: old", "warning"),
        ("the error of the model is 0.5", ""),
        ("DEBUGGING nothing", ""),
        ("level=7", ""),
        ("", ""),
        ("x" * 500 + " ERROR", ""),
    ],
)
def test_a_line_names_its_level(text: str, level: str) -> None:
    assert level_of(text) == level


def test_levels_are_ordered() -> None:
    assert at_least("") == ()
    assert at_least("error") == ("error", "critical")
    assert at_least("debug") == LEVELS


def test_words_are_bounded_whatever_comes() -> None:
    assert words("a.b=1\x00c_d é" + "y" * 250) == ["a", "b", "1", "c_d", "é" + "y" * 99, "y" * 100, "y" * 51]
    assert phrases('one "two three" "" - fo.ur"five') == (("one",), ("two", "three"), ("fo", "ur"), ("five",))


def test_a_cursor_comes_back() -> None:
    cursor = Cursor(5, 7, "job/w/1/stdout/7")
    assert Cursor.decode(cursor.encode()) == cursor


def test_a_line_names_its_trace() -> None:
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    assert ids_of(f'{{"trace.id": "{trace}", "span.id":"{span}"}}') == (trace, span)
    assert ids_of(f"x trace_id={trace.upper()} y") == (trace, "")
    assert ids_of(f"span_id={span} traceid=abc") == ("", "")
