"""A worker's files are read no faster than a node may ship; every line is handed on or counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from grpc.aio import Channel

from distroml.agent.adapters.delivery import Tell, Through
from distroml.agent.adapters.lines import Finish, Finished, Follow, LinesHere
from distroml.agent.adapters.output import READ_BYTES, SKIP_BYTES, OutputTail
from distroml.agent.adapters.shipping import LineShipping
from distroml.agent.adapters.telemetry import TelemetryPush
from distroml.agent.domain.allowance import Allowance
from distroml.agent.shipper import Arrivals, Following
from distroml.api.telemetry.v1 import telemetry_pb2 as pb
from distroml.logstore import MAX_BLOCK_LINES, Block, Line
from distroml.rpc import connect


class Sink:
    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.allowed = 1 << 40
        self.owed = self.limited_lines = self.limited_bytes = 0
        self.off = self.away = False
        self.under_way: list[Callable[[], None]] = []
        self.arrived: dict[str, int] = {}
        self.counts: Counter[str] = Counter()

    def add(self, block: Block, through: Through) -> None:
        assert 0 < block.count <= MAX_BLOCK_LINES
        self.lines += block.lines()
        self._take(through, {"shipped": block.count})

    def _take(self, through: Through, counts: dict[str, int]) -> None:
        if self.away:
            self.under_way.append(lambda: through(counts))
        else:
            through(counts)

    def tell(self, stream: str) -> Tell:
        def tell(at: int, counts: Mapping[str, int], limited_bytes: int) -> None:
            assert at >= self.arrived.get(stream, 0)
            self.arrived[stream] = at
            self.counts.update(counts)
            self.limited_bytes += limited_bytes

        return tell

    def allow(self, wanted: int) -> int:
        granted = min(wanted, self.allowed)
        self.allowed -= granted
        return granted

    def owe(self, spent: int) -> None:
        self.owed += spent

    def limited(self, lines: int, note: Block, through: Through) -> None:
        assert f"{lines} lines (" in note.texts()[0]
        self.limited_lines += lines
        self._take(through, {"limited": lines})

    @property
    def texts(self) -> list[str]:
        return [line.text for line in self.lines]


@pytest.fixture
def sink() -> Sink:
    return Sink()


def tail(folder: Path, sink: Sink, arrived: dict[str, int] | None = None) -> OutputTail:
    record = pb.LogRecord(job="job-1", worker="w", rank=1, incarnation=2, generation=3)
    return OutputTail(folder, record, sink, sink.tell, arrived)


async def test_lines_carry_their_place_and_what_they_say_of_themselves(tmp_path: Path, sink: Sink) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    (tmp_path / "stdout").write_text(f'fine\n{{"log.level": "error", "trace.id": "{trace}"}}\n')
    (tmp_path / "stderr").write_text("WARNING: open end")
    reader = tail(tmp_path, sink)
    assert reader.look()
    reader.place(rank=0, generation=4)
    await reader.finish()
    reader.save()
    assert [(x.stream, x.offset, x.level, x.trace_id, x.rank, x.generation) for x in sink.lines] == [
        ("stdout", 0, "", "", 1, 3),
        ("stdout", 5, "error", trace, 1, 3),
        ("stderr", 0, "warning", "", 0, 4),
    ]
    # A new agent goes on where this one was.
    assert not tail(tmp_path, sink).look()


def test_what_may_not_be_shipped_waits_in_the_file(tmp_path: Path, sink: Sink) -> None:
    (tmp_path / "stdout").write_text("first\nsecond\n")
    reader, sink.allowed = tail(tmp_path, sink), 8
    assert reader.look()
    assert not reader.look()
    assert sink.texts == ["first"]
    before = reader.grown_at
    with (tmp_path / "stdout").open("a") as file:
        file.write("third\n")
    sink.allowed = 0
    assert not reader.look()
    # A worker whose lines wait is one that writes.
    assert reader.grown_at != before
    sink.allowed = 100
    assert reader.look()
    assert sink.texts == ["first", "second", "third"]


@pytest.mark.parametrize("allowed", [0, 100_000, 3_000_000, 1 << 40])
async def test_every_line_of_a_loud_worker_is_handed_on_or_counted(tmp_path: Path, sink: Sink, allowed: int) -> None:
    written = 0
    reader, sink.allowed = tail(tmp_path, sink), allowed
    with (tmp_path / "stdout").open("w") as file:
        for _ in range(4):
            for _ in range(60_000):
                file.write(f"{written} {'x' * (written % 200)}\n")
                written += 1
            file.flush()
            reader.look()
    await reader.finish()
    assert len(sink.texts) + sink.limited_lines == written
    assert sink.texts[-1].split()[0] == str(written - 1)
    assert len({line.offset for line in sink.lines}) == len(sink.lines)
    size = (tmp_path / "stdout").stat().st_size
    shipped = sum(len(text) + 1 for text in sink.texts)
    assert shipped + sink.limited_bytes == size
    assert sink.counts == {end: n for end, n in [("shipped", len(sink.texts)), ("limited", sink.limited_lines)] if n}
    assert sink.arrived == {"stdout": size}
    assert shipped <= allowed + READ_BYTES
    assert sink.owed <= READ_BYTES


async def test_where_nothing_is_shipped_a_file_is_looked_at_and_not_read(tmp_path: Path, sink: Sink) -> None:
    reader, sink.off = tail(tmp_path, sink), True
    before = reader.grown_at
    (tmp_path / "stdout").write_text("a line\n" * (SKIP_BYTES // 6))
    assert not reader.look()
    # A worker whose lines nobody reads is one that writes, all the same.
    assert reader.grown_at != before
    await reader.finish()
    assert (sink.texts, sink.limited_lines, sink.owed) == ([], 0, 0)


async def test_a_line_longer_than_any_look_ends_the_skip(tmp_path: Path, sink: Sink) -> None:
    (tmp_path / "stderr").write_text("y" * 2_000_000)
    reader, sink.allowed = tail(tmp_path, sink), 0
    await reader.finish()
    assert sink.limited_lines == 0
    assert sink.lines[-1].text.startswith("yyy")


def test_an_allowance_is_an_average_with_a_bounded_burst() -> None:
    left = Allowance(1000, 0.0)
    assert left.take(10_000, 0.0) == 4000
    assert left.take(10_000, 0.5) == 500
    left.owe(1500, 0.5)
    assert left.take(10_000, 1.0) == 0
    assert left.take(10_000, 2.5) == 500
    assert left.take(99_999, 1e6) == 4000


def test_a_loud_reader_leaves_the_others_theirs() -> None:
    left, at = Allowance(1000, 0.0), 0.0
    left.take(4000, at)
    got = {"loud": 0, "quiet": 0}
    for _ in range(40):
        at += 0.25
        got["loud"] += left.take(1 << 20, at, readers=2)
        got["quiet"] += left.take(50, at, readers=2)
    assert got["quiet"] == 40 * 50
    assert 7000 < got["loud"] <= 10_000


async def test_who_goes_on_after_a_crash_hands_on_what_had_not_arrived_and_counts_it_once(tmp_path: Path) -> None:
    """Each time some of what was read has arrived, in any order, and then the reader is killed."""
    long = f"{'y' * 100_000}\n"
    (tmp_path / "stdout").write_text("".join(f"{n}\n" for n in range(10_000)) + long + "after\n")
    size = (tmp_path / "stdout").stat().st_size
    arrived, counts, seen = dict[str, int](), Counter[str](), set[int]()
    for survivors in ([2, 0], [0, 1], [1], []):
        sink = Sink()
        sink.away = True
        reader = tail(tmp_path, sink, arrived)
        while reader.look():
            pass
        assert sink.lines[0].offset == arrived.get("stdout", 0)
        seen |= {one.offset for one in sink.lines}
        for index in survivors:
            sink.under_way[index]()
        arrived |= sink.arrived
        counts += sink.counts
        assert not reader.arrived
    sink = Sink()
    reader = tail(tmp_path, sink, arrived)
    while reader.look():
        pass
    assert reader.arrived
    assert sink.arrived == {"stdout": size}
    assert counts + sink.counts == {"shipped": 10_002}
    assert len(seen) == 10_002


async def test_what_is_kept_is_how_far_lines_have_arrived(tmp_path: Path, sink: Sink) -> None:
    (tmp_path / "stdout").write_text("first\n")
    reader, sink.away = tail(tmp_path, sink), True
    reader.look()
    (tmp_path / "stderr").write_text("second\nno end")
    await reader.finish()
    sink.under_way[0]()
    reader.save()
    other = Sink()
    other.away = True
    await tail(tmp_path, other).finish()
    assert other.texts == ["second", "no end"]
    for through in sink.under_way[1:]:
        through()
    reader.save()
    assert not tail(tmp_path, other).look()


class Kept:
    """A log store that takes all lines at once."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def add(self, block: Block, count: Callable[[str, int], None]) -> None:
        self.lines += block.lines()
        count("shipped", block.count)


class Metered(LineShipping):
    """A node's shipping by a clock that the test sets."""

    def __init__(self, channel: Channel, bytes_per_s: int) -> None:
        super().__init__(TelemetryPush(channel, "node-1"), bytes_per_s=bytes_per_s)
        self.now_s = 0.0
        self.store = Kept()
        self._left = Allowance(bytes_per_s, self.now_s)

    def allow(self, wanted: int) -> int:
        return self._left.take(wanted, self.now_s, readers=self.readers)


async def test_a_loud_stdout_leaves_stderr_its_share(tmp_path: Path) -> None:
    channel = connect("127.0.0.1:1", "token")
    shipping = Metered(channel, 100_000)
    reader = LinesHere(shipping, lambda *_: None).follow(tmp_path, pb.LogRecord(worker="w"))
    with (tmp_path / "stdout").open("a") as loud, (tmp_path / "stderr").open("a") as quiet:
        for look in range(40):
            loud.write("out\n" * 25_000)
            loud.flush()
            quiet.write(f"warning {look}\n")
            quiet.flush()
            reader.look()
            shipping.now_s += 0.25
    await channel.close(None)
    assert isinstance(shipping.store, Kept)
    told = [line.text for line in shipping.store.lines if line.stream == "stderr"]
    assert told == [f"warning {look}" for look in range(40)]


async def test_nothing_is_read_once_the_rest_is_another_process_s(tmp_path: Path) -> None:
    channel = connect("127.0.0.1:1", "token")
    shipping, said = Metered(channel, 100_000), list[object]()
    following = Following(shipping, Arrivals(said.append), said.append)
    running = asyncio.create_task(following.run())
    for name in ("ended", "runs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stdout").write_text("first\n")
        following.told(Follow(str(tmp_path / name), pb.LogRecord(worker=name).SerializeToString()))
    store = shipping.store
    assert isinstance(store, Kept)
    while len(store.lines) < 2:
        await asyncio.sleep(0.01)
    following.told(Finish(str(tmp_path / "ended")))
    await following.close()
    assert said == [Finished(str(tmp_path / "ended"))]
    with (tmp_path / "runs" / "stdout").open("a") as file:
        file.write("second\n")
    await asyncio.wait_for(running, 10)
    await channel.close(None)
    assert [line.text for line in store.lines] == ["first", "first"]
    # What was saved is what has arrived, and telemetry is away.
    other = Sink()
    tail(tmp_path / "runs", other).look()
    assert other.texts == ["first", "second"]
