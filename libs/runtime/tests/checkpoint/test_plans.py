"""A checkpoint saved under one plan loads under any other, bit for bit, and nothing but real processes is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.runtime.tests.weights.ranks import run


@pytest.mark.parametrize(("world_size", "case"), [(2, "two"), (4, "four")])
def test_every_plan_loads_what_another_saved(world_size: int, case: str, tmp_path: Path) -> None:
    run(world_size, f"libs.runtime.tests.checkpoint.crossing:{case}", tmp_path)
