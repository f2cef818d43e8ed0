"""What all tests share."""

import pytest
from hypothesis import settings

# A busy machine is no defect of the code: hypothesis' own deadline of 200 ms per example is off, pytest's holds.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show why a test failed that passed at its second try: it is a defect to be found, whatever the run's end says."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"failed at first: {report.nodeid}", yellow=True)
        terminalreporter.line(report.longreprtext)
