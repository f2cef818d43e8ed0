from __future__ import annotations

from dataclasses import replace

from distroml.checkpoint.domain import CATALOGUE, reasons
from distroml.checkpoint.domain.commands import (
    BeginSave,
    Collect,
    CommitSave,
    Delete,
    FailSave,
    Pin,
    RecordVerified,
    ReportCorruption,
    ReportShard,
)
from distroml.checkpoint.domain.decide import ABANDONED_AFTER_MS
from distroml.checkpoint.domain.events import (
    Begun,
    Committed,
    CorruptChunkFound,
    Deleted,
    Event,
    FellBack,
    PinSet,
    SaveFailed,
    ShardReported,
    Verified,
)
from distroml.checkpoint.domain.retirement import is_settled
from distroml.checkpoint.domain.state import Phase, save_id, save_number
from distroml.events import Given, given

T = 1_000_000


def begin(step: int, generation: int = 1, world_size: int = 2, at_ms: int = T, keep: int = 2) -> BeginSave:
    return BeginSave(
        at_ms=at_ms, job="job-a", project="p", generation=generation, step=step, world_size=world_size, keep=keep
    )


def begun(number: int, step: int, generation: int = 1, world_size: int = 2, base: str = "", keep: int = 2) -> Begun:
    return Begun(
        at_ms=T,
        job="job-a",
        save_id=save_id(number),
        step=step,
        generation=generation,
        world_size=world_size,
        base_manifest_hash=base,
        keep=keep,
        project="p",
    )


def report(rank: int, step: int, generation: int = 1, world_size: int = 2, sha: str = "") -> ReportShard:
    return ReportShard(
        at_ms=T,
        generation=generation,
        step=step,
        rank=rank,
        world_size=world_size,
        shard_key=f"k{rank}",
        shard_hash=sha or f"h{rank}",
        bytes_written=10,
        bytes_reused=0,
        seconds=0.5,
    )


def reported(rank: int, number: int) -> ShardReported:
    return ShardReported(
        at_ms=T,
        save_id=save_id(number),
        rank=rank,
        shard_key=f"k{rank}",
        shard_hash=f"h{rank}",
        bytes_written=10,
        bytes_reused=0,
        seconds=0.5,
    )


def commit(number: int, reused: int = 0) -> CommitSave:
    return CommitSave(
        at_ms=T + 2000,
        save_id=save_id(number),
        manifest_hash=f"m{number}",
        bytes_total=20,
        bytes_written=20 - reused,
        bytes_reused=reused,
    )


def committed(number: int, step: int, generation: int = 1, shards: int = 2, reused: int = 0) -> Committed:
    return Committed(
        at_ms=T + 2000,
        save_id=save_id(number),
        step=step,
        generation=generation,
        manifest_hash=f"m{number}",
        shards=shards,
        bytes_total=20,
        bytes_written=20 - reused,
        bytes_reused=reused,
        save_s=2.0,
    )


def failed(number: int, step: int, reason: str, message: str, generation: int = 1, rank: int = -1) -> SaveFailed:
    return SaveFailed(
        at_ms=T,
        save_id=save_id(number) if number else "",
        step=step,
        generation=generation,
        rank=rank,
        message=message,
        reason=reason,
    )


def saved(number: int, step: int, generation: int = 1, base: str = "") -> tuple[Event, ...]:
    return (
        begun(number, step, generation, base=base),
        reported(0, number),
        reported(1, number),
        committed(number, step, generation),
    )


NEW = given(CATALOGUE)
OPEN = given(CATALOGUE, begun(1, 10))
THREE = given(CATALOGUE, *saved(1, 10), *saved(2, 20, base="m1"), *saved(3, 30, base="m2"))


def also(sentence: Given, *events: Event) -> Given:
    return given(CATALOGUE, *sentence.history, *events)


def test_the_first_rank_opens_a_save_and_the_others_find_it_open():
    NEW.when(begin(10)).then(begun(1, 10))
    OPEN.when(begin(10, at_ms=T + 5)).then()


def test_a_save_is_pinned_to_the_newest_sound_checkpoint():
    THREE.when(begin(40)).then(begun(4, 40, base="m3"))
    corrupt = CorruptChunkFound(at_ms=T, step=30, manifest_hash="m3", object_key="o", chunk_hash="c", message="")
    also(THREE, corrupt).when(begin(40)).then(begun(4, 40, base="m2"))


def test_ranks_must_agree_on_the_world_size():
    OPEN.when(begin(10, world_size=3)).then_rejected(reasons.WORLD_SIZE_CONFLICT)
    OPEN.when(report(0, 10, world_size=3)).then_rejected(reasons.WORLD_SIZE_CONFLICT)


def test_a_step_asked_for_while_another_is_saved_is_refused_for_every_rank_alike():
    refusal = failed(0, 20, reasons.SAVE_IN_PROGRESS, "step 10 is still being saved: 2 of 2 ranks are missing")
    OPEN.when(begin(20)).then(refusal)
    # The other rank asks after the first save is through: it must not open what the first one was refused.
    later = also(OPEN, refusal, reported(0, 1), reported(1, 1), committed(1, 10))
    later.when(begin(20)).then_rejected(reasons.SAVE_IN_PROGRESS)
    later.when(begin(30)).then(begun(2, 30, base="m1"))


def test_a_save_that_never_completes_makes_way_in_the_end():
    late = begin(20, at_ms=T + ABANDONED_AFTER_MS)
    closed = replace(
        failed(1, 10, reasons.ABANDONED, "it never completed, and a newer step is saved"), at_ms=late.at_ms
    )
    OPEN.when(late).then(closed, replace(begun(2, 20), at_ms=late.at_ms))


def test_a_newer_generation_closes_the_save_of_an_older_one():
    superseded = failed(1, 10, reasons.SUPERSEDED, "generation 2 took over")
    OPEN.when(begin(5, generation=2)).then(superseded, begun(2, 5, generation=2))


def test_an_older_generation_is_told_that_it_is_stale():
    newer = given(CATALOGUE, begun(1, 10, generation=2))
    newer.when(begin(50, generation=1)).then_rejected(reasons.STALE_GENERATION)
    newer.when(report(0, 50, generation=1)).then_rejected(reasons.STALE_GENERATION)


def test_steps_of_a_generation_only_go_forward():
    THREE.when(begin(30)).then_rejected(reasons.ALREADY_COMMITTED)
    THREE.when(begin(25)).then_rejected(reasons.SAVE_CLOSED)
    THREE.when(begin(30, generation=2)).then(begun(4, 30, generation=2, base="m3"))


def test_reports_are_recorded_once():
    OPEN.when(report(0, 10)).then(reported(0, 1))
    also(OPEN, reported(0, 1)).when(report(0, 10)).then()
    also(OPEN, reported(0, 1)).when(report(0, 10, sha="other")).then_rejected(reasons.SHARD_CONFLICT)
    THREE.when(report(0, 30)).then()


def test_a_report_without_a_save_is_refused_and_a_failed_one_says_why():
    NEW.when(report(0, 10)).then_rejected(reasons.NO_OPEN_SAVE)
    gone = also(OPEN, failed(1, 10, "RankFailed", "disk full", rank=1))
    gone.when(report(0, 10)).then_rejected("RankFailed")
    assert "disk full" in str(gone.when(report(0, 10)).outcome)


def test_nothing_is_a_checkpoint_before_every_rank_reported():
    OPEN.when(commit(1)).then_rejected(reasons.SHARDS_MISSING)
    half = also(OPEN, reported(1, 1))
    half.when(commit(1)).then_rejected(reasons.SHARDS_MISSING)
    assert half.state.newest_sound() is None
    whole = also(half, reported(0, 1)).when(commit(1))
    whole.then(committed(1, 10))
    newest = whole.state.newest_sound()
    assert newest is not None
    assert newest.manifest_hash == "m1"
    assert whole.state.open is None


def test_the_commit_of_a_save_that_was_closed_meanwhile_is_nothing():
    also(OPEN, failed(1, 10, "RankFailed", "x")).when(commit(1)).then()
    THREE.when(commit(3)).then()


def test_a_save_on_a_base_that_became_damaged_fails_only_where_it_took_chunks_from_it():
    corrupt = CorruptChunkFound(at_ms=T, step=30, manifest_hash="m3", object_key="o", chunk_hash="c", message="")
    save = also(THREE, begun(4, 40, base="m3"), corrupt, reported(0, 4), reported(1, 4))
    message = "it takes over chunks of a damaged checkpoint"
    save.when(commit(4, reused=5)).then(
        replace(failed(4, 40, reasons.BASE_DAMAGED, message), at_ms=T + 2000),
    )
    save.when(commit(4)).then(committed(4, 40))


def test_one_failing_rank_closes_the_save_for_all():
    fail = FailSave(at_ms=T, generation=1, step=10, rank=1, reason="RankFailed", message="disk full")
    OPEN.when(fail).then(failed(1, 10, "RankFailed", "disk full", rank=1))
    # Also before any rank opened it: the others must not wait for a rank that skipped this step.
    skipped = NEW.when(fail)
    skipped.then(failed(0, 10, "RankFailed", "disk full", rank=1))
    given(CATALOGUE, failed(0, 10, "RankFailed", "disk full", rank=1)).when(begin(10)).then_rejected("RankFailed")
    THREE.when(replace(fail, step=30)).then()


def test_damage_sets_aside_every_checkpoint_that_needs_the_bytes():
    report_damage = ReportCorruption(
        at_ms=T, reported="m3", sharing=("m2",), object_key="o", chunk_hash="c", message="bad"
    )
    found = [
        CorruptChunkFound(at_ms=T, step=s, manifest_hash=m, object_key="o", chunk_hash="c", message="bad")
        for s, m in ((20, "m2"), (30, "m3"))
    ]
    outcome = THREE.when(report_damage)
    outcome.then(*found, FellBack(at_ms=T, from_step=30, to_step=10, manifest_hash="m1"))
    assert [c.phase for c in outcome.state.checkpoints] == [Phase.COMMITTED, Phase.DAMAGED, Phase.DAMAGED]
    also(THREE, *found).when(report_damage).then()
    THREE.when(replace(report_damage, reported="nobody")).then_rejected(reasons.UNKNOWN_CHECKPOINT)


def test_falling_back_to_nothing_is_said():
    one = given(CATALOGUE, *saved(1, 10))
    damage = ReportCorruption(at_ms=T, reported="m1", sharing=(), object_key="o", chunk_hash="c", message="bad")
    found = CorruptChunkFound(at_ms=T, step=10, manifest_hash="m1", object_key="o", chunk_hash="c", message="bad")
    one.when(damage).then(found, FellBack(at_ms=T, from_step=10, to_step=0, manifest_hash=""))


def test_retention_keeps_the_newest_and_what_is_pinned():
    deleted = Deleted(at_ms=T, step=10, manifest_hash="m1", why="retention")
    THREE.when(Collect(at_ms=T)).then(deleted)
    pin = PinSet(at_ms=T, manifest_hash="m1", owner="me", until_ms=T + 1000)
    also(THREE, pin).when(Collect(at_ms=T)).then()
    also(THREE, pin).when(Collect(at_ms=T + 1000)).then(replace(deleted, at_ms=T + 1000))
    # The base of an open save stays, however old it is.
    base = also(THREE, begun(4, 40, base="m1"))
    base.when(Collect(at_ms=T)).then()


def test_pins_are_set_and_removed_by_their_owner():
    set_ = PinSet(at_ms=T, manifest_hash="m2", owner="me", until_ms=T + 60_000)
    THREE.when(Pin(at_ms=T, step=20, owner="me", ttl_s=60)).then(set_)
    also(THREE, set_).when(Pin(at_ms=T, step=20, owner="me", ttl_s=0)).then(replace(set_, until_ms=0))
    also(THREE, set_).when(Pin(at_ms=T, step=20, owner="you", ttl_s=0)).then()
    THREE.when(Pin(at_ms=T, step=21, owner="me", ttl_s=60)).then_rejected(reasons.UNKNOWN_CHECKPOINT)


def test_deleting_spares_what_is_needed():
    THREE.when(Delete(at_ms=T, step=10)).then(Deleted(at_ms=T, step=10, manifest_hash="m1", why="asked for"))
    THREE.when(Delete(at_ms=T, step=30)).then_rejected(reasons.NEWEST_SOUND)
    THREE.when(Delete(at_ms=T, step=11)).then_rejected(reasons.UNKNOWN_CHECKPOINT)
    also(THREE, begun(4, 40, base="m2")).when(Delete(at_ms=T, step=20)).then_rejected(reasons.BASE_OF_OPEN_SAVE)
    pin = PinSet(at_ms=T, manifest_hash="m1", owner="me", until_ms=T + 1000)
    also(THREE, pin).when(Delete(at_ms=T, step=10)).then_rejected(reasons.PINNED)
    gone = also(THREE, Deleted(at_ms=T, step=10, manifest_hash="m1", why="asked for"))
    gone.when(Delete(at_ms=T, step=10)).then()


def test_verification_is_recorded_for_sound_checkpoints_only():
    verified = Verified(at_ms=T, step=30, manifest_hash="m3", chunks=4, bytes=20)
    THREE.when(RecordVerified(at_ms=T, manifest_hash="m3", chunks=4, bytes=20)).then(verified)
    assert also(THREE, verified).state.checkpoints[-1].verified_at_ms == T
    THREE.when(RecordVerified(at_ms=T, manifest_hash="m9", chunks=4, bytes=20)).then()


def test_latest_respects_the_last_step_asked_for():
    state = THREE.state
    assert [state.newest_sound(step).step for step in (0, 100, 29, 20, 10)] == [30, 30, 20, 20, 10]  # type: ignore[union-attr]
    assert state.newest_sound(9) is None


def test_save_ids_hold_their_number():
    assert save_number(save_id(7)) == 7
    assert [save_number(text) for text in ("", "s1", "x0000000001", "s00000000x1")] == [None] * 4


def test_a_catalogue_is_settled_whatever_it_keeps_unless_a_save_waits_for_its_commit_alone():
    pinned = PinSet(at_ms=T, manifest_hash="m1", owner="me", until_ms=10 * T)
    assert is_settled(also(THREE, pinned).state)
    assert is_settled(also(OPEN, reported(0, 1)).state)
    assert not is_settled(also(OPEN, reported(0, 1), reported(1, 1)).state)
