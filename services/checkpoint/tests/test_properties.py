"""Whatever is asked in whatever order: what the catalogue promises."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from distroml.checkpoint.adapters.codecs import CatalogueState
from distroml.checkpoint.domain import CATALOGUE, Catalogue
from distroml.checkpoint.domain.commands import (
    BeginSave,
    Collect,
    Command,
    CommitSave,
    Delete,
    FailSave,
    Pin,
    ReportCorruption,
    ReportShard,
)
from distroml.checkpoint.domain.decide import ABANDONED_AFTER_MS
from distroml.checkpoint.domain.events import Begun, Committed, Deleted, Event, SaveFailed, ShardReported
from distroml.checkpoint.domain.retention import unreachable
from distroml.checkpoint.domain.state import Phase, save_id
from distroml.events import Rejection
from distroml.manifest import Keys

STEPS = st.integers(0, 6)
GENERATIONS = st.integers(1, 3)
RANKS = st.integers(0, 2)
HASHES = st.integers(1, 6).map(lambda number: f"m{number}")
TIMES = st.sampled_from([0, 1000, ABANDONED_AFTER_MS, 2 * ABANDONED_AFTER_MS])

COMMANDS: st.SearchStrategy[Command] = st.one_of(
    st.builds(
        BeginSave,
        at_ms=TIMES,
        job=st.just("j"),
        project=st.just("p"),
        generation=GENERATIONS,
        step=STEPS,
        world_size=st.just(2),
        keep=st.integers(1, 2),
    ),
    st.builds(
        ReportShard,
        at_ms=TIMES,
        generation=GENERATIONS,
        step=STEPS,
        rank=RANKS,
        world_size=st.just(2),
        shard_key=st.just("k"),
        shard_hash=st.just("h"),
        bytes_written=st.just(1),
        bytes_reused=st.just(1),
        seconds=st.just(0.0),
    ),
    st.integers(1, 6).flatmap(
        lambda number: st.builds(
            CommitSave,
            at_ms=TIMES,
            save_id=st.just(save_id(number)),
            manifest_hash=st.just(f"m{number}"),
            bytes_total=st.just(2),
            bytes_written=st.just(1),
            bytes_reused=st.sampled_from([0, 1]),
        )
    ),
    st.builds(
        FailSave,
        at_ms=TIMES,
        generation=GENERATIONS,
        step=STEPS,
        rank=RANKS,
        reason=st.just("RankFailed"),
        message=st.just(""),
    ),
    st.builds(
        ReportCorruption,
        at_ms=TIMES,
        reported=HASHES,
        sharing=st.lists(HASHES, max_size=2).map(tuple),
        object_key=st.just("o"),
        chunk_hash=st.just("c"),
        message=st.just(""),
    ),
    st.builds(Pin, at_ms=TIMES, step=STEPS, owner=st.sampled_from(["a", "b"]), ttl_s=st.sampled_from([0, 1, 10_000])),
    st.builds(Delete, at_ms=TIMES, step=STEPS),
    st.builds(Collect, at_ms=TIMES),
)


def saves(draw: st.DataObject, state: Catalogue) -> list[Command]:
    """Often enough, what a job really does: go on with the save that is open, or with the next step."""
    if state.open is None:
        return []
    save = state.open
    common = {"at_ms": save.begun_ms, "generation": save.generation, "step": save.step, "world_size": save.world_size}
    rest = {"shard_key": "k", "shard_hash": "h", "bytes_written": 1, "bytes_reused": 1, "seconds": 0.0}
    reports = [ReportShard(rank=rank, **common, **rest) for rank in range(draw.draw(st.integers(0, 2)))]
    number = state.opened
    commit = CommitSave(
        at_ms=save.begun_ms,
        save_id=save.save_id,
        manifest_hash=f"m{number}",
        bytes_total=2,
        bytes_written=1,
        bytes_reused=draw.draw(st.sampled_from([0, 1])),
    )
    return [*reports, commit]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_catalogue_keeps_its_promises(draw: st.DataObject):
    state, log = CATALOGUE.initial, list[Event]()
    for _ in range(draw.draw(st.integers(1, 25))):
        commands = saves(draw, state) if draw.draw(st.booleans()) else [draw.draw(COMMANDS)]
        for command in commands:
            try:
                events = CATALOGUE.decide(state, command)
            except Rejection:
                continue
            for event in events:
                check_event(state, log, event, command.at_ms)
                log.append(event)
                state = CATALOGUE.evolve(state, event)
            # One command's decision stands on one state, so deletions are checked against where they began.
    assert state == CATALOGUE.fold(log)
    assert all(CATALOGUE.fold(log[i:], since=CATALOGUE.fold(log[:i])) == state for i in range(0, len(log), 5))
    codec = CatalogueState()
    assert codec.from_parts(codec.parts(state)) == state


def check_event(state: Catalogue, log: list[Event], event: Event, at_ms: int) -> None:
    match event:
        case Begun():
            assert state.open is None
            earlier = [one.save_id for one in log if isinstance(one, Begun)]
            assert all(one < event.save_id for one in earlier)
            base = state.newest_sound()
            assert event.base_manifest_hash == (base.manifest_hash if base else "")
            generations = [one.generation for one in log if isinstance(one, Begun)]
            assert event.generation >= max(generations, default=0)
        case Committed():
            begun = next(one for one in log if isinstance(one, Begun) and one.save_id == event.save_id)
            ranks = [one.rank for one in log if isinstance(one, ShardReported) and one.save_id == event.save_id]
            assert sorted(ranks) == list(range(begun.world_size)), "visible before all its shards"
            closed = {one.save_id for one in log if isinstance(one, SaveFailed | Committed)}
            assert event.save_id not in closed
            newer = [one for one in log if isinstance(one, Begun) and one.generation > event.generation]
            assert not newer, "an older generation committed"
        case Deleted():
            victim = state.of_hash(event.manifest_hash)
            assert victim is not None
            assert victim.phase is not Phase.DELETED
            assert not victim.pinned(at_ms)
            assert victim != state.newest_sound()
            assert state.open is None or state.open.base_manifest_hash != victim.manifest_hash
        case _:
            pass


@st.composite
def stores(draw: st.DrawFn) -> tuple[Catalogue, list[str], dict[str, frozenset[str] | None]]:
    """A catalogue, the objects in the store, and what each present manifest reaches."""
    keys = Keys("j")
    state = CATALOGUE.initial
    number = draw(st.integers(1, 5))
    packs = {n: [f"{keys.data_of(save_id(n))}r00000-{i}" for i in range(2)] for n in range(1, number + 3)}
    reach: dict[str, frozenset[str] | None] = {}
    for n in range(1, number + 1):
        command = BeginSave(
            at_ms=0, job="j", project="", generation=1, step=n, world_size=1, keep=draw(st.integers(1, 3))
        )
        for event in CATALOGUE.decide(state, command):
            state = CATALOGUE.evolve(state, event)
        fate = (
            draw(st.sampled_from(["commit", "fail", "open"]))
            if n == number
            else draw(st.sampled_from(["commit", "fail"]))
        )
        if fate == "open":
            break
        report = ReportShard(
            at_ms=0,
            generation=1,
            step=n,
            rank=0,
            world_size=1,
            shard_key="k",
            shard_hash="h",
            bytes_written=1,
            bytes_reused=0,
            seconds=0.0,
        )
        commit = CommitSave(
            at_ms=0, save_id=save_id(n), manifest_hash=f"{n:064x}", bytes_total=1, bytes_written=1, bytes_reused=0
        )
        fail = FailSave(at_ms=0, generation=1, step=n, rank=0, reason="RankFailed", message="")
        assert state.open is not None
        base = reach.get(state.open.base_manifest_hash) or frozenset()
        for one in [report, commit] if fate == "commit" else [fail]:
            for event in CATALOGUE.decide(state, one):
                state = CATALOGUE.evolve(state, event)
        if fate == "commit":
            taken = draw(st.sets(st.sampled_from(sorted(base)))) if base else set[str]()
            reach[f"{n:064x}"] = frozenset(packs[n]) | taken
    for event in CATALOGUE.decide(state, Collect(at_ms=0)):
        state = CATALOGUE.evolve(state, event)
    present = {c.manifest_hash for c in state.present}
    listed = [key for pack in packs.values() for key in pack]
    listed += [keys.manifest(f"{n:064x}") for n in range(1, number + 3)]
    listed += [keys.shard(save_id(n), 0, "0" * 64) for n in range(1, number + 3)]
    return state, listed, {sha: found for sha, found in reach.items() if sha in present}


@settings(max_examples=300, deadline=None)
@given(stores())
def test_collection_removes_all_that_nothing_needs_and_nothing_else(
    store: tuple[Catalogue, list[str], dict[str, frozenset[str] | None]],
):
    state, listed, reach = store
    keys = Keys("j")
    doomed = set(unreachable(state, listed, reach))
    needed = frozenset[str]().union(*(found for found in reach.values() if found))
    assert not doomed & needed
    assert not doomed & {keys.manifest(sha) for sha in reach}
    for key in listed:
        save = keys.save_of(key)
        if save is not None and state.open is not None and save == state.open.save_id:
            assert key not in doomed, "of a save on its way"
        if save is not None and save > save_id(state.opened):
            assert key not in doomed, "of a save that was opened after the state was read"
        if save is not None and save <= save_id(state.opened) and key not in needed and key not in doomed:
            assert state.open is not None
            assert save == state.open.save_id, "left behind"


def test_what_an_unreadable_manifest_may_need_is_kept():
    keys = Keys("j")
    state = CATALOGUE.initial
    for command in (
        BeginSave(at_ms=0, job="j", project="", generation=1, step=1, world_size=1, keep=1),
        ReportShard(
            at_ms=0,
            generation=1,
            step=1,
            rank=0,
            world_size=1,
            shard_key="k",
            shard_hash="h",
            bytes_written=1,
            bytes_reused=0,
            seconds=0.0,
        ),
        CommitSave(at_ms=0, save_id=save_id(1), manifest_hash="a" * 64, bytes_total=1, bytes_written=1, bytes_reused=0),
    ):
        for event in CATALOGUE.decide(state, command):
            state = CATALOGUE.evolve(state, event)
    pack = f"{keys.data_of(save_id(1))}r00000-x"
    assert unreachable(state, [pack], {"a" * 64: None}) == []
    assert unreachable(state, [pack], {"a" * 64: frozenset()}) == [pack]
