"""A job's compression for `job explain` and `events`: which schemes hold and why, and what `auto` would gain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.cli import output

MAX_CHANGES = 10
MAX_PLACES = 4

# Of a plan in words, where there is one worker; else one with replicas says how many.
_ALONE = "dp_replicate=1"


def lines(summary: t.JobSummary) -> Iterator[str]:
    """The schemes of the newest generation, its last changes with their reasons, and the hint where there is one.

    Of a model that is divided each part has its own; those that hold the same stand together.
    """
    if summary.held:
        newest = summary.held[0].generation
        for text, places in _held(summary.held).items():
            yield f"compression of generation {newest}{', ' if places else ''}{places}: {text}"
        ways: dict[tuple[int, str, str, str, str], list[int]] = {}
        for change in summary.schemes:
            if change.generation == newest:
                reason = f"{change.reason}: {change.why}" if change.why else change.reason
                way = (change.from_step, change.place, change.from_scheme, change.to_scheme, reason)
                ways.setdefault(way, []).extend(change.buckets)
        if len(ways) > MAX_CHANGES:
            yield f"  {len(ways) - MAX_CHANGES} earlier changes"
        for (step, place, old, new, reason), numbers in list(ways.items())[-MAX_CHANGES:]:
            of = f"{place}: " if place else ""
            yield f"  from step {step}: {of}{buckets(numbers)} {old} → {new}, {reason}"
    if summary.HasField("advice"):
        yield advice(summary.advice)


def _held(held: Iterable[t.HeldScheme]) -> dict[str, str]:
    """The schemes that hold in words, and the parts of the model in which they do."""
    parts: dict[str, list[str]] = {}
    for one in sorted(held, key=lambda one: (-len(one.buckets), *one.buckets[:1])):
        parts.setdefault(one.place, []).append(f"{one.scheme} ({buckets(one.buckets)})")
    places: dict[str, list[str]] = {}
    for place, schemes in sorted(parts.items()):
        places.setdefault(", ".join(schemes), []).append(place)
    return {text: _listed(names) for text, names in places.items()}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_PLACES} more" if len(names) > MAX_PLACES else ""
    return ", ".join(names[:MAX_PLACES]) + more


def unused(job: jobs_pb2.Job, known: t.JobSummary) -> str:
    """That compression was asked for and compresses nothing, "" where it does, or where nobody can tell.

    A `Trainer` tells its plan before its first step; a job that ended well without any had none. A plan names
    dp_replicate where there are replicas, which alone exchange by what a job asks for.
    """
    wanted, every = "" if job.spec.compress == "none" else job.spec.compress, job.spec.sync_every
    if not known.position or not (wanted or every):
        return ""
    if known.plans:
        return _idle(wanted, [one.plan for one in known.plans]) if wanted else ""
    if job.state != jobs_pb2.JOB_STATE_SUCCEEDED:
        return ""
    own = "; parallelize takes compress= itself" if wanted else ""
    if wanted == "auto":
        own = "; parallelize takes a fixed scheme itself, such as compress='int8'"
    parts = [f"compression {wanted}"] if wanted else []
    asked = " with ".join([*parts, f"sync_every={every}"] if every else parts)
    return f"{asked} was asked for and not used: only a Trainer takes it from the job, and the script made none{own}"


def _idle(wanted: str, plans: Sequence[str]) -> str:
    """That no generation had two workers with the same gradients; "" where one had, or may have had."""
    if any(not plan or ("dp_replicate=" in plan and _ALONE not in plan.split(",")) for plan in plans):
        return ""
    instead = "use a plan with dp_replicate, or along dp_shard pass compress_shard= to Trainer"
    return (
        f"compression {wanted} was asked for and compresses nothing: under the plan {plans[-1]} no two workers hold "
        f"the same gradients; {'start more workers' if _ALONE in plans[-1].split(',') else instead}"
    )


def advice(told: t.CompressionAdvice) -> str:
    """What `auto` would gain, in a line."""
    share = 100 * told.exposed_seconds / told.step_seconds if told.step_seconds > 0 else 0.0
    return (
        f"communication: {share:.0f} % of a step waits for it; --compress auto would make a step of "
        f"{output.short_time(told.step_seconds)} one of {output.short_time(told.predicted_step_seconds)}, and reach a "
        f"loss {told.faster:.2g} times faster"
    )


def buckets(numbers: Iterable[int]) -> str:
    """Buckets in words: `bucket 3`, `buckets 0–5`, `4 buckets`."""
    found = sorted(set(numbers))
    if len(found) == 1:
        return f"bucket {found[0]}"
    if found and found[-1] - found[0] == len(found) - 1:
        return f"buckets {found[0]}–{found[-1]}"
    return f"{len(found)} buckets"


def event_words(type_: str, body: dict[str, Any]) -> dict[str, Any]:
    """The body of an event about compression in few words; of any other event as it is."""
    match type_:
        case "rendezvous.compression.SchemeChanged":
            return {
                "generation": body.get("generation", 0),
                "from_step": body.get("from_step", 0),
                "place": body.get("place", ""),
                **_numbers(body.get("buckets") or [body.get("bucket", 0)]),
                "change": f"{body.get('from_scheme', '')}→{body.get('to_scheme', '')}",
                "reason": body.get("reason", ""),
                "why": body.get("why", ""),
            }
        case "rendezvous.compression.CompressionAdvised":
            step_s, predicted_s = float(body.get("step_seconds") or 0), float(body.get("predicted_step_seconds") or 0)
            return {
                "generation": body.get("generation", 0),
                "step": output.short_time(step_s),
                "exposed": output.short_time(float(body.get("exposed_seconds") or 0)),
                "with_auto": output.short_time(predicted_s),
                "faster": f"{float(body.get('faster') or 0):.2g} times",
            }
        case _:
            return body


def _numbers(found: list[int]) -> dict[str, str]:
    """Buckets, ascending, as a field of a line; as a text, since a number that is 0 is left out of it."""
    if len(found) == 1:
        return {"bucket": str(found[0])}
    whole = found[-1] - found[0] == len(found) - 1
    return {"buckets": f"{found[0]}–{found[-1]}" if whole else f"{len(found)} from {found[0]} to {found[-1]}"}
