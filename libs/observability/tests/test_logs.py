from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distroml import observability
from distroml.observability import MAX_LINE_BYTES, bound, logger, setup, trace
from distroml.observability.logs import JsonFormatter

log = logger("distroml.scheduler.cycle")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    stream = io.StringIO()
    setup("scheduler", deployment="dep-1", stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raising
    logging.captureWarnings(False)


def read(lines: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def test_a_line_has_who_what_and_where(lines: io.StringIO) -> None:
    with trace.use(span := trace.fresh()), bound(job="job-1"):
        log.info("placed 100% of it", slots=4)
    [line] = read(lines)
    assert line.pop("@timestamp")
    assert line == {
        "log.level": "info",
        "message": "placed 100% of it",
        "ecs.version": "9.0.0",
        "service.name": "scheduler",
        "log.logger": "distroml.scheduler.cycle",
        "trace.id": span.trace_id,
        "span.id": span.span_id,
        "distroml.deployment": "dep-1",
        "distroml.job": "job-1",
        "labels.slots": 4,
    }


def test_lines_of_other_libraries_look_the_same(lines: io.StringIO) -> None:
    logging.getLogger("somebody").warning("%d things", 3)
    logging.getLogger("asyncio").info("noise")
    assert [(line["log.logger"], line["message"]) for line in read(lines)] == [
        ("somebody", "3 things"),
        ("asyncio", "noise"),
    ]


def test_an_exception_stands_in_one_line(lines: io.StringIO) -> None:
    try:
        raise ValueError("bad\nnews")
    except ValueError:
        log.exception("it failed", job="job-1")
    [line] = read(lines)
    assert "ValueError: bad\nnews" in str(line["error.stack_trace"])
    assert (line["error.type"], line["error.message"]) == ("ValueError", "bad\nnews")


def test_no_field_makes_an_object_where_another_has_a_text(lines: io.StringIO) -> None:
    log.warning("away", error=OSError("gone"), labels="a", ratio=float("inf"), found=[1, 2], none=None)
    [line] = read(lines)
    assert line["error.message"] == "gone"
    told = {name: value for name, value in line.items() if name.startswith("labels.")}
    assert told == {"labels.labels": "a", "labels.ratio": "inf", "labels.found": "[1, 2]", "labels.none": "None"}


def test_fields_cannot_pretend_to_be_another_service(lines: io.StringIO) -> None:
    log.info("x", **{"service.name": "forged", "log.level": "debug", "trace.id": "1", "service": "too"})
    [line] = read(lines)
    assert (line["service.name"], line["log.level"]) == ("scheduler", "info")
    assert "trace.id" not in line


class Rude:
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_values_without_text_still_make_a_line(lines: io.StringIO) -> None:
    loop: list[object] = []
    loop.append(loop)
    log.info("odd", rude=Rude(), loop=loop, bytes_=b"\xff")
    [line] = read(lines)
    assert line["message"] == "odd"
    assert "RuntimeError" in str(line["labels.rude"])


def test_a_huge_line_is_cut_and_says_so(lines: io.StringIO) -> None:
    log.error("x" * 5_000_000, detail=["y" * 100_000] * 20, job="job-1")
    text = lines.getvalue()
    assert len(text.encode()) <= MAX_LINE_BYTES
    [line] = read(lines)
    assert line["distroml.job"] == "job-1"
    assert int(str(line["distroml.truncated_bytes"])) > 5_000_000


def test_a_thousand_fields_still_fit(lines: io.StringIO) -> None:
    log.info("many", **{f"field_{index}": "v" * 50 for index in range(5000)})
    assert len(lines.getvalue().encode()) <= MAX_LINE_BYTES
    assert read(lines)[0]["message"] == "many"


@given(st.text(), st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.floats(), st.none())))
def test_every_record_is_one_bounded_json_line(message: str, fields: dict[str, object]) -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s", (message,), None)
    record.__dict__["distroml_fields"] = fields
    line = JsonFormatter("s", max_bytes=400).format(record)
    assert "\n" not in line
    assert len(line.encode()) < 400
    assert json.loads(line)["service.name"] == "s"


def test_levels_have_names(lines: io.StringIO) -> None:
    with pytest.raises(ValueError, match="DEBUG, INFO"):
        setup("scheduler", level="LOUD")
    setup("scheduler", level="WARNING", stream=lines)
    log.info("quiet")
    assert lines.getvalue() == ""


def test_a_closed_pipe_is_no_exception_of_the_caller(lines: io.StringIO) -> None:
    lines.close()
    log.info("into the void")


def test_setup_is_one_import_away() -> None:
    assert observability.setup is setup
