"""One rank of a conformance run: `python -m libs.runtime.tests.comm.rank BACKEND OUT [FAULT]`."""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from torch.distributed import HashStore

from distroml.runtime.comm.backends import make_backend
from distroml.runtime.elastic import World
from distroml.runtime.elastic.world import ProcessGroup, world_of_environment
from libs.runtime.tests.comm import faults
from libs.runtime.tests.comm.casebook import Case
from libs.runtime.tests.comm.cases import cases_of


def opened(backend: str, limit_s: float) -> tuple[World, ProcessGroup]:
    """The world that the environment tells of, and its group."""
    world = world_of_environment(os.environ, "cuda" if backend == "nccl" else "cpu", backend)
    group = ProcessGroup(world, agent_store=False, setup_timeout_s=60.0, collective_timeout_s=limit_s)
    group.open()
    return world, group


def cases_for(backend: str, ranks: int) -> dict[str, Case]:
    """What a back end is held to in a run of its own."""
    if backend != "nccl":
        return cases_of(ranks)  # and to the others in test_training, where ranks have imported all that these need
    from libs.runtime.tests.comm.reducer_cases import REDUCERS

    return cases_of(ranks) | REDUCERS.cases_of(ranks)


def conforming(world: World, cases: dict[str, Case]) -> dict[str, str]:
    """What was wrong in each case, until one fails."""
    told: dict[str, str] = {}
    for name, case in cases.items():
        try:
            case(world.device)
            told[name] = ""
        except Exception:
            told[name] = traceback.format_exc()
            break  # what follows would meet a group in an unknown state
    return told


def main(backend: str, out: Path, fault: str = "") -> None:
    torch.set_num_threads(1)
    # NCCL's own warnings tell of costs: that a pair of ranks is connected when it first meets.
    warnings.simplefilter("default" if backend == "nccl" else "error")
    world, group = opened(backend, faults.LIMIT_S if fault and fault != "left" else 60.0)
    if world.world_size == 1:
        # Training needs no group then, and opens none. Here it is the back end that is tried.
        alone = make_backend(backend)
        alone.check(world)
        alone.open(world, HashStore(), timedelta(seconds=60))
    told = faults.FAULTS[fault](group) if fault else conforming(world, cases_for(backend, world.world_size))
    (out / f"{world.rank}.json").write_text(json.dumps(told))
    group.close(broken=bool(fault) or any(told.values()))
    if fault and backend == "nccl":
        # As workers end: taken apart by the interpreter, a group whose kernels hung is waited for without end.
        os._exit(7)
    if fault:
        raise SystemExit(7)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
