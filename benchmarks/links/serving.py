"""The rank's side of `workers`: joins the process group, then answers one JSON task after the other."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from distroml.planner import PlanRefused
from distroml.runtime.elastic import World


def serve(make: Callable[[World], Any], *, timeout_s: float) -> None:
    """Give each task of standard input to the method of `make(world)` that its `do` names, until input ends.

    On `DEVICE` of the environment ("cuda:0"), the processor by default; all ranks share the one GPU.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device(os.environ.get("DEVICE", "cpu"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # NCCL refuses two ranks on one GPU of one host, so each is a host of its own to it.
        os.environ["NCCL_HOSTID"] = f"rank-{rank}"
    back_end = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(back_end, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s))
    world = World(
        generation=1,
        rank=rank,
        world_size=world_size,
        local_rank=int(os.environ["LOCAL_RANK"]),
        device=device,
        store=None,
        prefix="",
    )
    serving = make(world)
    for line in sys.stdin:
        task = json.loads(line)
        try:
            answer = getattr(serving, task.pop("do"))(**task)
        except PlanRefused as error:
            answer = {"refused": str(error)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
