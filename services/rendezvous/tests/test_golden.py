"""What was once written stays readable: `tests/replay/rendezvous.jsonl` holds every event in every schema.

One line is one stored event, the last line the state that they fold to. A release that changes an event's shape adds
lines and an upcaster; it never changes a line.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from distroml.events import UnknownEvent
from distroml.rendezvous import domain as d
from distroml.rendezvous.adapters.codec import EVENTS, PRIVATE_EVENTS, PUBLIC_EVENTS, STATE

GOLDEN = Path(__file__).parents[3] / "tests" / "replay" / "rendezvous.jsonl"


def lines() -> list[dict[str, object]]:
    return [json.loads(line) for line in GOLDEN.read_text().splitlines()]


def decoded(line: dict[str, object]) -> d.Event:
    return EVENTS.decode(line["type"], line["schema"], base64.b64decode(line["data"]))


def test_the_golden_log_folds_to_the_recorded_state():
    *events, last = lines()
    state = d.RENDEZVOUS.fold(map(decoded, events))
    assert {name: json.loads(part) for name, part in STATE.parts(state).items()} == last["state"]


def test_every_event_that_can_be_written_is_in_it():
    assert {line["type"] for line in lines()[:-1]} == PUBLIC_EVENTS.names | PRIVATE_EVENTS.names


def test_an_event_of_a_newer_release_stops_the_fold():
    with pytest.raises(UnknownEvent):
        EVENTS.decode("rendezvous.generation.Teleported", 1, b"{}")
    with pytest.raises(UnknownEvent):
        EVENTS.decode("rendezvous.member.NodeReady", 2, b"{}")
