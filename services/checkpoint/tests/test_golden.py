"""What any release ever stored stays readable: recorded bytes fold to the recorded state."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import msgspec
import pytest

from distroml.checkpoint.adapters.codecs import EVENTS, PRIVATE, PUBLIC
from distroml.checkpoint.domain import CATALOGUE
from distroml.events import UnknownEvent

GOLDEN = Path(__file__).parents[3] / "tests" / "replay" / "checkpoint.jsonl"


def test_the_recorded_log_folds_to_the_recorded_state():
    *events, last = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    decoded = [EVENTS.decode(one["type"], one["schema"], base64.b64decode(one["data"])) for one in events]
    folded = json.loads(msgspec.json.encode(CATALOGUE.fold(decoded)))
    assert folded == last["state"]
    assert {one["type"] for one in events} == PUBLIC.names | PRIVATE.names


def test_an_unknown_event_stops_the_fold():
    with pytest.raises(UnknownEvent):
        EVENTS.decode("checkpoint.Renamed", 1, b"")
    with pytest.raises(UnknownEvent):
        EVENTS.decode("checkpoint.Committed", 2, b"")
