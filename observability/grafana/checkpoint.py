"""Checkpoints: whether they are made, how long and how large, and whether they are sound."""

from __future__ import annotations

from observability.grafana.panels import Page, Panel, Query

CHECKPOINT = Page(
    uid="distroml-checkpoint",
    title="DistroML · Checkpoints",
    text="Saves, their time and bytes, failures, and what a failure of a job would cost now.",
    rows={
        "Saves": (
            Panel(
                title="Committed",
                text="Within the last hour.",
                queries=(Query("sum(increase(distroml_checkpoints_committed_total{%}[1h]))"),),
                width=4,
                single=True,
            ),
            Panel(
                title="Damaged",
                text="Reports within the last day. Any is one too many.",
                queries=(Query("sum(increase(distroml_checkpoint_corruptions_total{%}[1d]))"),),
                width=4,
                single=True,
            ),
            Panel(
                title="Time of a save",
                text="From its opening to its commit; training goes on meanwhile.",
                queries=tuple(
                    Query(
                        f"histogram_quantile({q}, sum by (le) "
                        "(rate(distroml_checkpoint_save_duration_seconds_bucket{%}[15m])))",
                        f"{q * 100:.0f}%",
                    )
                    for q in (0.5, 0.95)
                ),
                unit="s",
            ),
            Panel(
                title="Saves by outcome",
                text="As telemetry heard of them, within 5 minutes.",
                queries=(Query("sum by (outcome) (increase(distroml_train_checkpoints_total{%}[5m]))", "{{outcome}}"),),
            ),
            Panel(
                title="Bytes",
                text="Per second: written anew, and taken over from the checkpoint before.",
                queries=(Query("sum by (how) (rate(distroml_checkpoint_bytes_total{%}[5m]))", "{{how}}"),),
                unit="Bps",
                stacked=True,
            ),
            Panel(
                title="Failed saves by reason",
                text="Within the last hour. A save that a newer generation supersedes is no trouble.",
                queries=(
                    Query("sum by (reason) (increase(distroml_checkpoint_saves_failed_total{%}[1h]))", "{{reason}}"),
                ),
                stacked=True,
            ),
            Panel(
                title="Objects removed",
                text="By collection: chunks that no kept checkpoint needs, within 5 minutes.",
                queries=(Query("sum(increase(distroml_checkpoint_objects_removed_total{%}[5m]))", "removed"),),
            ),
        ),
        "What a failure would cost": (
            Panel(
                title="Age of the last checkpoint",
                text="By job; of one that has ended, the time since.",
                queries=(
                    Query(
                        "time() - max by (job_id) (distroml_train_last_checkpoint_timestamp_seconds{%})", "{{job_id}}"
                    ),
                ),
                unit="s",
                width=12,
            ),
            Panel(
                title="Steps since the last checkpoint",
                text="By job: what would be done again.",
                queries=(
                    Query(
                        "max by (job_id) (distroml_train_step{%}) "
                        "- max by (job_id) (distroml_train_last_checkpoint_step{%})",
                        "{{job_id}}",
                    ),
                ),
                width=12,
            ),
        ),
    },
)
