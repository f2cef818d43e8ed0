"""What all tests share."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.numerics.pool import Pool

# A busy machine is no defect of the code: hypothesis' own deadline of 200 ms per example is off, pytest's holds.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
# Tests that run beside one another are no training to stand back for: lines leave as fast as anything else.
os.environ.setdefault("DISTROML_AGENT_LOG_NICE", "0")
# A shell that starts tests in the background has them ignore Ctrl-C, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Eight processes for every test that has something done by ranks: starting them costs more than most of those."""
    made = Pool(8)
    yield made
    made.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show why a test failed that passed at its second try: it is a defect to be found, whatever the run's end says."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"failed at first: {report.nodeid}", yellow=True)
        terminalreporter.line(report.longreprtext)
