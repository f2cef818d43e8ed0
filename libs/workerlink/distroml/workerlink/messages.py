"""The messages between the agent and a worker, over the agent's unix socket.

Msgpack by msgspec: a training process needs neither gRPC nor protobuf. The first message of a connection is the
worker's `Hello`; whichever side reconnects says again where it stands. Unknown message kinds end the connection
with a clear error, since both ends come from one installation.
"""

from __future__ import annotations

import msgspec

PROTOCOL = 1
MAX_FRAME_BYTES = 8 * 1024 * 1024
VERDICTS = ("AsPredicted", "Slower", "Faster", "MoreMemory", "LessMemory", "NotPredicted")
"""How a plan's measurement stands to its prediction. Where time and memory both contradict it, memory is named."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Root of all messages; the tag is the class name."""


# ---- worker to agent


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
    extra: dict[str, float] = {}
    wire_bytes: dict[str, int] = {}


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
    """Another compression scheme of a bucket of gradients, from step `from_step` on.

    Said by rank 0, in order of step and bucket. `reason` is CamelCase, `why` says it in words.
    """

    generation: int
    bucket: int
    from_scheme: str
    to_scheme: str
    reason: str
    why: str
    from_step: int


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
    """Ask to open a save; answered by `SaveOpened` or `SaveRefused` with the same `step`.

    `patience_s` says for how long the catalogue may be away before that is refused: training that goes on has a next
    save, and training that ends has none.
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
    attributes: dict[str, str | int | float | bool] = {}
    error: str = ""
    dropped: int = 0


class Stopping(Message, frozen=True):
    """The worker obeys `Stop`: it saves if asked to, then exits 0."""

    step: int


# ---- agent to worker


class Welcome(Message, frozen=True):
    """Answer to `Hello`."""

    job: str
    attempt: int
    node: str
    traceparent: str = ""


class Member(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One worker of a generation."""

    worker: str
    node: str
    rank: int
    local_rank: int


class CheckpointRef(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A committed checkpoint: its step and the hash that names its manifest object."""

    step: int
    manifest_hash: str


class Generation(Message, frozen=True):
    """The agreed member set and this worker's place in it. The store is a torch TCPStore that no worker hosts.

    `traceparent` is of the span in which it formed.
    """

    number: int
    rank: int
    local_rank: int
    node_rank: int
    world_size: int
    local_world_size: int
    store_host: str
    store_port: int
    members: list[Member]
    restore: CheckpointRef | None = None
    traceparent: str = ""


class GenerationBroken(Message, frozen=True):
    """Leave this generation at once: tear down its process groups and say `AwaitGeneration`."""

    number: int
    cause: str


class Drain(Message, frozen=True):
    """Leave this generation after the current step: save a checkpoint, then say `AwaitGeneration`."""

    number: int
    reason: str


class Stop(Message, frozen=True):
    """End within `grace_s`: exit 0 after the current step, saving first where `checkpoint` is set."""

    reason: str
    grace_s: int
    checkpoint: bool


class SaveOpened(Message, frozen=True):
    """The save may build on `base_manifest_hash` (empty: none) and write below `object_prefix`."""

    step: int
    save_id: str
    base_manifest_hash: str
    object_prefix: str


class SaveRefused(Message, frozen=True):
    """The save cannot be opened now; training goes on."""

    step: int
    reason: str
    message: str


class CheckpointCommitted(Message, frozen=True):
    """Every shard of the step is durable and the catalogue has it."""

    step: int
    manifest_hash: str


class CheckpointFailed(Message, frozen=True):
    """The save of this step will not become a checkpoint."""

    step: int
    message: str


class Latest(Message, frozen=True):
    """The newest sound checkpoint, or none."""

    restore: CheckpointRef | None = None


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
ToWorker = (
    Welcome
    | Generation
    | GenerationBroken
    | Drain
    | Stop
    | SaveOpened
    | SaveRefused
    | CheckpointCommitted
    | CheckpointFailed
    | Latest
)
