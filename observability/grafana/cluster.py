"""The cluster: who has its slots, who waits, what failed, and what it comes to."""

from __future__ import annotations

from observability.grafana.panels import Page, Panel, Query

CLUSTER = Page(
    uid="distroml-cluster",
    title="DistroML · Cluster",
    text="Slots, the queue, failures, goodput and cost of a deployment.",
    rows={
        "Slots and nodes": (
            Panel(
                title="Slots held",
                text="Share of all slots that jobs hold.",
                queries=(Query("deployment:distroml_slots_held:ratio{%}", "{{deployment}}"),),
                unit="percentunit",
                width=4,
                single=True,
            ),
            Panel(
                title="Agents connected",
                text="Nodes whose agent has a stream to the scheduler now.",
                queries=(Query("sum(distroml_scheduler_connected_agents{%})"),),
                width=4,
                single=True,
            ),
            Panel(
                title="Slots by state",
                text="Closed ones belong to a cordoned or lost node.",
                queries=(Query("sum by (state) (distroml_scheduler_slots{%})", "{{state}}"),),
                stacked=True,
            ),
            Panel(
                title="Nodes by state",
                text="A lost node returns by itself when its agent does.",
                queries=(Query("sum by (state) (distroml_scheduler_nodes{%})", "{{state}}"),),
                stacked=True,
            ),
            Panel(
                title="Slots held by node",
                text="Uneven use shows gangs that do not fit the nodes.",
                queries=(Query('sum by (node) (distroml_scheduler_node_slots{%,state="held"})', "{{node}}"),),
                width=12,
                stacked=True,
            ),
            Panel(
                title="Nodes lost",
                text="Declared lost within the last hour: nothing was heard of the agent for a whole lease.",
                queries=(Query("sum by (deployment) (increase(distroml_scheduler_nodes_lost_total{%}[1h]))", "lost"),),
                width=12,
            ),
        ),
        "Queue and jobs": (
            Panel(
                title="Waiting jobs by reason",
                text="`distroml job explain` says the same of one job, with what would help.",
                queries=(Query("sum by (reason) (distroml_scheduler_queued_jobs{%})", "{{reason}}"),),
                stacked=True,
            ),
            Panel(
                title="Longest wait now",
                text="Of the job that is in the queue longest.",
                queries=(Query("max by (deployment) (distroml_scheduler_queue_oldest_seconds{%})", "{{deployment}}"),),
                unit="s",
            ),
            Panel(
                title="Wait until placed",
                text="Of jobs placed within the last hour: half and nine of ten waited at most so long.",
                queries=tuple(
                    Query(
                        f"histogram_quantile({q}, sum by (le) "
                        "(rate(distroml_scheduler_queue_wait_seconds_bucket{%}[1h])))",
                        f"{q * 100:.0f}%",
                    )
                    for q in (0.5, 0.9)
                ),
                unit="s",
            ),
            Panel(
                title="Jobs by state",
                text="Ended ones for as long as something of them runs.",
                queries=(Query("sum by (state) (distroml_scheduler_jobs{%})", "{{state}}"),),
                stacked=True,
            ),
            Panel(
                title="Submitted and finished",
                text="Within the last hour.",
                queries=(
                    Query("sum(increase(distroml_scheduler_jobs_submitted_total{%}[1h]))", "submitted"),
                    Query("sum by (outcome) (increase(distroml_scheduler_jobs_finished_total{%}[1h]))", "{{outcome}}"),
                ),
            ),
            Panel(
                title="Scheduling cycle",
                text="How long looking at everything takes; placements wait for it.",
                queries=(
                    Query(
                        "histogram_quantile(0.99, sum by (le) "
                        "(rate(distroml_scheduler_cycle_duration_seconds_bucket{%}[$__rate_interval])))",
                        "99%",
                    ),
                ),
                unit="s",
            ),
        ),
        "Failures and recoveries": (
            Panel(
                title="Failed jobs by category",
                text="Within the last hour.",
                queries=(
                    Query(
                        "sum by (category) "
                        '(increase(distroml_scheduler_jobs_finished_total{%,outcome="failed"}[1h])) > 0',
                        "{{category}}",
                    ),
                ),
                stacked=True,
            ),
            Panel(
                title="Broken generations by category",
                text="Within the last hour; the job goes on with the next generation where its budget allows.",
                queries=(
                    Query("sum by (category) (increase(distroml_train_failures_total{%}[1h])) > 0", "{{category}}"),
                ),
                stacked=True,
            ),
            Panel(
                title="Time to recover",
                text="From the loss of a worker to the end of the next generation's first step, by what had happened.",
                queries=(
                    Query(
                        "sum by (category) (rate(distroml_train_recovery_seconds_sum{%}[1h])) / "
                        "sum by (category) (rate(distroml_train_recovery_seconds_count{%}[1h]))",
                        "{{category}}",
                    ),
                ),
                unit="s",
            ),
        ),
        "Goodput and cost": (
            Panel(
                title="Goodput",
                text="Useful step time over the time of held slots, of all jobs, in the last quarter of an hour.",
                queries=(
                    Query(
                        "sum(rate(distroml_train_useful_slot_seconds_total{%}[15m])) / "
                        "sum(rate(distroml_scheduler_job_slot_seconds_total{%}[15m]))",
                        "goodput",
                    ),
                ),
                unit="percentunit",
            ),
            Panel(
                title="Slot-hours of a day",
                text="Hours for which slots were held within 24 hours, times how many: what the cluster was used for.",
                queries=(Query("deployment:distroml_slot_hours:increase1d{%}", "{{deployment}}"),),
                unit="h",
            ),
            Panel(
                title="Largest users",
                text="Jobs by the slots that they held within the last quarter of an hour, on average.",
                queries=(
                    Query(
                        "topk(10, sum by (job_id) (rate(distroml_scheduler_job_slot_seconds_total{%}[15m])))",
                        "{{job_id}}",
                    ),
                ),
            ),
        ),
    },
)
