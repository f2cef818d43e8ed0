"""The relay's decisions under every order of commits, crashes, zombies and lost logs that hypothesis can think of."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from distroml.eventstore.relay import core
from distroml.eventstore.relay.core import Collected, SealPolicy
from distroml.eventstore.relay.port import Tail
from libs.eventstore.tests.log_parts import entry, events_of

POLICY = SealPolicy(bytes=1200, age_s=10)


class Moved(Exception):
    pass


@dataclass
class World:
    """What is durable: the outbox, the log, and the segments, as plain lists."""

    history: list = field(default_factory=list)
    trimmed: int = 0
    log: list = field(default_factory=list)
    begins: core.Place = core.BEGINNING
    incarnation: int = 1
    sealed: list = field(default_factory=list)

    def commit(self, events):
        revision = (self.history[-1].revision if self.history else 0) + 1 + events % 2
        self.history.append(entry(revision, *((f"s/{revision}", n + 1) for n in range(events))))

    def tail(self):
        place = (self.log[-1].position.revision, self.log[-1].position.index) if self.log else None
        return Tail(str(self.incarnation), len(self.log), place)

    def end(self):
        return self.sealed[-1].revision if self.sealed else 0

    def after(self, revision, limit=3):
        """As a relay reads on: from the outbox, or from segments where they have left it."""
        source = self.history if revision >= self.trimmed else self.sealed
        return [one for one in source if one.revision > revision][:limit]

    def delete(self):
        self.log, self.incarnation = [], self.incarnation + 1

    def check(self):
        """The log is a run of the history without a gap, and what left the outbox is sealed, in order, once."""
        whole = events_of(self.history)
        assert self.sealed == self.history[: len(self.sealed)]
        assert self.trimmed <= self.end()
        if self.log:
            start = whole.index(self.log[0])
            assert self.log == whole[start : start + len(self.log)]
            before = whole[start - 1].position if start else None
            assert before is None or (before.revision, before.index) <= self.begins
            assert start == 0 or self.begins[0] <= self.end()


class Relay:
    """The shell's steps, each of which may be the last."""

    def __init__(self, world, reload):
        self.world, self.reload = world, reload
        self.feed = self.collected = None

    def resume(self):
        tail = self.world.tail()
        begins = max(0, self.world.end() - self.reload) if tail.place is None else 0
        self.feed = core.resume(tail, begins)

    def publish(self, survive):
        """Publish the next batch, dying after `survive` of its events."""
        if self.feed is None:
            self.resume()
        done = core.batch(self.feed, self.world.after(self.feed.whole), 3)
        tail, previous = self.feed.tail, self.feed.previous
        for nth, recorded in enumerate(done.events):
            if nth == survive:
                self.feed = None
                return
            if self.world.tail() != tail:
                self.feed = None
                return
            if not self.world.log:
                self.world.begins = previous
            self.world.log.append(recorded)
            tail = self.world.tail()
        self.feed = core.fed(self.feed, done, tail)

    def collect(self, now):
        if self.collected is None:
            self.collected = Collected(self.world.end())
        if self.collected.last < self.world.trimmed:
            self.collected = None
            return
        entries = self.world.after(self.collected.last)
        before = len(self.collected.entries)
        self.collected = core.collect(self.collected, entries, now, POLICY)
        more = len(self.collected.entries) - before < len(entries)
        if core.due_in_s(self.collected, more, now, POLICY) == 0:
            # As the segments do: what somebody else sealed further stays.
            if self.world.end() == self.collected.after:
                self.world.sealed += self.collected.entries
            self.collected = Collected(self.world.end())

    def trim(self):
        if self.feed is not None and self.collected is not None:
            up_to = core.trimmable(self.feed.whole, self.collected.after)
            self.world.trimmed = max(self.world.trimmed, up_to)


STEPS = st.one_of(
    st.tuples(st.just("commit"), st.integers(1, 4)),
    st.tuples(st.just("publish"), st.integers(0, 1), st.integers(0, 9)),
    st.tuples(st.just("collect"), st.integers(0, 1), st.integers(0, 20)),
    st.tuples(st.just("trim"), st.integers(0, 1)),
    st.tuples(st.just("crash"), st.integers(0, 1)),
    st.tuples(st.just("delete")),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(STEPS, max_size=60), st.integers(0, 10))
def test_nothing_is_lost_doubled_or_out_of_order(steps, reload):
    world = World()
    relays = [Relay(world, reload), Relay(world, reload)]
    now = 0
    for step, *numbers in steps:
        match step:
            case "commit":
                world.commit(numbers[0])
            case "publish":
                relays[numbers[0]].publish(numbers[1])
            case "collect":
                now += numbers[1]
                relays[numbers[0]].collect(now)
            case "trim":
                relays[numbers[0]].trim()
            case "crash":
                relays[numbers[0]] = Relay(world, reload)
            case "delete":
                world.delete()
        world.check()

    relay = Relay(world, reload)
    for _ in range(2 * len(world.history) + 2):
        now += 20
        relay.publish(100)
        relay.collect(now)
        relay.trim()
        world.check()
    if world.history:
        newest = world.history[-1]
        assert world.sealed == world.history
        # Where all was sealed and the log then deleted, it may begin after everything.
        assert not world.log or world.log[-1] == newest.events[-1]
        assert world.trimmed == newest.revision


def test_a_commit_cut_short_goes_on_where_it_was_cut():
    commit = entry(7, ("a", 1), ("b", 1), ("c", 1))
    feed = core.resume(Tail("1", 5, (7, 0)), 0)
    assert feed.whole == 6
    done = core.batch(feed, [commit, entry(9, ("a", 2))], 2)
    assert (done.events, done.whole) == (commit.events[1:], 7)


def test_a_commit_larger_than_a_batch_is_published_whole():
    commit = entry(7, *((str(n), 1) for n in range(9)))
    assert core.batch(core.resume(Tail("1", 0, None), 0), [commit], 4).events == commit.events


def test_what_is_whole_in_the_log_already_is_passed_over():
    commit = entry(7, ("a", 1), ("b", 1))
    done = core.batch(core.resume(Tail("1", 5, (7, 1)), 0), [commit], 4)
    assert (done.events, done.whole) == ((), 7)


def test_an_empty_log_begins_after_what_is_sealed():
    feed = core.resume(Tail("2", 0, None), 20)
    assert (feed.whole, feed.previous > (20, 99), feed.previous < (21, 0)) == (20, True, True)
    assert core.resume(Tail("2", 0, None), 0).previous == core.BEGINNING


def test_a_segment_is_due_when_it_is_full_or_old():
    first, second = entry(3, ("a", 1), data=b"x" * 500), entry(5, ("a", 2), data=b"x" * 800)
    empty = Collected(2)
    assert core.due_in_s(empty, False, 100.0, POLICY) is None
    one = core.collect(empty, [first], 100.0, POLICY)
    assert core.due_in_s(one, False, 104.0, POLICY) == 6.0
    assert core.due_in_s(one, False, 111.0, POLICY) == 0.0
    full = core.collect(one, [second], 104.0, POLICY)
    assert full == one
    assert core.due_in_s(full, True, 104.0, POLICY) == 0.0
    large = core.collect(empty, [entry(3, ("a", 1), data=b"x" * 5000)], 1.0, POLICY)
    assert (large.last, core.due_in_s(large, False, 1.0, POLICY)) == (3, 0.0)
