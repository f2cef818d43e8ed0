import logging

from distroml.cli.plane.failure import FAILURE, told_failure
from distroml.observability.logs import JsonFormatter


def _line(message: str, **fields: object) -> str:
    record = logging.LogRecord("distroml.cli", logging.ERROR, "", 0, "%s", (message,), None)
    record.__dict__["distroml_fields"] = fields
    return JsonFormatter("supervisor").format(record)


def test_a_failure_is_found_among_what_libraries_print() -> None:
    log = "\n".join(
        [
            _line(message="starting"),
            _line(message="failed", **{FAILURE: "control.sqlite is damaged", "hint": "see the log"}),
            "E0000 poller error: Bad file descriptor",
            "[1, 2]",
            "",
        ]
    )
    found = told_failure(log)
    assert found is not None
    assert (found.message, found.hint) == ("control.sqlite is damaged", "see the log")


def test_a_supervisor_that_was_killed_told_of_nothing() -> None:
    assert told_failure(_line(message="starting") + "\nTraceback: error: boom\n") is None
    assert told_failure("") is None
