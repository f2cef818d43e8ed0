"""Starting a control plane that is not waited for to the end."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from distroml.cli.plane import control
from distroml.cli.plane.datafolder import DataFolder


def test_who_breaks_off_while_a_control_plane_starts_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Supervisor:
        pid = 1

        def __init__(self, *_: object, **__: object) -> None:
            told.append("start")

        def poll(self) -> int | None:
            return 0 if "end" in told else None

        def terminate(self) -> None:
            told.append("end")

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    fake: Any = Supervisor
    monkeypatch.setattr(subprocess, "Popen", fake)
    with pytest.raises(KeyboardInterrupt):
        control.start(DataFolder(tmp_path / "data"), on_wait=interrupted)
    assert told == ["start", "end"]
