"""What a job asks for, as the domain sees it: frozen values with the field names of the public messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from distroml.workerlink.backends import MPI


class FailureCategory(StrEnum):
    """Why a job, attempt or worker failed; the closed set of `distroml.api.common.v1.FailureCategory`."""

    UNSPECIFIED = "unspecified"
    EXCEPTION = "exception"
    SIGNAL = "signal"
    OUT_OF_MEMORY = "out of memory"
    HANG = "hang"
    SETUP = "setup"
    NODE_LOST = "node lost"
    PREEMPTED = "preempted"
    EXIT_CODE = "exit code"
    NON_FINITE = "non-finite value"
    CORRUPTION = "corruption"
    RENDEZVOUS_TIMEOUT = "rendezvous timeout"


UNLIMITED = -1
DEFAULT_MAX_FAILURES = 3
DEFAULT_KEEP = 3
DEFAULT_GRACE_S = 30
DEFAULT_LOG_CAP_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class WorkerRange:
    """A gang of `min` to `max` workers; `per_node` of them on every node, or 0 for as it fits."""

    min: int = 1
    max: int = 1
    per_node: int = 0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a job may fail by itself, and how often it may lose its slots (`UNLIMITED`: always again).

    None stands for the default; a submitted job has numbers.
    """

    max_failures: int | None = DEFAULT_MAX_FAILURES
    max_preemptions: int | None = UNLIMITED


@dataclass(frozen=True, slots=True)
class CheckpointPolicy:
    """How many committed checkpoints are kept; None stands for the default."""

    keep: int | None = DEFAULT_KEEP


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What a user asks for, complete: every default is filled in before it enters the domain."""

    name: str = ""
    project: str = ""
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    bundle: str = ""
    python: str = ""
    workers: WorkerRange = WorkerRange()
    priority: int = 0
    retry: RetryPolicy = RetryPolicy()
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    grace_s: int = DEFAULT_GRACE_S
    hang_timeout_s: int = 0
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    packages: str = ""
    dataset: str = ""
    log_cap_bytes: int = DEFAULT_LOG_CAP_BYTES
    compress: str = ""
    sync_every: int = 0
    backend: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """One place for a worker on a node: a GPU, or a CPU share."""

    id: str
    kind: str = "cpu"
    device: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Placement:
    """The slots of one node that a gang uses: one worker each."""

    node: str
    slots: tuple[str, ...]


def completed(spec: JobSpec, *, project: str) -> JobSpec:
    """`spec` with every default filled in; `project` is where it belongs if it does not say so itself."""
    retry, keep = spec.retry, spec.checkpoint.keep
    failures, preemptions = retry.max_failures, retry.max_preemptions
    workers = spec.workers if (spec.workers.min, spec.workers.max) != (0, 0) else replace(spec.workers, min=1, max=1)
    return replace(
        spec,
        project=spec.project or project,
        workers=replace(workers, max=workers.max or workers.min),
        retry=RetryPolicy(
            DEFAULT_MAX_FAILURES if failures is None else failures, UNLIMITED if preemptions is None else preemptions
        ),
        checkpoint=CheckpointPolicy(DEFAULT_KEEP if keep is None else keep),
        grace_s=spec.grace_s or DEFAULT_GRACE_S,
        log_cap_bytes=spec.log_cap_bytes or DEFAULT_LOG_CAP_BYTES,
    )


def places_of(spec: JobSpec) -> WorkerRange:
    """The workers as placement takes them: those of one mpirun are all on one node."""
    return replace(spec.workers, per_node=spec.workers.max) if spec.backend == MPI else spec.workers


def gang_size(placement: tuple[Placement, ...]) -> int:
    """Workers of a gang."""
    return sum(len(part.slots) for part in placement)
