"""A golden log on disk: `log.jsonl` with every event in the order of the log, `states.json` with what they fold to.

Where streams were retired, `retired.json` has the objects that they left behind, under their keys.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from distroml.events import Recorded

LOGS = Path(__file__).parent / "logs"


@dataclass(frozen=True)
class Line:
    """One recorded event.

    Attributes:
        stream: its name.
        type: stored name.
        schema: of its bytes.
        public: whether other services read it.
        data: as stored.
    """

    stream: str
    type: str
    schema: int
    public: bool
    data: bytes

    @classmethod
    def of(cls, recorded: Recorded) -> Line:
        """What is kept of a recorded event: all that a fold sees, without its context, which no fold sees."""
        return cls(recorded.stream, recorded.type, recorded.schema, recorded.public, recorded.data)

    def as_json(self) -> str:
        """As it stands in the file."""
        return json.dumps({**vars(self), "data": base64.b64encode(self.data).decode()})

    @classmethod
    def from_json(cls, text: str) -> Line:
        """As `as_json` made it."""
        document = json.loads(text)
        return cls(**{**document, "data": base64.b64decode(document["data"])})


@dataclass(frozen=True)
class Golden:
    """A recorded log and its recorded states."""

    folder: Path

    @property
    def name(self) -> str:
        """By which it is called."""
        return self.folder.name

    def text(self) -> bytes:
        """The log's bytes."""
        return (self.folder / "log.jsonl").read_bytes()

    def streams(self) -> dict[str, list[Line]]:
        """The recorded events by stream, each in its order."""
        found: dict[str, list[Line]] = {}
        for text in self.text().decode().splitlines():
            line = Line.from_json(text)
            found.setdefault(line.stream, []).append(line)
        return found

    def states(self) -> dict[str, Any]:
        """What was recorded beside the log; see `write`."""
        return json.loads((self.folder / "states.json").read_text())

    def retired(self) -> dict[str, bytes]:
        """The objects that retired streams left behind, by key; none where no stream was retired."""
        file = self.folder / "retired.json"
        found = json.loads(file.read_text()) if file.exists() else {}
        return {key: base64.b64decode(data) for key, data in found.items()}


def golden_logs() -> list[Golden]:
    """Every recorded log."""
    return [Golden(folder) for folder in sorted(LOGS.iterdir()) if folder.is_dir()]


def write(
    folder: Path,
    lines: Iterable[Line],
    states: Mapping[str, Any],
    about: Mapping[str, str],
    retired: Mapping[str, bytes] = MappingProxyType({}),
) -> Golden:
    """Record a log in a new folder; raises `FileExistsError` where there is one already."""
    folder.mkdir(parents=True)
    log = "".join(line.as_json() + "\n" for line in lines)
    (folder / "log.jsonl").write_text(log)
    document = {"about": about, "sha256": hashlib.sha256(log.encode()).hexdigest(), "streams": states}
    (folder / "states.json").write_text(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    if retired:
        objects = {key: base64.b64encode(data).decode() for key, data in retired.items()}
        (folder / "retired.json").write_text(json.dumps(objects, indent=1, sort_keys=True) + "\n")
    return Golden(folder)
