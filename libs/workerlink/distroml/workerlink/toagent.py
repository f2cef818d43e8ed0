"""What a worker says to its agent."""

from __future__ import annotations

from distroml.workerlink.message import Message


class Hello(Message, frozen=True):
    """First message. `managed` workers (those under `Trainer`) survive a broken generation in their process."""

    protocol: int
    worker: str
    incarnation: int
    pid: int
    generation: int
    managed: bool


class AwaitGeneration(Message, frozen=True):
    """The worker left every generation up to `after` and is ready for the next one."""

    after: int
    error: str = ""


class Heartbeat(Message, frozen=True):
    """A sign of progress: `phase` is `setup`, `restore`, `train`, `eval`, `save` or `idle`."""

    generation: int
    step: int
    phase: str


class StepSample(Message, frozen=True):
    """One optimizer step as this rank saw it. `loss` and `grad_norm` are global values.

    Seconds in `*_s`; `samples` and `tokens` are global counts of the step. `wire_bytes` is what this rank sent, by
    `AXIS/LEVEL/SCHEME`.
    """

    generation: int
    step: int
    total_steps: int
    at_ms: int
    step_s: float
    data_wait_s: float = 0.0
    comm_wait_s: float = 0.0
    loss: float | None = None
    grad_norm: float | None = None
    samples: int = 0
    tokens: int = 0
    learning_rate: float | None = None
    extra: dict[str, float] = {}  # noqa: RUF012 (msgspec gives each its own)
    wire_bytes: dict[str, int] = {}  # noqa: RUF012 (msgspec gives each its own)


class Samples(Message, frozen=True):
    """A batch of step samples, and how many were dropped since the worker started because a buffer was full."""

    steps: list[StepSample]
    dropped: int = 0


class StepRecorded(Message, frozen=True):
    """A step worth an event: at a generation's start, at each checkpoint, at a failure.

    Samples `[sample_from, sample_to)` of the global order of `epoch` were consumed; `fingerprint` is a hash over
    the loss and the parameters that rank 0 has; empty where parameters had moved on when the step was recorded.
    """

    generation: int
    step: int
    sample_from: int
    sample_to: int
    epoch: int
    loss: float
    fingerprint: str
    why: str
    at_ms: int


class PlanChosen(Message, frozen=True):
    """The plan that this generation trains with; JSON texts, together at most 60 kB, or the event is refused.

    `plan` as `Plan.to_json` writes it, `inputs` an object of what it was chosen for (`world_size`, `global_batch`, …),
    `prediction` an object with `step_seconds`, `peak_bytes_per_rank`, `parts`, `mfu` and `binding`. `best` is an array
    of the best few other plans, each with `plan`, `prediction` and `reason`; `alternatives_hash` is the SHA-256 of the
    object `plans/<hash>.json` that holds all of them, empty where none was kept.
    """

    generation: int
    plan: str
    inputs: str = ""
    prediction: str = ""
    best: str = ""
    alternatives_hash: str = ""


class PlanMeasured(Message, frozen=True):
    """What the generation's plan turned out to cost; said again when more steps are known.

    `step_seconds` is the median over `steps`, `peak_bytes_per_rank` the largest of any rank; 0 where a value or its
    prediction is not known. `parts` is a JSON object of measured seconds and bytes by part. `verdict` is one of
    `VERDICTS`, `message` says what contradicts the prediction, and what the next plan makes of it.
    """

    generation: int
    steps: int
    step_seconds: float
    peak_bytes_per_rank: int = 0
    predicted_step_seconds: float = 0.0
    predicted_peak_bytes_per_rank: int = 0
    parts: str = ""
    verdict: str = "NotPredicted"
    message: str = ""


class LinksProbed(Message, frozen=True):
    """What the links between this generation's workers do, `topology` as JSON.

    `reused` where an older probe of the same machines served; `seconds` is what probing took. `sums` is JSON: by which
    algorithm gradients of which size are summed, empty where there is one way only.
    """

    generation: int
    topology: str
    seconds: float = 0.0
    reused: bool = False
    sums: str = ""


class SchemeChanged(Message, frozen=True):
    """Another compression scheme of buckets of gradients, from step `from_step` on.

    Said by the first rank of each `place` (that part of the model which its replicas share, "tp1of2-pp0of2"; empty
    where they have all of it), in order of step and first bucket. `buckets` are ascending, `reason` is CamelCase,
    `why` says it in words.
    """

    generation: int
    buckets: tuple[int, ...]
    from_scheme: str
    to_scheme: str
    reason: str
    why: str
    from_step: int
    place: str = ""


class CompressionAdvised(Message, frozen=True):
    """What `compress: auto` would gain a run that does not use it; said at most once a generation.

    Seconds are medians over the steps up to `step`; `faster` is in time to a loss.
    """

    generation: int
    step: int
    step_seconds: float
    exposed_seconds: float
    predicted_step_seconds: float
    faster: float
    schemes: str = ""


class SaveBegun(Message, frozen=True):
    """Ask to open a save, which waits `patience_s` for a catalogue that is away: training that ends has no next one.

    Answered by `SaveOpened` or `SaveRefused` with the same `step`.
    """

    generation: int
    step: int
    world_size: int
    traceparent: str = ""
    rank: int = 0
    patience_s: float = 0.0


class ShardSaved(Message, frozen=True):
    """This rank's part of the save is durable in the object store."""

    generation: int
    step: int
    rank: int
    world_size: int
    shard_key: str
    shard_hash: str
    bytes_written: int
    bytes_reused: int
    seconds: float
    traceparent: str = ""


class SaveFailed(Message, frozen=True):
    """This rank could not save; training goes on."""

    generation: int
    step: int
    rank: int
    message: str


class CorruptionFound(Message, frozen=True):
    """Bytes did not match their hash while loading; answered by `Latest` with the next best checkpoint."""

    generation: int
    manifest_hash: str
    object_key: str
    chunk_hash: str
    message: str


class AskLatest(Message, frozen=True):
    """Ask for the newest committed checkpoint; answered by `Latest`."""

    generation: int


class WorkerFailed(Message, frozen=True):
    """The worker is about to end because of an exception, or `NonFinite` values; the last thing it says."""

    generation: int
    category: str
    message: str
    traceback: str
    last_step: int


class Span(Message, frozen=True):
    """A finished span of the worker, ids in hex, times in Unix nanoseconds; `error` says why it failed.

    `dropped` counts the spans that this process has dropped so far because a buffer was full.
    """

    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    start_ns: int
    end_ns: int
    attributes: dict[str, str | int | float | bool] = {}  # noqa: RUF012 (msgspec gives each its own)
    error: str = ""
    dropped: int = 0


class Stopping(Message, frozen=True):
    """The worker obeys `Stop`: it saves if asked to, then exits 0."""

    step: int


ToAgent = (
    Hello
    | AwaitGeneration
    | Heartbeat
    | Samples
    | StepRecorded
    | PlanChosen
    | PlanMeasured
    | LinksProbed
    | SchemeChanged
    | CompressionAdvised
    | SaveBegun
    | ShardSaved
    | SaveFailed
    | CorruptionFound
    | AskLatest
    | WorkerFailed
    | Span
    | Stopping
)
