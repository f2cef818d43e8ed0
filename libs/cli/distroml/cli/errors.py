"""What the command line tells its user, and the exit code that goes with it."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_JOB_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3


class CliError(Exception):
    """Ends the command with a message that says what happened, why, and what to do."""

    exit_code = EXIT_JOB_FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(CliError):
    """The request itself is wrong: a bad argument, job file or data folder."""

    exit_code = EXIT_USAGE


class Unreachable(CliError):
    """No control plane answers."""

    exit_code = EXIT_UNREACHABLE
