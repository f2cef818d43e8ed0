"""Through torch's own entry points, and between processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from distroml.objectstore.memory import open_object_store
from distroml.runtime.checkpoint import ManifestReader, ManifestWriter, PlainLoadPlanner, PlainSavePlanner, SaveTarget
from libs.runtime.tests.checkpoint.common import JOB, same

TARGET = SaveTarget(job=JOB, save_id="s0000000001", step=3, generation=1, rank=0, world_size=1)

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def test_dcp_saves_and_loads_without_a_pickle():
    store = open_object_store()
    state = {"model": {"w": torch.randn(5, 3), "b": torch.ones(2, dtype=torch.bfloat16)}, "plain": {"lr": 0.5, 3: (1,)}}
    writer = ManifestWriter(store, TARGET, extra=b"")
    dcp.save(state, storage_writer=writer, planner=PlainSavePlanner(), no_dist=True)
    assert writer.manifest_hash
    into = {"model": {"w": torch.zeros(5, 3), "b": torch.zeros(2, dtype=torch.bfloat16)}, "plain": {}}
    reader = ManifestReader(store, JOB, writer.manifest_hash)
    dcp.load(into, storage_reader=reader, planner=PlainLoadPlanner(), no_dist=True)
    same(state, into)


def test_planners_that_pickle_are_refused():
    writer = ManifestWriter(open_object_store(), TARGET)
    with pytest.raises(dcp.CheckpointException, match="PlainSavePlanner"):
        dcp.save({"w": torch.ones(2)}, storage_writer=writer, no_dist=True)


CHILD = textwrap.dedent(
    """
    import os
    import sys
    import traceback
    from pathlib import Path
    import torch
    import torch._dynamo  # what the first step of an optimizer imports
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
    from torch.nn.parallel import DistributedDataParallel
    from distroml.objectstore.filesystem import open_object_store
    from distroml.runtime.checkpoint import (
        ManifestReader, ManifestWriter, PlainLoadPlanner, PlainSavePlanner, SaveTarget, capture, load_into, restore)
    from libs.runtime.tests.checkpoint.common import JOB, Opened, Outcomes, commit, same, saver

    folder = Path(sys.argv[1])

    def main(rank):
        dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
        store = open_object_store(folder / "objects")

        def save_all(state, step, base=""):
            outcomes = Outcomes()
            one = saver(store, outcomes, rank, 2)
            assert one.begin(state, {"rank": rank}, step=step, opened=Opened(step, f"s{step:010d}", base))
            outcomes.expect(1)
            one.close(5)
            assert not outcomes.failed, outcomes.failed
            results = [None, None]
            dist.all_gather_object(results, outcomes.saved[0])
            shas = [commit(store, results)] if rank == 0 else [None]
            dist.broadcast_object_list(shas)
            return shas[0], results

        # Data parallel: every rank holds everything, each writes about half.
        torch.manual_seed(0)
        net = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(40, 40), torch.nn.Linear(40, 40)))
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        for _ in range(2):
            net(torch.randn(4, 40)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        sha, results = save_all(capture(net, optimizer), 1)
        sizes = [one.bytes_written for one in results]
        assert max(sizes) < 1.3 * min(sizes), sizes
        bare = torch.nn.Sequential(torch.nn.Linear(40, 40), torch.nn.Linear(40, 40))
        later = torch.optim.AdamW(bare.parameters())
        restored = restore(store, JOB, sha, bare, later, rank=rank)
        assert restored.extra == {"rank": rank}
        same(capture(net, optimizer), capture(bare, later))

        # Sharded: each rank holds rows, a replicated DTensor is written once; loaded in any other layout.
        mesh = init_device_mesh("cpu", (2,))
        whole, other = torch.arange(7 * 6, dtype=torch.float32).reshape(7, 6), torch.randn(5, 3)
        dist.broadcast(other, 0)
        state = {"model": {
            "rows": distribute_tensor(whole, mesh, [Shard(0)]),
            "columns": distribute_tensor(whole, mesh, [Shard(1)]),
            "twice": distribute_tensor(other, mesh, [Replicate()]),
            "plain": other + 1,
        }}
        sha, results = save_all(state, 2)
        assert sum(one.bytes_written for one in results) == 2 * (whole.nbytes + other.nbytes), results
        into = {"model": {
            "rows": distribute_tensor(torch.zeros(7, 6), mesh, [Shard(1)]),
            "columns": torch.zeros(7, 6),
            "twice": distribute_tensor(torch.zeros(5, 3), mesh, [Shard(0)]),
            "plain": torch.zeros(5, 3),
        }}
        load_into(store, JOB, sha, into, rank=rank)
        model = into["model"]
        assert torch.equal(model["rows"].full_tensor(), whole)
        assert torch.equal(model["columns"], whole)
        assert torch.equal(model["twice"].full_tensor(), other)
        assert torch.equal(model["plain"], other + 1)

        # torch's own save and load, with their collectives.
        target = SaveTarget(job=JOB, save_id="s0000000003", step=3, generation=1, rank=rank, world_size=2)
        writer = ManifestWriter(store, target)
        dcp.save(state, storage_writer=writer, planner=PlainSavePlanner())
        shas = [writer.manifest_hash]
        dist.broadcast_object_list(shas)
        again = {"model": {name: torch.zeros_like(value) for name, value in state["model"].items()}}
        dcp.load(again, storage_reader=ManifestReader(store, JOB, shas[0]), planner=PlainLoadPlanner())
        for name, value in state["model"].items():
            local = value.to_local() if isinstance(value, DTensor) else value
            got = again["model"][name]
            assert torch.equal(got.to_local() if isinstance(got, DTensor) else got, local), name
        if rank == 0:
            print(shas[0])
        dist.destroy_process_group()

    # Forked, so that torch is imported once; no thread runs before.
    ranks = []
    for rank in (0, 1):
        ranks.append(os.fork())
        if not ranks[-1]:
            code = 1
            try:
                main(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks))
    """
)


def test_two_processes_save_and_load_sharded_and_replicated_state(tmp_path: Path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    # One process alone loads what two saved in shards.
    from distroml.objectstore.filesystem import open_object_store as open_filesystem
    from distroml.runtime.checkpoint import load_into

    into: dict[str, object] = {
        "model": {
            "rows": torch.zeros(7, 6),
            "columns": torch.zeros(7, 6),
            "twice": torch.zeros(5, 3),
            "plain": torch.zeros(5, 3),
        }
    }
    load_into(open_filesystem(tmp_path / "objects"), JOB, done.stdout.strip(), into)
    model = into["model"]
    assert isinstance(model, dict)
    whole = torch.arange(42, dtype=torch.float32).reshape(7, 6)
    same([model["rows"], model["columns"]], [whole, whole])
    same(model["twice"] + 1, model["plain"])
