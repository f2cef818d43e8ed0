"""Names of metrics, spans and log fields.

A name is stable once released: dashboards, alerts and log searches are built on it. Metrics follow Prometheus'
conventions: base units, `_total` for counters; labels have few values by construction.
"""

from __future__ import annotations

from typing import Final

# Log fields; `MESSAGE` and the ones above it stand in every line.
TIMESTAMP: Final = "timestamp"
LEVEL: Final = "level"
SERVICE: Final = "service"
MESSAGE: Final = "message"
LOGGER: Final = "logger"
TRACE_ID: Final = "trace_id"
SPAN_ID: Final = "span_id"
DEPLOYMENT: Final = "deployment"
JOB: Final = "job"
NODE: Final = "node"
WORKER: Final = "worker"
GENERATION: Final = "generation"
STREAM: Final = "stream"
POSITION: Final = "position"
REQUEST_ID: Final = "request_id"
ACTOR: Final = "actor"
REASON: Final = "reason"
EXCEPTION: Final = "exception"
TRUNCATED: Final = "truncated_bytes"

# Metrics of every service.
RPC_SERVER_DURATION: Final = "distroml_rpc_server_call_duration_seconds"
RPC_SERVER_IN_FLIGHT: Final = "distroml_rpc_server_calls_in_flight"
TASK_RESTARTS: Final = "distroml_task_restarts_total"
TASK_UP: Final = "distroml_task_up"
SERVICE_INFO: Final = "distroml_service_info"

# Metrics of training, kept by telemetry.
TRAIN_STEP_SECONDS: Final = "distroml_train_step_seconds"
TRAIN_LOSS: Final = "distroml_train_loss"
TRAIN_STEP: Final = "distroml_train_step"
TRAIN_TOKENS: Final = "distroml_train_tokens_total"
TRAIN_SAMPLES: Final = "distroml_train_samples_total"
TRAIN_RECOVERY_SECONDS: Final = "distroml_train_recovery_seconds"
TRAIN_COMM_WAIT_SECONDS: Final = "distroml_train_comm_wait_seconds_total"
TRAIN_WIRE_BYTES: Final = "distroml_train_wire_bytes_total"
TRAIN_SCHEME_CHANGES: Final = "distroml_train_scheme_changes_total"
TRAIN_CHECKPOINTS: Final = "distroml_train_checkpoints_total"
TELEMETRY_DROPPED: Final = "distroml_telemetry_dropped_total"
TELEMETRY_SKIPPED_EVENTS: Final = "distroml_telemetry_skipped_events_total"
TELEMETRY_PENDING: Final = "distroml_telemetry_pending_records"

# Labels of metrics.
LABEL_JOB: Final = "job"
LABEL_OUTCOME: Final = "outcome"
LABEL_AXIS: Final = "axis"
LABEL_SCHEME: Final = "scheme"
LABEL_KIND: Final = "kind"
LABEL_WHERE: Final = "where"
LABEL_METHOD: Final = "method"
LABEL_CODE: Final = "code"
LABEL_TASK: Final = "task"

# Attributes of spans (OpenTelemetry's semantic conventions where they have one).
SPAN_RPC_SYSTEM: Final = "rpc.system"
SPAN_RPC_METHOD: Final = "rpc.method"
SPAN_RPC_STATUS: Final = "rpc.grpc.status_code"
SPAN_JOB: Final = "distroml.job"
SPAN_ACTOR: Final = "distroml.actor"
