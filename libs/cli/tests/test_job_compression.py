from __future__ import annotations

import json
from collections.abc import Iterable

from distroml.api.common.v1 import common_pb2
from distroml.api.scheduler.v1 import jobs_pb2
from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.cli import job_compression, job_end
from distroml.cli.replay_commands import event_line


def change(
    step: int, numbers: Iterable[int], old: str, new: str, *, place: str = "", why: str = "slow links"
) -> t.JobScheme:
    return t.JobScheme(
        generation=2,
        from_step=step,
        buckets=numbers,
        place=place,
        from_scheme=old,
        to_scheme=new,
        reason="LinkSlower",
        why=why,
    )


ADVICE = t.CompressionAdvice(
    generation=1, step=23, step_seconds=0.5, exposed_seconds=0.31, predicted_step_seconds=0.21, faster=2.3
)


def holds(scheme: str, numbers: Iterable[int], place: str = "") -> t.HeldScheme:
    return t.HeldScheme(generation=2, place=place, scheme=scheme, buckets=numbers)


def test_the_newest_generations_schemes_and_why_they_changed():
    older = change(5, [0], "none", "sign")
    older.generation = 1
    summary = t.JobSummary(
        held=[holds("int8", [0]), holds("powersgd:4+int8", [1])],
        schemes=[
            older,
            change(1, [0], "none", "int8"),
            change(1, [1], "none", "int8"),
            change(43, [1], "int8", "powersgd:4+int8", why="the links do 10 Mbit/s"),
        ],
    )
    assert list(job_compression.lines(summary)) == [
        "compression of generation 2: int8 (bucket 0), powersgd:4+int8 (bucket 1)",
        "  from step 1: buckets 0–1 none → int8, LinkSlower: slow links",
        "  from step 43: bucket 1 int8 → powersgd:4+int8, LinkSlower: the links do 10 Mbit/s",
    ]


def test_schemes_that_hold_are_told_whole_whichever_changes_are_kept():
    summary = t.JobSummary(
        held=[holds("int4", [1]), holds("int8", [0, *range(2, 370)])], schemes=[change(43, [1], "int8", "int4")]
    )
    assert list(job_compression.lines(summary)) == [
        "compression of generation 2: int8 (369 buckets), int4 (bucket 1)",
        "  from step 43: bucket 1 int8 → int4, LinkSlower: slow links",
    ]


def test_parts_of_a_divided_model_are_told_apart():
    summary = t.JobSummary(
        held=[holds("int8", [0, 1], f"pp{stage}of6") for stage in range(5)] + [holds("int4", [0], "pp5of6")],
        schemes=[change(1, [0, 1], "none", "int8", place="pp0of6"), change(1, [0], "none", "int4", place="pp5of6")],
    )
    assert list(job_compression.lines(summary)) == [
        "compression of generation 2, pp0of6, pp1of6, pp2of6, pp3of6 and 1 more: int8 (buckets 0–1)",
        "compression of generation 2, pp5of6: int4 (bucket 0)",
        "  from step 1: pp0of6: buckets 0–1 none → int8, LinkSlower: slow links",
        "  from step 1: pp5of6: bucket 0 none → int4, LinkSlower: slow links",
    ]


def test_many_changes_are_counted_and_the_last_ones_told():
    changes = [change(step, [0], "none", "int8") for step in range(1, 16)]
    summary = t.JobSummary(held=[holds("int8", [0])], schemes=changes)
    found = list(job_compression.lines(summary))
    assert found[1] == "  5 earlier changes"
    assert len(found) == 2 + job_compression.MAX_CHANGES
    assert found[-1].startswith("  from step 15:")


def test_what_auto_would_gain_is_told_and_nothing_where_nothing_is_known():
    assert list(job_compression.lines(t.JobSummary(advice=ADVICE))) == [
        "communication: 62 % of a step waits for it; --compress auto would make a step of 500 ms one of 210 ms, and "
        "reach a loss 2.3 times faster"
    ]
    assert list(job_compression.lines(t.JobSummary())) == []


def test_buckets_in_words():
    assert job_compression.buckets([3]) == "bucket 3"
    assert job_compression.buckets([2, 0, 1]) == "buckets 0–2"
    assert job_compression.buckets([0, 2, 5]) == "3 buckets"


def shown(name: str, **body: object) -> str:
    event = common_pb2.Event(type=f"rendezvous.compression.{name}", position="log:12.0", json=json.dumps(body))
    return event_line(event).partition("rendezvous.compression.")[2].partition(" ")[2].strip()


def test_events_of_compression_are_one_line_in_words():
    changed = {"generation": "2", "bucket": 3, "from_scheme": "none", "to_scheme": "int8", "from_step": "12"}
    line = shown("SchemeChanged", **changed, reason="LinkSlower", why="slow")
    assert line == "generation=2 from_step=12 bucket=3 change=none→int8 reason=LinkSlower why=slow"
    many = {**changed, "place": "pp1of2", "buckets": list(range(3, 370))}
    assert "place=pp1of2 buckets=3–369 change=" in shown("SchemeChanged", **many)
    assert "from_step=12 buckets=3 from 3 to 9 change=" in shown("SchemeChanged", **changed, buckets=[3, 5, 9])
    assert "bucket=7 change=" in shown("SchemeChanged", **{**changed, "bucket": 7}, buckets=[7])
    first = {name: value for name, value in changed.items() if name != "bucket"}
    assert "from_step=12 bucket=0 change=" in shown("SchemeChanged", **first), "JSON leaves out a number that is 0"
    advised = {"step_seconds": 0.5, "exposed_seconds": 0.31, "predicted_step_seconds": 0.21, "faster": 2.34}
    line = shown("CompressionAdvised", generation="1", step="23", **advised, schemes="int8")
    assert line == "generation=1 step=500 ms exposed=310 ms with_auto=210 ms faster=2.3 times"


def test_a_job_that_ended_well_without_a_step_is_told_so_where_somebody_could_have_seen_one():
    job = jobs_pb2.Job(id="job-7", state=jobs_pb2.JOB_STATE_SUCCEEDED)
    known = t.JobSummary(position="7")
    said = job_end.untrained(job, known)
    assert said.startswith("ended with exit 0 and no step was seen")
    assert "`distroml job logs job-7`" in said
    assert job_end.untrained(jobs_pb2.Job(progress=jobs_pb2.Progress(step=1), state=job.state), known) == ""
    seen = ({"step": 1}, {"plans": [t.JobPlan(generation=1)]}, {"checkpoints": 1})
    assert [job_end.untrained(job, t.JobSummary(position="7", **more)) for more in seen] == ["", "", ""]
    assert job_end.untrained(job, t.JobSummary()) == "", "telemetry did not answer"
    for state in (jobs_pb2.JOB_STATE_RUNNING, jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED):
        assert job_end.untrained(jobs_pb2.Job(state=state), known) == ""


def test_compression_that_no_trainer_took_up_is_told_once_the_job_is_over():
    job = jobs_pb2.Job(spec=jobs_pb2.JobSpec(compress="int8"), state=jobs_pb2.JOB_STATE_SUCCEEDED)
    known = t.JobSummary(position="7")
    assert job_compression.unused(job, known).startswith("compression int8 was asked for and not used")
    trained = t.JobSummary(position="7", plans=[t.JobPlan(generation=1)])
    assert job_compression.unused(job, trained) == ""
    assert job_compression.unused(job, t.JobSummary()) == "", "telemetry did not answer"
    for state in (jobs_pb2.JOB_STATE_RUNNING, jobs_pb2.JOB_STATE_FAILED):
        assert job_compression.unused(jobs_pb2.Job(spec=job.spec, state=state), known) == ""
    for wanted in ("", "none"):
        plain = jobs_pb2.Job(spec=jobs_pb2.JobSpec(compress=wanted), state=job.state)
        assert job_compression.unused(plain, known) == ""


def test_auto_that_no_trainer_took_up_is_not_sent_to_parallelize():
    job = jobs_pb2.Job(spec=jobs_pb2.JobSpec(compress="auto"), state=jobs_pb2.JOB_STATE_SUCCEEDED)
    said = job_compression.unused(job, t.JobSummary(position="7"))
    assert said.endswith("parallelize takes a fixed scheme itself, such as compress='int8'")


def test_meetings_that_no_trainer_took_up_are_told():
    def said(**spec: object) -> str:
        job = jobs_pb2.Job(spec=jobs_pb2.JobSpec(**spec), state=jobs_pb2.JOB_STATE_SUCCEEDED)
        return job_compression.unused(job, t.JobSummary(position="7"))

    assert said(sync_every=50).startswith("sync_every=50 was asked for and not used")
    assert said(sync_every=50).endswith("and the script made none")
    assert said(sync_every=50, compress="int8").startswith("compression int8 with sync_every=50 was asked for")


def test_compression_without_replicas_is_told_at_any_time():
    def said(*plans: str, wanted: str = "int8") -> str:
        job = jobs_pb2.Job(spec=jobs_pb2.JobSpec(compress=wanted), state=jobs_pb2.JOB_STATE_RUNNING)
        rows = [t.JobPlan(generation=number, plan=plan) for number, plan in enumerate(plans, 1)]
        return job_compression.unused(job, t.JobSummary(position="7", plans=rows))

    assert said("dp_shard=2,accum=1") == (
        "compression int8 was asked for and compresses nothing: under the plan dp_shard=2,accum=1 no two workers hold "
        "the same gradients; use a plan with dp_replicate, or along dp_shard pass compress_shard= to Trainer"
    )
    assert said("tp=2,accum=1", "dp_replicate=1,accum=2").endswith("the same gradients; start more workers")
    assert said("dp_shard=2,accum=1", wanted="none") == ""
    for compressed in ("dp_replicate=16,accum=1,bucket_mb=8", "dp_replicate=2,dp_shard=2,accum=1,bucket_mb=8"):
        assert said(compressed) == said(compressed, "dp_replicate=1,accum=4") == ""
    assert said("") == "", "a plan that could not be read"
