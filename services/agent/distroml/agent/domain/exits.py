"""Why a worker ended: one pure answer from everything that is known about it."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, replace
from enum import StrEnum

MAX_MESSAGE = 2_000
MAX_TRACEBACK = 16_000
EXIT_CANNOT_START = 127
ORPHAN = "orphan"
"""In a record's `ended_by`: ended by its holder, since no agent was there for long."""
TOLD = "holder told to end"
"""In a record's `ended_by`: ended by its holder, which somebody else told to end, such as a machine that shuts down."""
DOWN = "down"
"""In a record's `ended_by`: ended with all of the node, by no agent, and of an attempt that may still be wanted."""


class Category(StrEnum):
    """Kinds of failure; the names of the contract's `FailureCategory` without its prefix."""

    UNSPECIFIED = "UNSPECIFIED"
    EXCEPTION = "EXCEPTION"
    SIGNAL = "SIGNAL"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    HANG = "HANG"
    SETUP = "SETUP"
    NODE_LOST = "NODE_LOST"
    EXIT_CODE = "EXIT_CODE"
    NON_FINITE = "NON_FINITE"
    CORRUPTION = "CORRUPTION"
    RENDEZVOUS_TIMEOUT = "RENDEZVOUS_TIMEOUT"


class Intent(StrEnum):
    """What the agent itself wanted when it ended a worker."""

    NONE = ""
    STOP = "stop"
    BROKEN = "broken"
    """The worker's generation is over and it could not leave it in its process."""
    DRAIN = "drain"
    HANG = "hang"


def intent_of(ended_by: str) -> Intent:
    """The intent in a record's `ended_by`, where an earlier agent wrote one there (`INTENT: why`)."""
    head = ended_by.partition(":")[0]
    return Intent(head) if head in {each.value for each in Intent} else Intent.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitRecord:
    """What the holder wrote; `lost` where the holder ended without writing anything."""

    code: int = 0
    signal: int = 0
    oom: str = ""
    ended_by: str = ""
    lost: bool = False
    ended_at_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What a managed worker said about its own end."""

    category: str
    message: str
    traceback: str = ""
    last_step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a worker ended. `expected` where the platform ended it and nobody is to blame."""

    code: int
    signal: int
    category: Category = Category.UNSPECIFIED
    message: str = ""
    traceback: str = ""
    expected: bool = False
    last_step: int = 0
    at_ms: int = 0

    @property
    def succeeded(self) -> bool:
        """The program itself ended with code 0, and was not ended from outside."""
        return self.code == 0 and self.signal == 0 and self.category is Category.UNSPECIFIED


def classify(
    record: ExitRecord,
    *,
    intent: Intent,
    why: str = "",
    obeyed: bool = False,
    said: Failure | None,
    stderr: str,
    last_step: int = 0,
) -> Verdict:
    """Judge an end by the holder's record, what the agent wanted, what the worker said and its last lines.

    `obeyed`: an end with code 0 is the answer to our asking, not the end of the work. `why` explains the intent
    (for a hang: what was not seen for how long). `stderr` is the tail of the worker's
    standard error and serves where the worker itself said nothing.
    """
    step = max(last_step, said.last_step if said else 0)

    def verdict(category: Category, message: str, *, traceback: str = "", expected: bool = False) -> Verdict:
        return Verdict(
            code=record.code,
            signal=record.signal,
            category=category,
            message=_clip(message, MAX_MESSAGE),
            traceback=_clip(traceback, MAX_TRACEBACK),
            expected=expected,
            last_step=step,
            at_ms=record.ended_at_ms,
        )

    if record.lost:
        text = "the worker's holder ended without an exit record, and the worker was killed with it"
        return Verdict(
            code=0, signal=int(signal.SIGKILL), category=Category.SIGNAL, message=text, last_step=step, at_ms=0
        )
    if intent is Intent.HANG:
        return verdict(Category.HANG, why)
    if record.ended_by == DOWN:
        # Whatever its code says: the work goes on with the next agent.
        return verdict(Category.NODE_LOST, "the node went down with no agent there to end its workers")
    if record.ended_by == ORPHAN:
        return verdict(Category.NODE_LOST, "no agent was there for the whole orphan grace; the holder ended the worker")
    if record.ended_by == TOLD and not obeyed and not record.code and not record.signal:
        return verdict(Category.NODE_LOST, "its holder was told to end, by nobody of ours, and ended the worker")
    if record.code == 0 and record.signal == 0:
        return verdict(Category.UNSPECIFIED, why if obeyed else "", expected=obeyed)
    if intent is not Intent.NONE:
        return verdict(Category.UNSPECIFIED, why or f"ended by the agent ({intent})", expected=True)
    if said is not None:
        return verdict(_said_category(said), said.message, traceback=said.traceback)
    traceback, last = _traceback(stderr)
    if record.signal:
        if record.oom:
            return verdict(Category.OUT_OF_MEMORY, f"killed by the kernel for want of memory: {record.oom}")
        return verdict(Category.SIGNAL, f"killed by {_signal_name(record.signal)}", traceback=traceback)
    if record.code == EXIT_CANNOT_START and "distroml: the worker could not be started" in stderr:
        return verdict(Category.SETUP, _last_line(stderr).removeprefix("distroml: "))
    if traceback:
        kind = Category.OUT_OF_MEMORY if _is_memory(last) else Category.EXCEPTION
        return verdict(kind, last, traceback=traceback)
    tail = _last_line(stderr)
    return verdict(Category.EXIT_CODE, f"exit code {record.code}" + (f": {tail}" if tail else ""))


def over_mpi(verdict: Verdict, mpirun: ExitRecord | None) -> Verdict:
    """`verdict` with what the end of a rank means where MPI carries the collectives; `mpirun`: how it ended before."""
    if verdict.succeeded or verdict.expected:
        return verdict
    why = verdict.message
    if mpirun is not None:
        how = f"killed by {_signal_name(mpirun.signal)}" if mpirun.signal else f"exit code {mpirun.code}"
        why = f"mpirun ended ({how}), and its ranks with it: {why}"
    text = f"{why}; MPI cannot go on without a rank: all end, and a retry begins with fresh processes"
    return replace(verdict, message=_clip(text, MAX_MESSAGE))


def _said_category(said: Failure) -> Category:
    try:
        return Category(said.category.upper())
    except ValueError:
        return Category.EXCEPTION


_MEMORY = re.compile(r"MemoryError|OutOfMemoryError|CUDA out of memory|can't allocate memory|Cannot allocate memory")


def _is_memory(text: str) -> bool:
    return _MEMORY.search(text) is not None


def _traceback(stderr: str) -> tuple[str, str]:
    """The last Python traceback in `stderr` and its final line (the exception's text), or two empty strings."""
    start = stderr.rfind("Traceback (most recent call last):")
    if start < 0:
        return "", ""
    lines = stderr[start:].splitlines()
    for end, line in enumerate(lines[1:], 1):
        if line and not line[0].isspace():
            # The text of an exception may go on over several lines; the first one says what it is.
            return "\n".join(lines[: end + 8]), line
    return "", ""


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _clip(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2 - 2
    return f"{text[:half]}\n…\n{text[-half:]}"
