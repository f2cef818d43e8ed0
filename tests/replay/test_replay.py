"""What any release ever stored stays readable and means what it meant: golden logs fold to their recorded states."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from distroml.events import UnknownEvent
from tests.recorded import differences
from tests.replay.folds import KINDS, TABLES, digest, fold
from tests.replay.log import Golden, golden_logs, write
from tests.replay.record import states_of

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
