"""Real savers and the real catalogue: save, fail over to a changed world, collect, restore."""

from __future__ import annotations

from pathlib import Path

import torch

from distroml.api.checkpoint.v1 import checkpoint_pb2 as pb
from distroml.runtime.checkpoint import Saver, capture, restore
from libs.runtime.tests.checkpoint.common import JOB, Net, Opened, Outcomes, same, saver, train
from services.checkpoint.tests.crashing import Plane


async def save(plane: Plane, savers: list[Saver], outcomes: Outcomes, net: Net, optimizer, step: int) -> None:
    opened = await plane.begin(step)
    before = len(outcomes.saved)
    for one in savers:
        answer = Opened(step, opened.save_id, opened.base_manifest_hash, opened.object_prefix)
        assert one.begin(capture(net, optimizer), {"step": step}, step=step, opened=answer)
    outcomes.expect(before + len(savers))
    assert not outcomes.failed
    for result in outcomes.saved[before:]:
        await plane.report(
            pb.ReportShardRequest(
                step=step,
                rank=result.rank,
                shard_key=result.shard_key,
                shard_hash=result.shard_hash,
                bytes_written=result.bytes_written,
                bytes_reused=result.bytes_reused,
            )
        )


async def test_what_the_catalogue_calls_the_latest_is_what_was_trained(tmp_path: Path):
    plane = Plane(tmp_path)
    net = Net()
    for parameter in net.body.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    outcomes = Outcomes()
    savers = [saver(plane.objects, outcomes, rank, 2) for rank in (0, 1)]
    for step in (1, 2, 3, 4):
        train(net, optimizer, 1, seed=step)
        await save(plane, savers, outcomes, net, optimizer, step)
        await plane.catalogues.collect(JOB)
        await plane.catalogues.sweep(JOB)
    for one in savers:
        one.close(5)
    latest = await plane.catalogues.latest(JOB, 0, 0)
    assert latest is not None
    assert (latest.step, latest.shards) == (4, 2)
    # The frozen layers lie in the pack of a checkpoint that is deleted by now.
    assert latest.bytes_reused > 0
    assert len((await plane.catalogues.load(JOB)).present) == 1
    fresh = Net(5)
    later = torch.optim.AdamW([p for name, p in fresh.named_parameters() if not name.startswith(("body", "frozen"))])
    restored = restore(plane.objects, JOB, latest.manifest_hash, fresh, later)
    assert restored.extras == ({"step": 4}, {"step": 4})
    same(capture(net, optimizer), capture(fresh, later))
    assert not (await plane.catalogues.verify(JOB, latest)).damages
    await plane.close()
