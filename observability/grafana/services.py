"""The services: do they answer, how fast, and how far the log and its readers are behind."""

from __future__ import annotations

from observability.grafana.panels import Page, Panel, Query

SERVICES = Page(
    uid="distroml-services",
    title="DistroML · Services",
    text="Calls, commits, the log's way through relay and readers, leases, disks and drops.",
    choice="service",
    rows={
        "Health": (
            Panel(
                title="Answering",
                text="1 where the metrics page answers.",
                queries=(Query('min by (service) (up{job="distroml",%})', "{{service}}"),),
                width=6,
            ),
            Panel(
                title="Parts that work",
                text="Servers and tasks that a service needs; `/healthz` says why one is at 0.",
                queries=(Query("min by (service, part) (distroml_service_part_up{%})", "{{service}} {{part}}"),),
                width=6,
            ),
            Panel(
                title="Leases",
                text="Replicas that hold a role: exactly one each.",
                queries=(Query("sum by (lease) (distroml_lease_held{%})", "{{lease}}"),),
                width=6,
            ),
            Panel(
                title="Background tasks up",
                text="0 where one crashed and waits to be started again.",
                queries=(Query("min by (service, task) (distroml_task_up{%})", "{{service}} {{task}}"),),
                width=6,
            ),
            Panel(
                title="Disk left",
                text="Of the file system with the data folder.",
                queries=(Query("min by (service) (service:distroml_data_free:ratio{%})", "{{service}}"),),
                unit="percentunit",
            ),
            Panel(
                title="Memory",
                text="Resident.",
                queries=(Query("max by (service) (process_resident_memory_bytes{%})", "{{service}}"),),
                unit="bytes",
            ),
            Panel(
                title="Processor time",
                text="Cores in use.",
                queries=(
                    Query("sum by (service) (rate(process_cpu_seconds_total{%}[$__rate_interval]))", "{{service}}"),
                ),
            ),
        ),
        "Calls": (
            Panel(
                title="Calls per second",
                text="Streams count when they end.",
                queries=(Query("service:distroml_rpc_server_calls:rate5m{%}", "{{service}}"),),
            ),
            Panel(
                title="By outcome",
                text="Everything but OK; refusals such as NOT_FOUND are answers, too.",
                queries=(
                    Query(
                        'sum by (code) (rate(distroml_rpc_server_call_duration_seconds_count{%,code!="OK"}[5m]))',
                        "{{code}}",
                    ),
                ),
            ),
            Panel(
                title="Slowest methods",
                text="99 of 100 calls are answered within; streams are as long as they are kept open.",
                queries=(
                    Query("topk(10, service_method:distroml_rpc_server_call_duration_seconds:p99_5m{%})", "{{method}}"),
                ),
                unit="s",
            ),
            Panel(
                title="Calls in flight",
                text="Open streams among them.",
                queries=(Query("sum by (service) (distroml_rpc_server_calls_in_flight{%})", "{{service}}"),),
                width=12,
            ),
            Panel(
                title="Scheduler, rendezvous and their agents",
                text="Sessions of agents: one per node at each.",
                queries=(
                    Query("sum(distroml_scheduler_connected_agents{%})", "scheduler"),
                    Query("sum(distroml_rendezvous_sessions{%})", "rendezvous"),
                ),
                width=12,
            ),
        ),
        "Commits and the log": (
            Panel(
                title="Commits per second",
                text="By outcome; conflicts are decided anew.",
                queries=(
                    Query(
                        "sum by (outcome) "
                        "(rate(distroml_eventstore_commit_duration_seconds_count{%}[$__rate_interval]))",
                        "{{outcome}}",
                    ),
                ),
                stacked=True,
            ),
            Panel(
                title="Time of a commit",
                text="99 of 100 are durable within.",
                queries=(Query("service:distroml_eventstore_commit_duration_seconds:p99_5m{%}", "{{service}}"),),
                unit="s",
            ),
            Panel(
                title="Events per second",
                text="By who committed them.",
                queries=(
                    Query(
                        "sum by (service) (rate(distroml_eventstore_events_total{%}[$__rate_interval]))", "{{service}}"
                    ),
                ),
            ),
            Panel(
                title="From decision to reader",
                text="99 of 100 events reach a subscription within.",
                queries=(
                    Query(
                        "histogram_quantile(0.99, sum by (durable, le) "
                        "(rate(distroml_subscription_delivery_seconds_bucket{%}[5m])))",
                        "{{durable}}",
                    ),
                ),
                unit="s",
            ),
            Panel(
                title="Readers' lag",
                text="Age of the event that is worked on; 0 for one that waits for the next.",
                queries=(Query("max by (durable) (distroml_subscription_lag_seconds{%})", "{{durable}}"),),
                unit="s",
            ),
            Panel(
                title="Relay's lag",
                text="For how long a commit has waited to be in JetStream.",
                queries=(Query("max(distroml_relay_lag_seconds{%})", "lag"),),
                unit="s",
            ),
            Panel(
                title="Outbox",
                text="Commits that wait until JetStream and segments have them; at 100,000 services decide nothing.",
                queries=(Query("max(distroml_relay_outbox_commits{%})", "commits"),),
            ),
            Panel(
                title="Published and sealed",
                text="Revisions up to which JetStream and the segments have the log.",
                queries=(
                    Query("max(distroml_relay_published_revision{%})", "published"),
                    Query("max(distroml_relay_sealed_revision{%})", "sealed"),
                ),
            ),
            Panel(
                title="Generations decided",
                text="Opened, formed and broken ones, and closed attempts, per second.",
                queries=(Query("sum by (event) (rate(distroml_rendezvous_decisions_total{%}[5m]))", "{{event}}"),),
            ),
        ),
        "Telemetry": (
            Panel(
                title="Dropped records",
                text="Within 5 minutes, by kind and where.",
                queries=(
                    Query(
                        "sum by (kind, where) (increase(distroml_telemetry_dropped_total{%}[5m])) > 0",
                        "{{kind}} {{where}}",
                    ),
                ),
                width=12,
            ),
            Panel(
                title="Records waiting to be written",
                text="A queue that stays long is followed by drops.",
                queries=(Query("sum(distroml_telemetry_pending_records{%})", "waiting"),),
                width=12,
            ),
        ),
    },
)
