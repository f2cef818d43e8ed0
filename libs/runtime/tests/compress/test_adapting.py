"""The controller at work against an exchange that only pretends: what it asks, sets, tells, keeps and makes again."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field

import pytest

from distroml.objectstore.memory import MemoryObjectStore
from distroml.runtime.compress.control import NONE, PROBE_BYTES, Change, Record
from distroml.runtime.compress.control.timing import wire_s
from distroml.runtime.parallel.buffers import Took
from distroml.runtime.training.adapting import Adapting, probe_link
from distroml.runtime.training.catalogue import LocalCatalogue
from distroml.runtime.training.recording import SchemeRecord
from distroml.runtime.training.storage import Storage
from distroml.workerlink import SchemeChanged
from libs.runtime.tests.compress.synthetic import mbit, setting


@dataclass
class Answered:
    values: list[float]
    probed_bytes: int
    probed_s: float

    def wait(self) -> tuple[list[float], float]:
        return self.values, self.probed_s


@dataclass
class SeenOne:
    took: Took
    gradient_norm: float = 1.0
    residual_norm: float = 1.0
    cosine: float | None = None


@dataclass
class Pretended:
    """An exchange over a link of `rate` Mbit/s, of as many buckets as the setting has.

    Of each probe its limiter lets so many bytes through at once: `free_bytes`.
    """

    rate: float
    work: object = field(default_factory=setting)
    schemes: list[str] = field(default_factory=lambda: [NONE] * 4)
    due: dict[int, list[tuple[int, str]]] = field(default_factory=dict)
    probes: list[int] = field(default_factory=list)
    step: int = 0
    free_bytes: int = 0
    timed: dict[int, bool] = field(default_factory=dict)
    sampled: dict[int, int | None] = field(default_factory=dict)

    def set_sampled(self, bucket: int | None) -> None:
        self.sampled[self.step + 1] = bucket

    def set_timed(self, timed: bool) -> None:
        self.timed[self.step + 1] = timed

    def ask(self, values, *, probe_bytes: int = 0) -> Answered:
        link = mbit(self.rate)
        if probe_bytes:
            self.probes.append(probe_bytes)
        limited = max(probe_bytes - self.free_bytes, 0)
        return Answered(list(values), probe_bytes, link.latency_s + limited * link.s_per_byte if probe_bytes else 0.0)

    def set_scheme(self, bucket: int, scheme: str, from_step: int) -> None:
        assert from_step > self.step, "a step that has begun"
        self.due.setdefault(from_step, []).append((bucket, scheme))

    def advance(self, step: int) -> None:
        self.step = step
        for bucket, scheme in self.due.pop(step, []):
            self.schemes[bucket] = scheme

    def measured(self) -> list[SeenOne]:
        link = mbit(self.rate)
        pairs = zip(self.work.buckets, self.schemes, strict=True)
        offers = [next(o for o in bucket.offers if o.scheme == scheme) for bucket, scheme in pairs]
        return [SeenOne(Took(wire_s(link, one), one.codec_s, link.latency_s)) for one in offers]


PLAN = "dp_replicate=2,accum=1,bucket_mb=8"


def made(
    exchange: Pretended, recorded: Record, told: list[SchemeChanged] | None = None, *, plan: str = PLAN
) -> Adapting:
    tell = told.append if told is not None else None
    return Adapting(exchange, exchange.set_scheme, exchange.work, recorded, plan, tell, generation=3, place="pp1of2")


def train(adapting: Adapting, exchange: Pretended, first: int, last: int) -> dict[int, tuple[str, ...]]:
    used: dict[int, tuple[str, ...]] = {}
    for step in range(first, last + 1):
        adapting.begin(step)
        exchange.advance(step)
        used[step] = tuple(exchange.schemes)
        adapting.end(step)
        adapting.note(0.25, 3.0)
    return used


def test_exchanges_are_timed_in_the_steps_before_some_that_are_looked_at() -> None:
    exchange = Pretended(200)
    adapting = made(exchange, Record())
    adapting.start(0, "", lambda: 0.2)
    train(adapting, exchange, 1, 100)
    assert [step for step, timed in exchange.timed.items() if timed] == list(range(7, 101, 8))


def test_buckets_that_are_compressed_are_sampled_in_turn() -> None:
    exchange = Pretended(10)
    adapting = made(exchange, Record())
    adapting.start(0, "", lambda: 0.2)
    assert NONE not in adapting.schemes
    train(adapting, exchange, 1, 40)
    assert {step: bucket for step, bucket in exchange.sampled.items() if bucket is not None} == {
        8: 1, 16: 2, 24: 3, 32: 0, 40: 1,
    }  # fmt: skip


def test_the_link_is_probed_before_the_first_step_and_its_choice_set_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "distroml.runtime.train")
    exchange, told = Pretended(10), []
    adapting = made(exchange, recorded := Record(), told)
    adapting.start(0, "", lambda: 0.2)
    assert len(exchange.probes) == 4  # small messages, and one large one that is slow enough
    assert exchange.due[1] == list(enumerate(adapting.schemes))
    (scheme,) = set(adapting.schemes)
    (one,) = told
    assert (one.buckets, one.to_scheme, one.from_step) == ((0, 1, 2, 3), scheme, 1)
    assert (one.generation, one.place, one.reason) == (3, "pp1of2", "LinkProbed")
    assert [record.message for record in caplog.records] == [
        f"pp1of2: buckets 0–3 from step 1: {scheme} instead of none ({one.why})"
    ]
    assert len(recorded.changes) == 4


@pytest.mark.parametrize("rate", [10, 100, 10_000])
def test_a_probe_reads_the_link(rate: float) -> None:
    link = probe_link(Pretended(rate), 4 * 4_900_000)
    assert link.s_per_byte == pytest.approx(mbit(rate).s_per_byte, rel=0.4)


@pytest.mark.parametrize(("rate", "most_bytes"), [(10, PROBE_BYTES), (1000, 4 << 20), (100_000, 16 << 20)])
def test_probes_grow_until_one_takes_long_enough_to_tell(rate: float, most_bytes: int) -> None:
    """What a limiter lets through at once says nothing of a link then; none is larger than a bucket."""
    exchange = Pretended(rate, free_bytes=64 * 1024)
    link = probe_link(exchange, 4 * 4_900_000)
    assert max(exchange.probes) == most_bytes
    if rate > 10:
        assert link.s_per_byte == pytest.approx(mbit(rate).s_per_byte, rel=0.1)
    small = Pretended(rate)
    probe_link(small, 1000)
    assert max(small.probes) == PROBE_BYTES


def test_a_link_that_gets_fast_is_followed_within_forty_steps() -> None:
    exchange, told = Pretended(10), []
    adapting = made(exchange, Record(), told)
    adapting.start(0, "", lambda: 0.2)
    train(adapting, exchange, 1, 50)
    exchange.rate = 100_000
    used = train(adapting, exchange, 51, 91)
    assert set(used[91]) == {NONE}
    assert told[-1].to_scheme == NONE
    assert told[-1].reason in ("LinkFaster", "LessLossy")


def test_every_rank_decides_alike_and_only_one_speaks() -> None:
    one, other = Pretended(50), Pretended(50)
    told: list[SchemeChanged] = []
    speaker, silent = made(one, Record(), told), made(other, Record())
    for adapting, exchange in ((speaker, one), (silent, other)):
        adapting.start(0, "", lambda: 0.2)
        first = train(adapting, exchange, 1, 30)
        exchange.rate = 1000
        assert train(adapting, exchange, 31, 80)[80] != first[30]
    assert one.schemes == other.schemes
    assert speaker.keep() == silent.keep()


def test_steps_that_are_made_again_use_what_was_recorded_of_them() -> None:
    recorded = Record()
    exchange = Pretended(10)
    adapting = made(exchange, recorded)
    adapting.start(0, "", lambda: 0.2)
    first = train(adapting, exchange, 1, 40)
    kept = adapting.keep()
    exchange.rate = 1000
    first |= train(adapting, exchange, 41, 80)
    assert first[80] != first[40]
    # The link is slow again, and the process goes back to its checkpoint of step 40.
    again = Pretended(10)
    survivor = made(again, deepcopy(recorded), told := [])
    survivor.start(40, kept, lambda: 0.2)
    last = max(change.from_step for change in recorded.changes)
    used = train(survivor, again, 41, last)
    assert used == {step: first[step] for step in range(41, last + 1)}
    assert {one.reason for one in told if one.from_step == 41} == {"Resumed"}


def test_processes_that_all_come_anew_use_what_was_kept_of_changes() -> None:
    """The link does not do again what it did; the record of the generation before tells."""
    store = MemoryObjectStore()
    storage = Storage(store, "job-1", LocalCatalogue(store, "job-1"))
    exchange = Pretended(10)
    first_record = SchemeRecord(storage, 3)
    assert first_record.read() == Record()
    adapting = Adapting(
        exchange, exchange.set_scheme, exchange.work, recorded := Record(), PLAN, None, 3, first_record.write
    )
    adapting.start(0, "", lambda: 0.2)
    first = train(adapting, exchange, 1, 40)
    kept = adapting.keep()
    exchange.rate = 1000
    first |= train(adapting, exchange, 41, 80)
    assert first[80] != first[40]
    again = Pretended(10)
    fresh = made(again, remembered := SchemeRecord(storage, 4).read())
    assert remembered == recorded
    fresh.start(40, kept, lambda: 0.2)
    last = max(change.from_step for change in recorded.changes)
    assert train(fresh, again, 41, last) == {step: first[step] for step in range(41, last + 1)}


@pytest.mark.parametrize(("begins_at", "then"), [(10, 1000), (1000, 10)], ids=["slow link", "fast link"])
def test_steps_from_the_first_on_are_made_again_as_they_were_recorded(begins_at: float, then: float) -> None:
    """Nothing was committed before a worker died, and the link is another when all processes come anew."""
    store = MemoryObjectStore()
    storage = Storage(store, "job-1", LocalCatalogue(store, "job-1"))
    exchange = Pretended(begins_at)
    write = SchemeRecord(storage, 3).write
    adapting = Adapting(exchange, exchange.set_scheme, exchange.work, recorded := Record(), PLAN, None, 3, write)
    adapting.start(0, "", lambda: 0.2)
    first = train(adapting, exchange, 1, 20)
    exchange.rate = then
    first |= train(adapting, exchange, 21, 60)
    assert first[1] != first[60]
    last = max(change.from_step for change in recorded.changes)
    again = Pretended(then)
    fresh = made(again, SchemeRecord(storage, 4).read(), told := [])
    fresh.start(0, "", lambda: 0.2)
    assert again.probes, "what comes after the steps that are made again is decided by the link that is there"
    assert train(fresh, again, 1, last) == {step: first[step] for step in range(1, last + 1)}
    assert sorted((one.from_step, bucket, one.to_scheme) for one in told for bucket in one.buckets) == sorted(
        (one.from_step, one.bucket, one.to_scheme) for one in recorded.changes
    )


def test_that_nothing_was_chosen_for_the_first_steps_is_recorded_too() -> None:
    store = MemoryObjectStore()
    storage = Storage(store, "job-1", LocalCatalogue(store, "job-1"))
    exchange = Pretended(100_000)
    write = SchemeRecord(storage, 3).write
    Adapting(exchange, exchange.set_scheme, exchange.work, Record(), PLAN, None, 3, write).start(0, "", lambda: 0.2)
    again = Pretended(10)
    fresh = made(again, SchemeRecord(storage, 4).read())
    fresh.start(0, "", lambda: 0.2)
    assert set(fresh.schemes) == {NONE}
    assert again.due == {}


@pytest.mark.parametrize(
    ("plan", "spoilt"),
    [
        ("dp_replicate=4,accum=1,bucket_mb=8", Change(0, NONE, "int8", "Faster", "", 30)),
        (PLAN, Change(4, NONE, "int8", "Faster", "", 30)),
        (PLAN, Change(0, NONE, "sign", "Faster", "", 30)),
    ],
    ids=["another world", "a bucket more", "a scheme that is not offered"],
)
def test_first_steps_of_another_world_or_other_buckets_are_decided_anew(plan: str, spoilt: Change) -> None:
    exchange, recorded = Pretended(10), Record()
    made(exchange, recorded).start(0, "", lambda: 0.2)
    recorded.changes.append(spoilt)
    again = Pretended(100_000)
    fresh = made(again, recorded, plan=plan)
    fresh.start(0, "", lambda: 0.2)
    assert set(fresh.schemes) == {NONE}
    assert recorded == Record(plan, 3, [])
    assert set(train(fresh, again, 1, 40)[40]) == {NONE}, "nothing of it is made again"


def test_a_record_replaces_those_of_earlier_generations_and_of_no_other_place() -> None:
    store = MemoryObjectStore()
    storage = Storage(store, "job-1", LocalCatalogue(store, "job-1"))
    for generation in (1, 2, 3):
        SchemeRecord(storage, generation).write(Record())
    change = Change(0, NONE, "int8", "LinkProbed", "slow", 1)
    stage = SchemeRecord(storage, 2, "pp1of2")
    stage.write(Record(PLAN, 2, [change]))
    assert SchemeRecord(storage, 4, "pp1of2").read().changes == [change]
    assert SchemeRecord(storage, 4).read() == SchemeRecord(storage, 4, "pp0of2").read() == Record()
    assert [info.key for info in store.list("schemes/")] == [
        "schemes/job-1/00000002-pp1of2.json", "schemes/job-1/00000003.json",
    ]  # fmt: skip


def test_starts_of_one_generation_find_what_the_one_before_kept() -> None:
    """As without an agent, where it is always 0."""
    store = MemoryObjectStore()
    storage = Storage(store, "local", LocalCatalogue(store, "local"))
    SchemeRecord(storage, 0).write(first := Record(PLAN, 0, [Change(0, NONE, "int8", "LinkProbed", "slow", 1)]))
    assert SchemeRecord(storage, 0).read() == first
    SchemeRecord(storage, 0).write(second := Record(PLAN, 0, []))
    assert SchemeRecord(storage, 0).read() == second


def test_a_record_that_cannot_be_read_is_as_good_as_none(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryObjectStore()
    storage = Storage(store, "job-1", LocalCatalogue(store, "job-1"))
    store.put("schemes/job-1/00000002.json", b"[{")
    assert SchemeRecord(storage, 3).read() == Record()
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("kept", ["{", '{"buckets": [], "link": {"latency_s": 0.1, "s_per_byte": 1.0}}'])
def test_a_state_of_other_buckets_or_none_begins_anew(kept: str) -> None:
    exchange = Pretended(10)
    adapting = made(exchange, Record())
    adapting.start(40, kept, lambda: 0.2)
    assert exchange.due[41] == list(enumerate(adapting.schemes))
