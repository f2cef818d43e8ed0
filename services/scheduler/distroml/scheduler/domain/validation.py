"""Whether a job can be taken in: every wrong field is named, not only the first."""

from __future__ import annotations

import re
from collections.abc import Iterator

from distroml.events import is_name
from distroml.planner.compression import UnknownScheme, read_wish
from distroml.scheduler.domain import retry
from distroml.scheduler.domain.spec import DEFAULT_KEEP, UNLIMITED, JobSpec, WorkerRange
from distroml.workerlink import environment
from distroml.workerlink.backends import MPI, UnknownBackend, read_backend

MAX_WORKERS = 256
MAX_SPEC_CHARS = 32 * 1024
MAX_LABELS = 64
MAX_PRIORITY = 1_000_000
MAX_GRACE_S = 24 * 3600
MAX_HANG_TIMEOUT_S = 7 * 24 * 3600
MAX_SYNC_EVERY = 1_000_000
RESERVED_ENV = ("DISTROML_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
CHOSEN_ENV = (environment.TRACE_STEPS,)
"""Of the platform's variables, those that a job sets itself."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Violation = tuple[str, str]
"""(field path, what is wrong and what to do)."""


def violations(spec: JobSpec) -> tuple[Violation, ...]:
    """Everything that is wrong with `spec`; nothing where it can be submitted."""
    return tuple(_violations(spec))


def _violations(spec: JobSpec) -> Iterator[Violation]:
    for field, value in (("name", spec.name), ("project", spec.project)):
        if not is_name(value):
            yield (
                f"spec.{field}",
                f"{value[:80]!r} is no name: use lower case letters, digits, '.', '_' and '-', at most 63 characters",
            )
    if not spec.command or not spec.command[0].strip():
        yield "spec.command", "is empty: name a script of the bundle, or '-m' and a module, then its arguments"
    elif spec.command[0] == "-m" and len(spec.command) < 2:
        yield "spec.command", "'-m' needs the name of a module after it"
    if any("\0" in text for text in spec.command):
        yield "spec.command", "holds a NUL character, which no process can be given"
    yield from _env(spec)
    if spec.bundle and not _SHA256.fullmatch(spec.bundle):
        yield "spec.bundle", "is no sha256 in 64 lower case hex digits; store the code with PutBundle and give its hash"
    if spec.packages and not _SHA256.fullmatch(spec.packages):
        yield "spec.packages", "is no sha256 in 64 lower case hex digits"
    yield from _workers(spec.workers)
    keep = spec.checkpoint.keep
    yield from _within("spec.priority", spec.priority, -MAX_PRIORITY, MAX_PRIORITY)
    yield from _within("spec.retry.max_failures", retry.max_failures(spec.retry), 0, 1_000_000)
    yield from _within("spec.retry.max_preemptions", retry.max_preemptions(spec.retry), UNLIMITED, 1_000_000)
    yield from _within("spec.checkpoint.keep", DEFAULT_KEEP if keep is None else keep, 1, 10_000)
    yield from _within("spec.grace_s", spec.grace_s, 1, MAX_GRACE_S)
    yield from _within("spec.hang_timeout_s", spec.hang_timeout_s, 0, MAX_HANG_TIMEOUT_S)
    yield from _within("spec.log_cap_bytes", spec.log_cap_bytes, 64 * 1024, 1 << 40)
    if spec.compress:
        try:
            read_wish(spec.compress[:80])
        except UnknownScheme as error:
            yield "spec.compress", str(error)
    yield from _within("spec.sync_every", spec.sync_every, 0, MAX_SYNC_EVERY)
    yield from _backend(spec)
    if len(spec.labels) > MAX_LABELS:
        yield "spec.labels", f"has {len(spec.labels)} entries, at most {MAX_LABELS} fit"
    size = _chars(spec)
    if size > MAX_SPEC_CHARS:
        yield (
            "spec",
            f"has {size} characters in command, env and labels, at most {MAX_SPEC_CHARS} fit: put long values into a "
            "file of the bundle",
        )


def _env(spec: JobSpec) -> Iterator[Violation]:
    for name, value in spec.env.items():
        field = f"spec.env[{name[:80]}]"
        if not _ENV_NAME.fullmatch(name):
            yield field, "is no name of an environment variable: letters, digits and '_', not starting with a digit"
        elif name not in CHOSEN_ENV and (name in RESERVED_ENV or name.startswith("DISTROML_")):
            yield field, "is set by the platform for each worker; leave it out"
        if "\0" in value:
            yield field, "holds a NUL character, which no process can be given"


def _workers(workers: WorkerRange) -> Iterator[Violation]:
    if workers.min < 1:
        yield "spec.workers.min", f"is {workers.min}; a job has at least 1 worker"
    if workers.max > MAX_WORKERS:
        yield "spec.workers.max", f"is {workers.max}; a gang has at most {MAX_WORKERS} workers"
    if workers.max < workers.min:
        yield "spec.workers.max", f"is {workers.max}, less than min {workers.min}"
    if workers.per_node < 0:
        yield "spec.workers.per_node", f"is {workers.per_node}; use 0 for as it fits"
    elif workers.per_node and workers.max // workers.per_node * workers.per_node < workers.min:
        yield (
            "spec.workers.per_node",
            f"no multiple of {workers.per_node} lies in {workers.min}..{workers.max}; widen the range",
        )


def _backend(spec: JobSpec) -> Iterator[Violation]:
    if not spec.backend:
        return
    try:
        name = read_backend(spec.backend[:80])
    except UnknownBackend as error:
        yield "spec.backend", str(error)
        return
    if name != spec.backend:
        yield "spec.backend", f"is {spec.backend!r}: write {name}" if name else "is auto: leave it out for that"
        return
    workers = spec.workers
    if spec.backend == MPI and workers.min != workers.max:
        yield (
            "spec.workers",
            f"is {workers.min}..{workers.max}, and an MPI world keeps its size: give one number with the back end mpi",
        )
    elif spec.backend == MPI and workers.per_node not in (0, workers.max):
        yield (
            "spec.workers.per_node",
            f"is {workers.per_node}, and all {workers.max} ranks of one mpirun are on one node: leave it out with the "
            "back end mpi",
        )


def _within(field: str, value: int, low: int, high: int) -> Iterator[Violation]:
    if not low <= value <= high:
        yield field, f"is {value}; it must be from {low} to {high}"


def _chars(spec: JobSpec) -> int:
    pairs = (*spec.env.items(), *spec.labels.items())
    return (
        sum(map(len, spec.command))
        + sum(len(name) + len(value) for name, value in pairs)
        + len(spec.python)
        + len(spec.dataset)
    )
