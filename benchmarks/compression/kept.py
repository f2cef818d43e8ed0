"""What was measured, in a file, so that it is not measured again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "build" / "time_to_loss.json"


class Kept:
    """Values by the words that name them."""

    def __init__(self, *, fresh: bool) -> None:
        self._found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() and not fresh else {}

    def get(self, *key: object) -> Any:
        return self._found.get(" ".join(map(str, key)))

    def put(self, value: Any, *key: object) -> Any:
        self._found[" ".join(map(str, key))] = value
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(json.dumps(self._found, indent=1) + "\n")
        return value
