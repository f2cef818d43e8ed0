"""Residuals over restarts: their sum is kept in any world and under any plan, each rank's own where that is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distroml.manifest import TensorEntry
from distroml.objectstore.filesystem import open_object_store
from distroml.runtime.checkpoint import OWN, RESIDUALS, ManifestReader, load_into
from libs.runtime.tests.checkpoint.common import JOB
from tests.numerics.pool import Pool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

LEG = "libs.runtime.tests.parallel.keeping:leg"


def kept(folder: Path, sha: str) -> dict[str, torch.Tensor]:
    """The residuals of a checkpoint, by name."""
    store = open_object_store(folder / "objects")
    entries = ManifestReader(store, JOB, sha).manifest.entries
    found = {
        str(entry.path[1]): torch.empty(entry.shape)
        for entry in entries
        if isinstance(entry, TensorEntry) and entry.path[0] == RESIDUALS
    }
    if found:
        load_into(store, JOB, sha, {RESIDUALS: found})
    return found


@pytest.mark.parametrize("compress", ["int4", "powersgd:1"])
@pytest.mark.parametrize(
    "plans",
    [
        ["dp_replicate=4", "dp_replicate=2", "dp_replicate=4"],
        ["dp_replicate=2,tp=2", "dp_replicate=2", "dp_replicate=2,dp_shard=2"],
        ["dp_replicate=2,dp_shard=2", "dp_replicate=2", "dp_replicate=2,pp=2"],
    ],
)
def test_their_sum_is_kept_over_worlds_and_plans(pool: Pool, tmp_path: Path, compress: str, plans: list[str]) -> None:
    """Three steps in each: what they tell and keep is all there was, and their losses are those without a resize."""
    losses: list[float] = []
    sha, first = "", 1
    for plan in plans:
        world_size = 2 if plan == "dp_replicate=2" else 4
        given = {"folder": str(tmp_path), "plan": plan, "compress": compress, "first": first, "last": first + 2}
        answers = pool.run(LEG, world_size, 120, sha=sha, **given)
        if sha:
            before, handed = kept(tmp_path, sha), kept(tmp_path, answers[0]["handed"])
            assert sorted(handed) == sorted(before)
            total = torch.cat([one.flatten() for one in before.values()]).norm()
            lost = torch.cat([(handed[name] - one).flatten() for name, one in before.items()]).norm()
            assert lost <= 1e-6 * total > 0
        assert all(answer["gap"] <= 1e-6 for answer in answers)
        sha, first = answers[0]["sha"], first + 3
        losses += answers[0]["losses"]
    given |= {"folder": str(tmp_path / "straight"), "plan": plans[0], "first": 1}
    straight = pool.run(LEG, 4, 120, sha="", **given)[0]["losses"]
    assert losses[:3] == straight[:3]
    assert losses[3:] == pytest.approx(straight[3:], rel=0.1)


def test_their_sum_is_kept_where_buckets_have_another_size(pool: Pool, tmp_path: Path) -> None:
    given = {"folder": str(tmp_path), "compress": "int4", "first": 1}
    sha = pool.run(LEG, 2, 120, plan="dp_replicate=2,bucket_mb=0.001", sha="", last=3, **given)[0]["sha"]
    again = pool.run(LEG, 2, 120, plan="dp_replicate=2", sha=sha, last=0, **given)[0]["sha"]
    before, after = kept(tmp_path, sha), kept(tmp_path, again)
    assert sorted(before) == sorted(after)
    for name, one in before.items():
        assert torch.allclose(one, after[name], rtol=1e-6, atol=1e-8), name


@pytest.mark.parametrize("plan", ["dp_replicate=2", "dp_replicate=2,tp=2"])
def test_the_same_world_goes_on_bit_for_bit_where_that_is_asked(pool: Pool, tmp_path: Path, plan: str) -> None:
    world_size = 2 if plan == "dp_replicate=2" else 4
    bits: dict[str, str] = {}
    for kind in ("exact", "folded"):
        given = {"folder": str(tmp_path / kind), "plan": plan, "compress": "powersgd:1", "residuals": kind}
        sha = pool.run(LEG, world_size, 120, sha="", first=1, last=3, **given)[0]["sha"]
        answers = pool.run(LEG, world_size, 120, sha=sha, first=4, last=6, **given)
        assert len({answer["bits"] for answer in answers}) == 1
        bits[kind] = answers[0]["bits"]
    straight = pool.run(
        LEG, world_size, 120, sha="", first=1, last=6, **{**given, "folder": str(tmp_path / "straight")}
    )
    assert bits["exact"] == straight[0]["bits"]
    assert bits["folded"] != straight[0]["bits"], "the sum alone does not say which rank kept what"


def test_each_ranks_own_are_no_use_in_another_world(pool: Pool, tmp_path: Path) -> None:
    given = {"folder": str(tmp_path), "compress": "int4", "residuals": "exact", "last": 0, "first": 1}
    sha = pool.run(LEG, 4, 120, plan="dp_replicate=4", sha="", **{**given, "last": 2})[0]["sha"]
    before = kept(tmp_path, sha)
    again = pool.run(LEG, 2, 120, plan="dp_replicate=2", sha=sha, **given)[0]["sha"]
    for name, one in kept(tmp_path, again).items():
        assert torch.allclose(one, before[name], rtol=1e-5, atol=1e-7), name
    store = open_object_store(tmp_path / "objects")
    ranks = {entry.path[1] for entry in ManifestReader(store, JOB, again).manifest.entries if entry.path[0] == OWN}
    assert ranks == {"0", "1"}


@pytest.mark.parametrize(("saves", "loads"), [("none", "int4"), ("int4", "none")])
def test_compression_may_begin_and_end_with_a_restart(pool: Pool, tmp_path: Path, saves: str, loads: str) -> None:
    """A checkpoint without residuals loads, and one with them does where nothing is compressed."""
    given = {"folder": str(tmp_path), "plan": "dp_replicate=2"}
    sha = pool.run(LEG, 2, 120, sha="", first=1, last=2, compress=saves, **given)[0]["sha"]
    answers = pool.run(LEG, 2, 120, sha=sha, first=3, last=4, compress=loads, **given)
    assert len({answer["bits"] for answer in answers}) == 1
    assert bool(kept(tmp_path, answers[0]["sha"])) == (loads != "none")


@pytest.mark.parametrize("plan", ["dp_replicate=2", "dp_shard=2"])
def test_what_is_kept_when_compression_ends_is_told_once(pool: Pool, tmp_path: Path, plan: str) -> None:
    """The plain step after it moves parameters by the residuals' sum, too, and nothing is kept after it."""
    given = {"folder": str(tmp_path), "plan": "dp_replicate=2", "compress": "int4"}
    sha = pool.run(LEG, 2, 120, sha="", first=1, last=2, **given)[0]["sha"]
    for found in pool.run("libs.runtime.tests.parallel.keeping:owed", 2, folder=str(tmp_path), plan=plan, sha=sha):
        assert found["residuals"] > 0
        assert found["differs"] < 1e-4 * found["residuals"]
        assert found["before"] > 0 == found["after"]
