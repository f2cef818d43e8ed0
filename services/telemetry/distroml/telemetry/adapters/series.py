"""Step and resource samples in SQLite: bounded histories, each rank's newest values, the job's live numbers."""

from __future__ import annotations

import sqlite3
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from distroml.api.telemetry.v1.telemetry_pb2 import ResourceSample, StepSample
from distroml.telemetry.domain.rollup import Rollup
from distroml.telemetry.domain.summary import GenerationSamples, StepPoint, eta_ms, rates
from distroml.telemetry.domain.thinning import KEEP, LEVELS, Bucket, Pyramid, Stat, finite, joined
from distroml.telemetry.domain.wire import wire_values

STEPS: Final = "step"
RESOURCES: Final = "resource"
RESOURCE_NAMES: Final = frozenset({"cpu_ratio", "rss_bytes", "gpu_ratio", "gpu_bytes"})

_MAX_OPEN_SERIES = 8192
_WINDOW = 256
_PRUNE_EVERY = 64

Key = tuple[str, str, int]
_stats_encoder = msgspec.msgpack.Encoder()
_stats_decoder: msgspec.msgpack.Decoder[dict[str, Stat]] = msgspec.msgpack.Decoder(dict[str, Stat])


def step_values(sample: StepSample) -> dict[str, float]:
    """The named values of a step; throughput is derived from the step's own seconds."""
    values: dict[str, float] = dict(sample.extra)
    values.update(step_s=sample.step_s, data_wait_s=sample.data_wait_s, comm_wait_s=sample.comm_wait_s)
    values.update(samples=sample.samples, tokens=sample.tokens)
    values.update(wire_values(sample.wire_bytes))
    if sample.step_s > 0:
        values.update(tokens_per_s=sample.tokens / sample.step_s, samples_per_s=sample.samples / sample.step_s)
    if sample.HasField("loss"):
        values["loss"] = sample.loss
    if sample.HasField("grad_norm"):
        values["grad_norm"] = sample.grad_norm
    if sample.HasField("learning_rate"):
        values["learning_rate"] = sample.learning_rate
    return finite(values)


def resource_values(sample: ResourceSample) -> dict[str, float]:
    """The named values of a resource sample."""
    values: dict[str, float] = {"cpu_ratio": sample.cpu_ratio, "rss_bytes": sample.rss_bytes}
    if sample.HasField("gpu_ratio"):
        values["gpu_ratio"] = sample.gpu_ratio
    if sample.HasField("gpu_bytes"):
        values["gpu_bytes"] = sample.gpu_bytes
    return finite(values)


class SeriesWriter:
    """Writes samples inside the caller's transaction. After a rollback the object must be thrown away."""

    def __init__(self, connection: sqlite3.Connection, *, max_ranks: int) -> None:
        self._db = connection
        self._max_ranks = max_ranks
        self._open: OrderedDict[Key, Pyramid] = OrderedDict()
        self._leads: OrderedDict[str, _Lead] = OrderedDict()
        self._fresh: list[StepSample] = []

    def add_steps(self, samples: Iterable[StepSample]) -> dict[str, int]:
        """Store step samples; returns per job how many were old news (a step known already, an older generation)."""
        stale: dict[str, int] = {}
        touched: set[str] = set()
        rows: list[tuple[Key, Bucket]] = []
        newest: dict[tuple[str, int], tuple[str, int, int, int]] = {}
        for sample in samples:
            newest[sample.job, sample.rank] = (sample.job, sample.rank, sample.step, sample.at_ms)
            if sample.rank >= self._max_ranks:
                continue
            key: Key = (sample.job, STEPS, sample.rank)
            series = self._series(key)
            if sample.generation < series.generation or (
                sample.generation == series.generation and sample.step <= series.last
            ):
                stale[sample.job] = stale.get(sample.job, 0) + 1
                continue
            if sample.step <= series.last:
                self._flush(rows)
                series = self._rewind(key, sample.step)
            buckets = series.add(sample.step, sample.at_ms, sample.generation, step_values(sample))
            rows.extend((key, bucket) for bucket in buckets)
            if sample.rank == 0:
                self._fresh.append(sample)
            self._lead(sample.job).add(sample)
            touched.add(sample.job)
        self._flush(rows)
        self._db.executemany(
            "INSERT INTO rank_steps VALUES (?,?,?,?) ON CONFLICT (job, rank) DO UPDATE SET step=excluded.step, "
            "at_ms=excluded.at_ms",
            newest.values(),
        )
        for job in touched:
            self._leads[job].store(self._db)
        while len(self._leads) > _MAX_OPEN_SERIES:
            self._leads.popitem(last=False)
        return stale

    def take_fresh(self) -> Sequence[StepSample]:
        """Rank 0's samples that were new, since the last call: what is rolled up."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def add_resources(self, samples: Iterable[ResourceSample]) -> None:
        """Store resource samples; at most one a second and rank."""
        rows: list[tuple[Key, Bucket]] = []
        newest: dict[tuple[str, int], tuple[object, ...]] = {}
        for s in samples:
            gpu_ratio = s.gpu_ratio if s.HasField("gpu_ratio") else None
            gpu_bytes = s.gpu_bytes if s.HasField("gpu_bytes") else None
            newest[s.job, s.rank] = (
                s.job, s.rank, s.worker, s.node, s.at_ms, s.cpu_ratio, s.rss_bytes, gpu_ratio, gpu_bytes,
            )  # fmt: skip
            if s.rank >= self._max_ranks:
                continue
            key: Key = (s.job, RESOURCES, s.rank)
            series = self._series(key)
            second = s.at_ms // 1000
            if second > series.last:
                rows.extend((key, bucket) for bucket in series.add(second, s.at_ms, 0, resource_values(s)))
        self._flush(rows)
        self._db.executemany("INSERT OR REPLACE INTO resources VALUES (?,?,?,?,?,?,?,?,?)", newest.values())

    def _series(self, key: Key) -> Pyramid:
        series = self._open.get(key)
        if series is None:
            series = self._open[key] = self._restored(key)
            # A series with rows still to be written is never the oldest: each batch holds far fewer series.
            if len(self._open) > _MAX_OPEN_SERIES:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(key)
        return series

    def _restored(self, key: Key) -> Pyramid:
        series = Pyramid()
        for level in reversed(range(LEVELS)):
            (end,) = self._db.execute(
                "SELECT max(x) FROM points WHERE job=? AND kind=? AND rank=? AND level=?", (*key, level + 1)
            ).fetchone()
            series.restore(_rows(self._db, key, level, after_x=-1 if end is None else end))
        return series

    def _rewind(self, key: Key, x: int) -> Pyramid:
        """A new generation trains from `x` on again: what the old one had from there on is not the job's history."""
        self._db.executemany(
            "DELETE FROM points WHERE job=? AND kind=? AND rank=? AND level=? AND idx>=?",
            [(*key, level, x >> (3 * level)) for level in range(LEVELS)],
        )
        series = self._open[key] = self._restored(key)
        return series

    def _flush(self, rows: list[tuple[Key, Bucket]]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO points VALUES (?,?,?,?,?,?,?,?,?)",
            [(*key, b.level, b.index, b.x, b.at_ms, b.generation, _stats_encoder.encode(b.stats)) for key, b in rows],
        )
        self._db.executemany(
            "DELETE FROM points WHERE job=? AND kind=? AND rank=? AND level=? AND idx<?",
            [(*key, b.level, b.index - KEEP) for key, b in rows if b.index % _PRUNE_EVERY == 0 and b.index > KEEP],
        )
        rows.clear()

    def _lead(self, job: str) -> _Lead:
        lead = self._leads.get(job)
        if lead is None:
            lead = self._leads[job] = _Lead(self._db, job)
        else:
            self._leads.move_to_end(job)
        return lead


class _Lead:
    """The job's live numbers, taken from its lowest rank."""

    def __init__(self, connection: sqlite3.Connection, job: str) -> None:
        self._job = job
        self._rank = 1 << 30
        self._generation = 0
        self._points: deque[StepPoint] = deque(maxlen=_WINDOW)
        self._newest: StepSample | None = None
        self._loss: float | None = None
        self._spans: dict[int, GenerationSamples] = {}
        known = connection.execute(
            "SELECT generation, first_step, first_at_ms, last_step, last_at_ms FROM generations WHERE job=?", (job,)
        )
        for number, *values in known:
            first_step, first_at, last_step, last_at = values
            self._spans[number] = GenerationSamples(
                first_step=first_step, first_at_ms=first_at, last_step=last_step, last_at_ms=last_at
            )

    def add(self, sample: StepSample) -> None:
        span = self._spans.get(sample.generation)
        if span is None:
            at = sample.at_ms
            self._spans[sample.generation] = GenerationSamples(
                first_step=sample.step, first_at_ms=at, last_step=sample.step, last_at_ms=at
            )
        else:
            self._spans[sample.generation] = GenerationSamples(
                first_step=min(span.first_step, sample.step),
                first_at_ms=span.first_at_ms if sample.step >= span.first_step else sample.at_ms,
                last_step=max(span.last_step, sample.step),
                last_at_ms=max(span.last_at_ms, sample.at_ms),
            )
        if sample.generation < self._generation or (sample.generation == self._generation and sample.rank > self._rank):
            return
        if sample.generation > self._generation or sample.rank < self._rank:
            self._rank, self._generation = sample.rank, sample.generation
            self._points.clear()
        self._newest = sample
        if sample.HasField("loss"):
            self._loss = sample.loss
        self._points.append(
            StepPoint(
                step=sample.step,
                at_ms=sample.at_ms,
                step_s=sample.step_s,
                tokens=sample.tokens,
                samples=sample.samples,
            )
        )

    def store(self, connection: sqlite3.Connection) -> None:
        newest = self._newest
        if newest is None:
            return
        now = rates(tuple(self._points))
        end = eta_ms(newest.step, newest.total_steps, newest.at_ms, now.steps_per_s)
        connection.execute(
            "INSERT OR REPLACE INTO live VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            (
                self._job, newest.step, newest.total_steps, self._loss, now.tokens_per_s, now.samples_per_s,
                now.step_s, end, newest.world_size, newest.generation, newest.at_ms,
            ),
        )  # fmt: skip
        for old in sorted(self._spans)[:-256]:
            del self._spans[old]
            connection.execute("DELETE FROM generations WHERE job=? AND generation=?", (self._job, old))
        span = self._spans[newest.generation]
        connection.execute(
            "INSERT OR REPLACE INTO generations VALUES (?,?,?,?,?,?)",
            (self._job, newest.generation, span.first_step, span.first_at_ms, span.last_step, span.last_at_ms),
        )


def _rows(db: sqlite3.Connection, key: Key, level: int, *, after_x: int) -> list[Bucket]:
    cursor = db.execute(
        "SELECT idx, x, at_ms, generation, stats FROM points WHERE job=? AND kind=? AND rank=? AND level=? AND x>? "
        "ORDER BY idx",
        (*key, level, after_x),
    )
    return [Bucket(level, idx, x, at, gen, _stats_decoder.decode(stats)) for idx, x, at, gen, stats in cursor]


def read_history(db: sqlite3.Connection, key: Key, *, from_x: int = 0) -> list[Bucket]:
    """The series from `from_x` on: the finest level that reaches back so far, then finer rows to the newest point."""
    oldest: list[int | None] = []
    for level in range(LEVELS):
        row: tuple[int | None] = db.execute(
            "SELECT min(idx) FROM points WHERE job=? AND kind=? AND rank=? AND level=?", (*key, level)
        ).fetchone()
        oldest.append(row[0])
    level = _covering_level(oldest, from_x)
    parts: list[Sequence[Bucket]] = []
    end = from_x - 1
    for finer in range(level, -1, -1):
        rows = _rows(db, key, finer, after_x=end)
        parts.append(rows)
        end = rows[-1].x if rows else end
    return joined(parts)


def _covering_level(oldest: Sequence[int | None], from_x: int) -> int:
    for level, index in enumerate(oldest):
        coarser = oldest[level + 1] if level + 1 < len(oldest) else None
        if index is None or index <= from_x >> (3 * level) or coarser is None or coarser >= index >> 3:
            return level
    return len(oldest) - 1


def buckets_of(series: Sequence[Rollup]) -> list[Bucket]:
    """Roll-ups of all metrics as a history of steps: rows that began together are one bucket.

    Where a later generation trained from an earlier step on, what the older one had from there on is left out.
    """
    together: dict[int, list[Rollup]] = {}
    for row in series:
        together.setdefault(row.start_ms, []).append(row)
    newest_first: list[Bucket] = []
    for index, (_, rows) in reversed(list(enumerate(sorted(together.items())))):
        stats = {row.metric: (row.n, row.total, row.low, row.high) for row in rows}
        last = max(rows, key=lambda r: r.last_ms)
        if not newest_first or last.step < newest_first[-1].x:
            newest_first.append(Bucket(0, index, last.step, last.last_ms, last.generation, stats))
    return newest_first[::-1]


def stored_ranks(db: sqlite3.Connection, job: str, kind: str) -> list[int]:
    """Ranks of the job that have a history of this kind, ascending."""
    return [
        rank
        for (rank,) in db.execute(
            "SELECT DISTINCT rank FROM points WHERE job=? AND kind=? AND level=0 ORDER BY rank", (job, kind)
        )
    ]


def read_generations(db: sqlite3.Connection, job: str) -> Mapping[int, GenerationSamples]:
    """First and newest sample of each generation."""
    cursor = db.execute(
        "SELECT generation, first_step, first_at_ms, last_step, last_at_ms FROM generations WHERE job=?", (job,)
    )
    return {
        number: GenerationSamples(first_step=a, first_at_ms=b, last_step=c, last_at_ms=d)
        for number, a, b, c, d in cursor
    }
