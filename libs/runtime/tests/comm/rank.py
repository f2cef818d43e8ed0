"""One rank of a conformance run: `python -m libs.runtime.tests.comm.rank BACKEND OUT [FAULT]`."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch

from distroml.runtime.elastic.world import ProcessGroup, world_of_environment
from libs.runtime.tests.comm import faults
from libs.runtime.tests.comm.cases import CASES


def main(backend: str, out: Path, fault: str = "") -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    world = world_of_environment(os.environ, "cuda" if backend == "nccl" else "cpu", backend)
    limit_s = faults.LIMIT_S if fault and fault != "left" else 60.0
    group = ProcessGroup(world, agent_store=False, setup_timeout_s=60.0, collective_timeout_s=limit_s)
    group.open()
    told: dict[str, str] = {}
    if fault:
        started = time.monotonic()
        told = faults.FAULTS[fault](group)
        told["seconds"] = str(time.monotonic() - started)
    else:
        for name, case in CASES.items():
            try:
                case(world.device)
                told[name] = ""
            except Exception:
                told[name] = traceback.format_exc()
                break  # what follows would meet a group in an unknown state
    (out / f"{world.rank}.json").write_text(json.dumps(told))
    group.close(broken=bool(fault))
    if fault:
        raise SystemExit(7)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
