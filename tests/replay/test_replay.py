"""What any release ever stored stays readable and means what it meant: golden logs fold to their recorded states."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from distroml.events import UnknownEvent
from distroml.eventstore.port import state_prefix
from distroml.rendezvous.adapters import codec as rendezvous
from distroml.rendezvous.adapters.keys import fence_key
from distroml.scheduler.streams import JOB_PREFIX
from tests.recorded import differences
from tests.replay.folds import KINDS, TABLES, digest, document, fold, kind_of, kinds_on
from tests.replay.log import LOGS, Golden, golden_logs, write
from tests.replay.record import states_of
from tests.replay.retired import back, brought_in, left_behind

MEND = (
    "Stored events outlive releases, and these are in people's logs. Give the codec an upcaster from the old schema, "
    "or mend `evolve`; where the new meaning is right for new events only, raise their schema. Never change a recorded "
    "log: add a new one beside it (tests/replay/README.md)"
)


def judge(golden: Golden) -> list[str]:
    """Everything that this release makes of a recorded log otherwise than was recorded."""
    states, found = golden.states(), list[str]()
    if hashlib.sha256(golden.text()).hexdigest() != states["sha256"]:
        found.append(f"{golden.name}/log.jsonl was changed since it was recorded")
    for name, lines in golden.streams().items():
        recorded = states["streams"][name]
        if (len(lines), digest(recorded["state"])) != (recorded["version"], recorded["sha256"]):
            found.append(f"{golden.name}: the recorded state of {name} was changed")
        try:
            state = fold(name, lines)
        except (UnknownEvent, ValueError, KeyError) as error:
            found.append(f"{golden.name}: {name} cannot be read any more: {error!r}")
            continue
        found += [f"{golden.name}: {name}: {each}" for each in differences(recorded["state"], state)]
    return found


@pytest.mark.parametrize("golden", golden_logs(), ids=lambda golden: golden.name)
def test_a_recorded_log_folds_to_its_recorded_states(golden: Golden) -> None:
    assert golden.streams().keys() == golden.states()["streams"].keys()
    found = judge(golden)
    assert not found, "\n".join([*found, MEND])


def test_every_event_that_can_be_written_is_in_a_recorded_log() -> None:
    lines = [line for golden in golden_logs() for own in golden.streams().values() for line in own]
    recorded = {(line.type, line.schema) for line in lines}
    for codec in TABLES:
        have = {line.type: line for line in lines if line.type in codec.names}
        written = {codec.encode(codec.decode(one.type, one.schema, one.data), id="evt") for one in have.values()}
        missing = (codec.names - have.keys()) | {one.type for one in written if (one.type, one.schema) not in recorded}
        assert not missing, (
            f"no recorded log holds {missing} as they are written now; record one (tests/replay/README.md)"
        )


@pytest.mark.parametrize("golden", [one for one in golden_logs() if one.retired()], ids=lambda golden: golden.name)
async def test_streams_that_were_retired_answer_and_come_back_as_they_were(golden: Golden) -> None:
    left, states = await left_behind(golden.retired()), golden.states()["streams"]
    jobs = {name.rpartition("/")[2] for name in left}
    assert left.keys() == {f"{owner}/job/{job}" for owner in ("scheduler", "rendezvous", "checkpoint") for job in jobs}
    store = await brought_in(golden)
    kinds = kinds_on(store)
    assert set(await store.retired()) == left.keys()
    assert {*await store.streams(), *left} == states.keys()
    for name, sealed in left.items():
        assert sealed.version == states[name]["version"]
        for now in ("retired", "live again"):
            draft = await kind_of(name, kinds).load(name)
            found = list(differences(states[name]["state"], document(draft.state)))
            assert (draft.version, found) == (sealed.version, []), f"{name}, {now}\n{MEND}"
            await back(store, name, sealed.version)
        beside = {key: int(value) for key, value in sealed.parts.items() if not key.startswith(state_prefix(name))}
        is_fenced = name.startswith(rendezvous.STREAM_PREFIX)
        assert beside == ({fence_key(draft.state.job): draft.state.number} if is_fenced else {})
    assert (await store.parts(""))[0] == {key: value for sealed in left.values() for key, value in sealed.parts.items()}


def test_a_recorded_job_failed_and_succeeded_in_its_second_attempt() -> None:
    streams = Golden(LOGS / "second-attempt-2026-11").streams()
    ((job, lines),) = [(name, own) for name, own in streams.items() if name.startswith(JOB_PREFIX)]
    told = [fold(job, lines[:count]) for count in range(1, len(lines) + 1)]
    again = next(n for n, state in enumerate(told) if state["attempt"] == 2)
    waits, last = told[again - 1], told[-1]
    assert (waits["state"], waits["reason"], waits["failures"], waits["placement"]) == ("queued", "SetupFailed", 1, [])
    assert told[again + 1]["attempt_failures_left"] == last["spec"]["retry"]["max_failures"] - 1
    # Another failure, within the second attempt, and no preemption.
    assert (last["state"], last["attempt"], last["failures"], last["preemptions"]) == ("succeeded", 2, 2, 0)
    met = f"{rendezvous.STREAM_PREFIX}{last['id']}"
    numbers = [fold(met, streams[met][:count])["number"] for count in range(1, len(streams[met]) + 1)]
    assert numbers == sorted(numbers), "generations go on counting from attempt to attempt"
    ended = fold(met, streams[met])
    assert (ended["attempt"], ended["number"], ended["ending"]["outcome"]) == (2, last["generation"], "Succeeded")


@pytest.mark.parametrize("prefix", KINDS)
def test_an_event_of_a_newer_release_stops_the_fold(prefix: str) -> None:
    known = next(
        own[0] for golden in golden_logs() for name, own in golden.streams().items() if name.startswith(prefix)
    )
    for newer in (replace(known, type=f"{known.type}Anew"), replace(known, schema=99)):
        with pytest.raises(UnknownEvent):
            fold(known.stream, [newer])


def test_a_log_that_was_changed_or_is_read_otherwise_is_told_from_a_sound_one(tmp_path: Path) -> None:
    stream, lines = next(
        (name, own) for name, own in golden_logs()[0].streams().items() if name.startswith("scheduler/node/")
    )
    states = states_of(lines)
    assert judge(write(tmp_path / "sound", lines, states, {})) == []

    unknown = [replace(lines[0], schema=99), *lines[1:]]
    [found] = judge(write(tmp_path / "unknown", unknown, states, {}))
    assert "cannot be read any more" in found
    damaged = [replace(lines[0], data=b"\xff"), *lines[1:]]
    [found] = judge(write(tmp_path / "damaged", damaged, states, {}))
    assert "cannot be read any more" in found

    other = {**states[stream]["state"], "id": "another"}
    meant = {stream: {**states[stream], "state": other, "sha256": digest(other)}}
    [found] = judge(write(tmp_path / "otherwise", lines, meant, {}))
    assert f"{stream}: id was 'another'" in found
    more = {stream: {**states[stream], "state": other}}
    assert f"otherwise-2: the recorded state of {stream} was changed" in judge(
        write(tmp_path / "otherwise-2", lines, more, {})
    )

    sound = Golden(tmp_path / "sound")
    (sound.folder / "log.jsonl").write_bytes(sound.text() + sound.text())
    assert "sound/log.jsonl was changed since it was recorded" in judge(sound)
    with pytest.raises(FileExistsError):
        write(sound.folder, lines, states, {})
