"""For each alert, series under which it fires and series under which it must not; one sample a minute, from minute 0.

`5x60` in a series means sixty more samples of the same value, `0+1x60` as many that grow by one.
"""

from __future__ import annotations

from dataclasses import dataclass

Series = dict[str, str]
S = 'deployment="dep-1",service="scheduler",job="distroml",instance="10.0.0.1:9100"'
ELSEWHERE = 'deployment="dep-1",service="telemetry",job_id="job-1"'
CALLS = f'distroml_rpc_server_call_duration_seconds_count{{{S},method="/m",code='
COMMITS = f'distroml_eventstore_commit_duration_seconds_bucket{{{S},outcome="committed",le='
FREE, SIZE = f"distroml_data_free_bytes{{{S}}}", f"distroml_data_size_bytes{{{S}}}"
OLDEST, PLACED = f"distroml_scheduler_queue_oldest_seconds{{{S}}}", f"distroml_scheduler_placements_total{{{S}}}"
LAST = f'distroml_train_last_checkpoint_timestamp_seconds{{{S},job_id="job-1"}}'
STARTED = f'distroml_train_started_timestamp_seconds{{{S},job_id="job-1"}}'
STEPS = f'distroml_train_step_seconds_count{{{S},job_id="job-1"}}'
BROKE = f'distroml_train_job_failures_total{{{S},job_id="job-1"}}'
FAILED = f"distroml_checkpoint_saves_failed_total{{{S},reason="


@dataclass(frozen=True)
class Case:
    """`at_min`: when it is looked at."""

    fires: Series
    silent: Series
    at_min: int = 30


CASES = {
    # A scrape that fails once is no outage.
    "ServiceDown": Case({f"up{{{S}}}": "1x27 0x9"}, {f"up{{{S}}}": "1x29 0"}),
    "TaskCrashing": Case(
        {f'distroml_task_restarts_total{{{S},task="cycle"}}': "0+1x60"},
        {f'distroml_task_restarts_total{{{S},task="cycle"}}': "0x24 1x9"},
    ),
    "PartDown": Case(
        {f'distroml_service_part_up{{{S},part="reactor stream"}}': "0x60"},
        {f'distroml_service_part_up{{{S},part="reactor stream"}}': "1x60"},
    ),
    "EtcdTrouble": Case(
        {f'distroml_service_part_up{{{S},part="etcd"}}': "1x20 0x30"},
        {f'distroml_service_part_up{{{S},part="nats"}}': "0x60"},
    ),
    "JetStreamTrouble": Case(
        {f'distroml_service_part_up{{{S},part="nats"}}': "1x20 0x30"},
        {f'distroml_service_part_up{{{S},part="etcd"}}': "0x60"},
    ),
    # Refusals are answers.
    "CallsFail": Case(
        {CALLS + '"OK"}': "0+90x60", CALLS + '"INTERNAL"}': "0+10x60"},
        {CALLS + '"OK"}': "0+90x60", CALLS + '"NOT_FOUND"}': "0+90x60"},
    ),
    "CommitsSlow": Case(
        {COMMITS + '"1"}': "0+90x60", COMMITS + '"5"}': "0+100x60", COMMITS + '"+Inf"}': "0+100x60"},
        {COMMITS + '"1"}': "0+100x60", COMMITS + '"5"}': "0+100x60", COMMITS + '"+Inf"}': "0+100x60"},
    ),
    "ReaderLags": Case(
        {f'distroml_subscription_lag_seconds{{{S},durable="telemetry.jobs"}}': "31+60x60"},
        {f'distroml_subscription_lag_seconds{{{S},durable="telemetry.jobs"}}': "0x28 45 0x5"},
    ),
    # What cannot be measured has size 0, and is no full disk.
    "DiskNearlyFull": Case({FREE: "9x60", SIZE: "100x60"}, {FREE: "0x60", SIZE: "0x60"}),
    "TelemetryDrops": Case(
        {f'distroml_telemetry_dropped_total{{{S},kind="line",where="disk"}}': "0x27 7x9"},
        {f'distroml_telemetry_dropped_total{{{S},kind="line",where="bound"}}': "0+9x60"},
    ),
    "SpansLost": Case(
        {f'distroml_spans_dropped_total{{{S},why="refused"}}': "0x27 7x9"},
        {f'distroml_spans_dropped_total{{{S},why="refused"}}': "7x60"},
    ),
    # A short burst is what the allowance is for.
    "LinesLimited": Case(
        {f"distroml_agent_log_limited_bytes_total{{{S}}}": "0+20000000x60"},
        {f"distroml_agent_log_limited_bytes_total{{{S}}}": "0x20 90000000x60"},
    ),
    # Of two replicas one works.
    "NoRelay": Case(
        {f'distroml_relay_works{{{S},replica="a"}}': "0x60", f'distroml_relay_works{{{S},replica="b"}}': "0x60"},
        {f'distroml_relay_works{{{S},replica="a"}}': "1x60", f'distroml_relay_works{{{S},replica="b"}}': "0x60"},
    ),
    "RelayLags": Case(
        {f"distroml_relay_lag_seconds{{{S}}}": "0x20 11+60x20"}, {f"distroml_relay_lag_seconds{{{S}}}": "9x60"}
    ),
    "OutboxFills": Case(
        {f"distroml_relay_outbox_commits{{{S}}}": "0+1000x60"}, {f"distroml_relay_outbox_commits{{{S}}}": "9000x60"}
    ),
    "NoScheduling": Case(
        {f"distroml_scheduler_cycle_duration_seconds_count{{{S}}}": "0+60x20 1200x30"},
        {f"distroml_scheduler_cycle_duration_seconds_count{{{S}}}": "0+60x60"},
    ),
    # A long queue that moves is not stuck.
    "QueueStuck": Case({OLDEST: "0+60x90", PLACED: "5x90"}, {OLDEST: "0+60x90", PLACED: "0+1x90"}, at_min=60),
    "NodeLost": Case(
        {f"distroml_scheduler_nodes_lost_total{{{S}}}": "0x20 1x20"},
        {f"distroml_scheduler_nodes_lost_total{{{S}}}": "3x60"},
    ),
    "JobFailsRepeatedly": Case({BROKE: "0x5 1x5 2x5 3x5 4x20"}, {BROKE: "0x10 1x30"}),
    # The clock of these tests begins at 0.
    "NoCheckpointForLong": Case(
        {LAST: "60x200", STARTED: "0x200", STEPS: "0+50x200"},
        {LAST: "6000x200", STARTED: "0x200", STEPS: "0+50x200"},
        at_min=120,
    ),
    "SavesFail": Case({FAILED + '"StoreFull"}': "0x20 1x3 2x3 5x20"}, {FAILED + '"Superseded"}': "0x20 1x3 2x3 5x20"}),
    "CheckpointDamaged": Case(
        {f"distroml_checkpoint_corruptions_total{{{S}}}": "0x20 1x20"},
        {f"distroml_checkpoint_corruptions_total{{{S}}}": "0x60"},
    ),
}

# A second way to be silent: what else must not be taken for the trouble.
ALSO_SILENT = {
    "NoCheckpointForLong": Case({}, {STARTED: "0x200", STEPS: "0+50x20 1000x180"}, at_min=120),
    "QueueStuck": Case({}, {OLDEST: "0x90", PLACED: "5x90"}, at_min=60),
}
ALSO_FIRES = {"NoCheckpointForLong": Case({STARTED: "0x200", STEPS: "0+50x200"}, {}, at_min=120)}

RECORDED = {
    # name: (series, the sample expected after half an hour)
    "service:distroml_rpc_server_errors:ratio_rate5m": (
        {CALLS + '"OK"}': "0+90x60", CALLS + '"INTERNAL"}': "0+10x60"},
        ('deployment="dep-1",service="scheduler"', 0.1),
    ),
    "service_method:distroml_rpc_server_call_duration_seconds:p99_5m": (
        {
            f'distroml_rpc_server_call_duration_seconds_bucket{{{S},method="/m",code="OK",le="{le}"}}': "0+60x60"
            for le in ("0.5", "1", "+Inf")
        },
        ('deployment="dep-1",service="scheduler",method="/m"', 0.495),
    ),
    "service:distroml_data_free:ratio": ({FREE: "25x60", SIZE: "100x60"}, (S, 0.25)),
    "job_id:distroml_train_step_seconds:mean1m": (
        {f'distroml_train_step_seconds_sum{{{S},job_id="job-1"}}': "0+30x60", STEPS: "0+120x60"},
        ('deployment="dep-1",job_id="job-1"', 0.25),
    ),
    "job_id:distroml_train_tokens:rate1m": (
        {f'distroml_train_tokens_total{{{S},job_id="job-1"}}': "0+6000x60"},
        ('deployment="dep-1",job_id="job-1"', 100),
    ),
    "job_id:distroml_train_samples:rate1m": (
        {f'distroml_train_samples_total{{{S},job_id="job-1"}}': "0+600x60"},
        ('deployment="dep-1",job_id="job-1"', 10),
    ),
    "job_id:distroml_train_comm_wait:ratio_rate1m": (
        {
            f'distroml_train_comm_wait_seconds_total{{{S},job_id="job-1"}}': "0+6x60",
            f'distroml_train_step_seconds_sum{{{S},job_id="job-1"}}': "0+60x60",
        },
        ('deployment="dep-1",job_id="job-1"', 0.1),
    ),
    # Two services know the two halves of it.
    "job_id:distroml_goodput:ratio_rate15m": (
        {
            f"distroml_train_useful_slot_seconds_total{{{ELSEWHERE}}}": "0+90x60",
            f'distroml_scheduler_job_slot_seconds_total{{{S},job_id="job-1"}}': "0+120x60",
        },
        ('deployment="dep-1",job_id="job-1"', 0.75),
    ),
    "deployment:distroml_slots_held:ratio": (
        {f'distroml_scheduler_slots{{{S},state="{state}"}}': f"{n}x60" for state, n in (("held", 3), ("free", 1))},
        ('deployment="dep-1"', 0.75),
    ),
    "deployment:distroml_slot_hours:increase1d": (
        {f'distroml_scheduler_slot_seconds_total{{{S},state="held"}}': "0+120x2000"},
        ('deployment="dep-1"', 48),
    ),
    "service:distroml_rpc_server_calls:rate5m": (
        {CALLS + '"OK"}': "0+60x60", CALLS + '"NOT_FOUND"}': "0+30x60"},
        ('deployment="dep-1",service="scheduler"', 1.5),
    ),
    "service:distroml_eventstore_commit_duration_seconds:p99_5m": (
        {COMMITS + '"1"}': "0+100x60", COMMITS + '"+Inf"}': "0+100x60"},
        ('deployment="dep-1",service="scheduler"', 0.99),
    ),
}
