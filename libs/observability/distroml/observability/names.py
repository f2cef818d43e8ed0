"""Names of metrics, spans and log fields.

A name is stable once released: dashboards, alerts and log searches are built on it. Metrics follow Prometheus'
conventions: base units, `_total` for counters; labels have few values by construction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Log fields, named as the Elastic Common Schema (ECS) names them; what it has no name for is below `distroml`, and
# fields that one module alone knows are below `labels`. Those up to `MESSAGE` stand in every line.
ECS: Final = "9.0.0"
TIMESTAMP: Final = "@timestamp"
LEVEL: Final = "log.level"
ECS_VERSION: Final = "ecs.version"
SERVICE: Final = "service.name"
LOGGER: Final = "log.logger"
MESSAGE: Final = "message"
TRACE_ID: Final = "trace.id"
SPAN_ID: Final = "span.id"
ERROR_TYPE: Final = "error.type"
ERROR_MESSAGE: Final = "error.message"
STACK_TRACE: Final = "error.stack_trace"
TRUNCATED: Final = "distroml.truncated_bytes"
DEPLOYMENT: Final = "distroml.deployment"
LABELS: Final = "labels."

# Words by which a caller of a log gives a field, and what it is called in the line.
JOB: Final = "job"
RANK: Final = "rank"
NODE: Final = "node"
WORKER: Final = "worker"
ATTEMPT: Final = "attempt"
GENERATION: Final = "generation"
STREAM: Final = "stream"
POSITION: Final = "position"
REQUEST_ID: Final = "request_id"
ACTOR: Final = "actor"
REASON: Final = "reason"
ERROR: Final = "error"
FIELDS: Final = {
    **{
        word: f"distroml.{word}"
        for word in (*(JOB, RANK, NODE, WORKER, ATTEMPT, GENERATION, STREAM, POSITION, REQUEST_ID, ACTOR, REASON),)
    },
    ERROR: ERROR_MESSAGE,
}

# Metrics of every service.
RPC_SERVER_DURATION: Final = "distroml_rpc_server_call_duration_seconds"
RPC_SERVER_IN_FLIGHT: Final = "distroml_rpc_server_calls_in_flight"
TASK_RESTARTS: Final = "distroml_task_restarts_total"
TASK_UP: Final = "distroml_task_up"
SERVICE_INFO: Final = "distroml_service_info"
SERVICE_PART_UP: Final = "distroml_service_part_up"
CLOCK_APART: Final = "distroml_clock_ahead_seconds"
DATA_SIZE_BYTES: Final = "distroml_data_size_bytes"
DATA_FREE_BYTES: Final = "distroml_data_free_bytes"
LEASE_HELD: Final = "distroml_lease_held"
EVENTSTORE_COMMIT_SECONDS: Final = "distroml_eventstore_commit_duration_seconds"
EVENTSTORE_EVENTS: Final = "distroml_eventstore_events_total"
EVENTSTORE_LIVE_STREAMS: Final = "distroml_eventstore_live_streams"
EVENTSTORE_RETIRED: Final = "distroml_eventstore_retired_streams_total"
SUBSCRIPTION_DELIVERY_SECONDS: Final = "distroml_subscription_delivery_seconds"
SUBSCRIPTION_LAG_SECONDS: Final = "distroml_subscription_lag_seconds"

# Metrics of the queue, jobs, nodes and slots, kept by the scheduler.
SCHEDULER_CYCLE_SECONDS: Final = "distroml_scheduler_cycle_duration_seconds"
SCHEDULER_PLACEMENTS: Final = "distroml_scheduler_placements_total"
SCHEDULER_AGENTS: Final = "distroml_scheduler_connected_agents"
SCHEDULER_SKIPPED: Final = "distroml_scheduler_reactor_skipped_total"
SCHEDULER_JOBS: Final = "distroml_scheduler_jobs"
SCHEDULER_SUBMITTED: Final = "distroml_scheduler_jobs_submitted_total"
SCHEDULER_FINISHED: Final = "distroml_scheduler_jobs_finished_total"
SCHEDULER_QUEUED: Final = "distroml_scheduler_queued_jobs"
SCHEDULER_QUEUE_OLDEST_SECONDS: Final = "distroml_scheduler_queue_oldest_seconds"
SCHEDULER_QUEUE_WAIT_SECONDS: Final = "distroml_scheduler_queue_wait_seconds"
SCHEDULER_SLOTS: Final = "distroml_scheduler_slots"
SCHEDULER_NODE_SLOTS: Final = "distroml_scheduler_node_slots"
SCHEDULER_NODES: Final = "distroml_scheduler_nodes"
SCHEDULER_NODES_LOST: Final = "distroml_scheduler_nodes_lost_total"
SCHEDULER_SLOT_SECONDS: Final = "distroml_scheduler_slot_seconds_total"
SCHEDULER_JOB_SLOT_SECONDS: Final = "distroml_scheduler_job_slot_seconds_total"

# Metrics of generations, kept by rendezvous.
RENDEZVOUS_SESSIONS: Final = "distroml_rendezvous_sessions"
RENDEZVOUS_REFUSED: Final = "distroml_rendezvous_reports_refused_total"
RENDEZVOUS_DECISIONS: Final = "distroml_rendezvous_decisions_total"

# Metrics of the catalogue of checkpoints.
CHECKPOINT_COMMITTED: Final = "distroml_checkpoints_committed_total"
CHECKPOINT_BYTES: Final = "distroml_checkpoint_bytes_total"
CHECKPOINT_SAVE_SECONDS: Final = "distroml_checkpoint_save_duration_seconds"
CHECKPOINT_FAILED: Final = "distroml_checkpoint_saves_failed_total"
CHECKPOINT_CORRUPTIONS: Final = "distroml_checkpoint_corruptions_total"
CHECKPOINT_REMOVED: Final = "distroml_checkpoint_objects_removed_total"

# Metrics of training, kept by telemetry.
TRAIN_STEP_SECONDS: Final = "distroml_train_step_seconds"
TRAIN_LOSS: Final = "distroml_train_loss"
TRAIN_STEP: Final = "distroml_train_step"
TRAIN_TOKENS: Final = "distroml_train_tokens_total"
TRAIN_SAMPLES: Final = "distroml_train_samples_total"
TRAIN_USEFUL_SLOT_SECONDS: Final = "distroml_train_useful_slot_seconds_total"
TRAIN_WORLD_SIZE: Final = "distroml_train_world_size"
TRAIN_MFU: Final = "distroml_train_mfu_ratio"
TRAIN_STARTED: Final = "distroml_train_started_timestamp_seconds"
TRAIN_LAST_CHECKPOINT: Final = "distroml_train_last_checkpoint_timestamp_seconds"
TRAIN_LAST_CHECKPOINT_STEP: Final = "distroml_train_last_checkpoint_step"
TRAIN_JOB_FAILURES: Final = "distroml_train_job_failures_total"
TRAIN_FAILURES: Final = "distroml_train_failures_total"
TRAIN_DATA_WAIT_SECONDS: Final = "distroml_train_data_wait_seconds_total"
TRAIN_RECOVERY_SECONDS: Final = "distroml_train_recovery_seconds"
TRAIN_COMM_WAIT_SECONDS: Final = "distroml_train_comm_wait_seconds_total"
TRAIN_WIRE_BYTES: Final = "distroml_train_wire_bytes_total"
TRAIN_SCHEME_CHANGES: Final = "distroml_train_scheme_changes_total"
TRAIN_CHECKPOINTS: Final = "distroml_train_checkpoints_total"
TELEMETRY_DROPPED: Final = "distroml_telemetry_dropped_total"
TELEMETRY_SKIPPED_EVENTS: Final = "distroml_telemetry_skipped_events_total"
TELEMETRY_UNLABELLED: Final = "distroml_telemetry_unlabelled_total"
TELEMETRY_PENDING: Final = "distroml_telemetry_pending_records"
AGENT_LOG_LINES: Final = "distroml_agent_log_lines_total"
AGENT_LOG_BYTES_LIMITED: Final = "distroml_agent_log_limited_bytes_total"

# Metrics of the log's way from the outbox, kept by the relay.
RELAY_WORKS: Final = "distroml_relay_works"
RELAY_PUBLISHED: Final = "distroml_relay_published_revision"
RELAY_SEALED: Final = "distroml_relay_sealed_revision"
RELAY_OUTBOX: Final = "distroml_relay_outbox_commits"
RELAY_LAG_SECONDS: Final = "distroml_relay_lag_seconds"

# Labels of metrics. Prometheus itself puts `job` and `instance` on every series: a job of ours is a `job_id`.
LABEL_JOB: Final = "job_id"
LABEL_NODE: Final = "node"
LABEL_STATE: Final = "state"
LABEL_OUTCOME: Final = "outcome"
LABEL_CATEGORY: Final = "category"
LABEL_REASON: Final = "reason"
LABEL_AXIS: Final = "axis"
LABEL_SCHEME: Final = "scheme"
LABEL_KIND: Final = "kind"
LABEL_WHERE: Final = "where"
LABEL_WHY: Final = "why"
LABEL_HOW: Final = "how"
LABEL_EVENT: Final = "event"
LABEL_METHOD: Final = "method"
LABEL_CODE: Final = "code"
LABEL_TASK: Final = "task"
LABEL_PART: Final = "part"
LABEL_LEASE: Final = "lease"
LABEL_DURABLE: Final = "durable"
LABEL_SERVICE: Final = "service"

LABEL_BOUNDS: Final[Mapping[str, str]] = {
    LABEL_JOB: "at most 50 jobs (`DISTROML_TELEMETRY_LABELLED_JOBS` for telemetry): one keeps its place while it "
    "trains, and for an hour more where no other needs it",
    LABEL_NODE: "the first 500 nodes by name; the others together are `others`",
    LABEL_STATE: "states of jobs, nodes or slots, which the code lists",
    LABEL_OUTCOME: "outcomes that the code lists",
    LABEL_CATEGORY: "the closed set of kinds of failure",
    LABEL_REASON: "reasons that the code lists",
    LABEL_AXIS: "axes of a mesh, and `other`",
    LABEL_SCHEME: "kinds of compression, and `other`",
    LABEL_KIND: "kinds of records that the code lists",
    LABEL_WHERE: "places that the code lists",
    LABEL_WHY: "reasons that the code lists",
    LABEL_HOW: "`written` and `reused`",
    LABEL_EVENT: "types of events that the code lists",
    LABEL_METHOD: "methods that the service serves",
    LABEL_CODE: "gRPC's status codes",
    LABEL_TASK: "background tasks that the code starts",
    LABEL_PART: "parts of a service that its code reports on",
    LABEL_LEASE: "roles that the code takes a lease for",
    LABEL_DURABLE: "subscriptions that the code makes",
    LABEL_SERVICE: "the services",
}
"""Why each label has few values; a metric with another label fails a test."""

# Spans lost on their way, by why: `full`, `refused` (by the receiver, or it is away), `unsent` (at the end), `link`
# (between a worker and its agent).
SPANS_EXPORTED: Final = "distroml_spans_exported_total"
SPANS_DROPPED: Final = "distroml_spans_dropped_total"

# What a process is (OpenTelemetry's semantic conventions where they have one).
RESOURCE_SERVICE: Final = "service.name"
RESOURCE_NAMESPACE: Final = "service.namespace"
RESOURCE_INSTANCE: Final = "service.instance.id"
RESOURCE_DEPLOYMENT: Final = "distroml.deployment"

# Names of spans; calls are named by their method, consumed events by `process` and who consumes.
SPAN_SCHEDULE: Final = "schedule"
SPAN_PREPARE: Final = "prepare"
SPAN_FORM: Final = "form generation"
SPAN_RECOVER: Final = "recover"
SPAN_CLOSE: Final = "close attempt"
SPAN_START_WORKER: Final = "start worker"
SPAN_SET_UP: Final = "set up"
SPAN_RESTORE: Final = "restore"
SPAN_FIRST_STEP: Final = "first step"
SPAN_STEP: Final = "step"
SPAN_CHECKPOINT: Final = "checkpoint"
SPAN_PROCESS: Final = "process"
SPAN_PUBLISH: Final = "publish"

# Attributes of spans (OpenTelemetry's semantic conventions where they have one).
SPAN_RPC_SYSTEM: Final = "rpc.system"
SPAN_RPC_SERVICE: Final = "rpc.service"
SPAN_RPC_METHOD: Final = "rpc.method"
SPAN_RPC_STATUS: Final = "rpc.grpc.status_code"
SPAN_SERVER_ADDRESS: Final = "server.address"
SPAN_SERVER_PORT: Final = "server.port"
SPAN_MESSAGING_SYSTEM: Final = "messaging.system"
SPAN_MESSAGING_OPERATION: Final = "messaging.operation.type"
SPAN_MESSAGING_OPERATION_NAME: Final = "messaging.operation.name"
SPAN_MESSAGING_BATCH: Final = "messaging.batch.message_count"
SPAN_MESSAGING_DESTINATION: Final = "messaging.destination.name"
SPAN_MESSAGING_CONSUMER: Final = "messaging.consumer.group.name"
SPAN_MESSAGING_ID: Final = "messaging.message.id"
SPAN_JOB: Final = "distroml.job"
SPAN_ATTEMPT: Final = "distroml.attempt"
SPAN_GENERATION: Final = "distroml.generation"
SPAN_WORLD_SIZE: Final = "distroml.world_size"
SPAN_NODE: Final = "distroml.node"
SPAN_WORKER: Final = "distroml.worker"
SPAN_RANK: Final = "distroml.rank"
SPAN_STEP_NUMBER: Final = "distroml.step"
SPAN_EVENT: Final = "distroml.event"
SPAN_COMMANDS: Final = "distroml.commands"
SPAN_OUTCOME: Final = "distroml.outcome"
SPAN_CAUSE: Final = "distroml.cause"
SPAN_START: Final = "distroml.start"
SPAN_ACTOR: Final = "distroml.actor"
