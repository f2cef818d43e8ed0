"""What was measured, in a file, so that it is not measured again; of each the commit of whose code it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "build" / "time_to_loss.json"


class Kept:
    """Values by the words that name them.

    What another code might measure otherwise has the name of its code (`compression.sources`) among them. Whatever is
    found is told on stderr, with the commit at which it was measured.
    """

    def __init__(self, *, fresh: bool, file: Path = FILE) -> None:
        self._file, self._commit = file, _commit()
        self._found: dict[str, Any] = json.loads(file.read_text()) if file.exists() and not fresh else {}

    def get(self, *key: object) -> Any:
        name = " ".join(map(str, key))
        if name not in self._found:
            return None
        print(f"  kept, of commit {self._found[name]['commit']}: {name}", file=sys.stderr, flush=True)
        return self._found[name]["value"]

    def put(self, value: Any, *key: object) -> Any:
        self._found[" ".join(map(str, key))] = {"commit": self._commit, "value": value}
        self._file.parent.mkdir(exist_ok=True)
        self._file.write_text(json.dumps(self._found, indent=1) + "\n")
        return value


def _commit() -> str:
    """The commit that is checked out, with a plus where files that git knows are not as they are there."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() or "unknown"
