"""One job, or some side by side: does it learn, how fast, and what holds it back."""

from __future__ import annotations

from observability.grafana.panels import Page, Panel, Query

JOB = Page(
    uid="distroml-job",
    title="DistroML · Job",
    text="Loss, speed, communication, failures and cost of jobs; DistroML's own job page has the rest.",
    choice="job_id",
    rows={
        "Training": (
            Panel(
                title="Loss",
                text="Of the newest step.",
                queries=(Query("max by (job_id) (distroml_train_loss{%})", "{{job_id}}"),),
            ),
            Panel(
                title="Step",
                text="The newest one; after a recovery it begins again at the last checkpoint.",
                queries=(Query("max by (job_id) (distroml_train_step{%})", "{{job_id}}"),),
            ),
            Panel(
                title="Workers",
                text="World size of the newest step.",
                queries=(Query("max by (job_id) (distroml_train_world_size{%})", "{{job_id}}"),),
            ),
        ),
        "Speed": (
            Panel(
                title="Time of a step",
                text="Mean of the last minute, and the slowest twentieth.",
                queries=(
                    Query("job_id:distroml_train_step_seconds:mean1m{%}", "{{job_id}} mean"),
                    Query(
                        "histogram_quantile(0.95, sum by (job_id, le) "
                        "(rate(distroml_train_step_seconds_bucket{%}[$__rate_interval])))",
                        "{{job_id}} 95%",
                    ),
                ),
                unit="s",
            ),
            Panel(
                title="Tokens per second",
                text="Over all ranks; 0 for scripts that count samples only.",
                queries=(Query("job_id:distroml_train_tokens:rate1m{%}", "{{job_id}}"),),
            ),
            Panel(
                title="Samples per second",
                text="Over all ranks.",
                queries=(Query("job_id:distroml_train_samples:rate1m{%}", "{{job_id}}"),),
            ),
            Panel(
                title="Model flops used",
                text="Share of the devices' peak, where the plan or the script knows it.",
                queries=(Query("max by (job_id) (distroml_train_mfu_ratio{%})", "{{job_id}}"),),
                unit="percentunit",
            ),
            Panel(
                title="Waiting for data",
                text="Share of rank 0's time.",
                queries=(
                    Query(
                        "sum by (job_id) (rate(distroml_train_data_wait_seconds_total{%}[$__rate_interval]))",
                        "{{job_id}}",
                    ),
                ),
                unit="percentunit",
            ),
            Panel(
                title="Exposed communication",
                text="Share of a step in which rank 0 waited for exchanges that computing did not hide.",
                queries=(Query("job_id:distroml_train_comm_wait:ratio_rate1m{%}", "{{job_id}}"),),
                unit="percentunit",
            ),
        ),
        "Communication": (
            Panel(
                title="Sent by axis",
                text="Bytes per second that rank 0 sent for gradients, by axis of the mesh.",
                queries=(
                    Query("sum by (axis) (rate(distroml_train_wire_bytes_total{%}[$__rate_interval]))", "{{axis}}"),
                ),
                unit="Bps",
                width=12,
                stacked=True,
            ),
            Panel(
                title="Sent by scheme",
                text="The same by kind of compression.",
                queries=(
                    Query("sum by (scheme) (rate(distroml_train_wire_bytes_total{%}[$__rate_interval]))", "{{scheme}}"),
                ),
                unit="Bps",
                width=12,
                stacked=True,
            ),
        ),
        "Failures and cost": (
            Panel(
                title="Broken generations",
                text="Since telemetry first heard of the job.",
                queries=(Query("max by (job_id) (distroml_train_job_failures_total{%})", "{{job_id}}"),),
                width=6,
            ),
            Panel(
                title="Age of the last checkpoint",
                text="What a failure now would cost.",
                queries=(
                    Query(
                        "time() - max by (job_id) (distroml_train_last_checkpoint_timestamp_seconds{%})", "{{job_id}}"
                    ),
                ),
                unit="s",
                width=6,
            ),
            Panel(
                title="Goodput",
                text="Useful step time over the time of held slots, in the last quarter of an hour.",
                queries=(Query("job_id:distroml_goodput:ratio_rate15m{%}", "{{job_id}}"),),
                unit="percentunit",
                width=6,
            ),
            Panel(
                title="Slot-hours",
                text="Hours that the job's slots were held, times how many, since the scheduler last began.",
                queries=(Query("sum by (job_id) (distroml_scheduler_job_slot_seconds_total{%}) / 3600", "{{job_id}}"),),
                unit="h",
                width=6,
            ),
        ),
    },
)
