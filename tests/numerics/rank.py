"""One process of the pool: `python -m tests.numerics.rank FD...` forks one rank for each descriptor."""

from __future__ import annotations

import gc
import importlib
import json
import os
import socket
import sys
import traceback
import warnings
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import transformers

# What each rank would import for its first model and in its first step is imported once, before they are forked.
import transformers.models.llama.modeling_llama

import distroml.runtime.warm  # noqa: F401
from distroml.runtime.elastic import World

_TIMEOUT = timedelta(seconds=110)


# "cuda" has all ranks on one GPU, which NCCL takes for one GPU each of so many hosts.
_DEVICE = torch.device(os.environ.get("NUMERICS_DEVICE", "cpu"), 0)


def _world(task: dict[str, Any]) -> World:
    rank, world_size = task["rank"], task["world_size"]
    on_gpu = _DEVICE.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(_DEVICE)
    if world_size > 1:
        os.environ["NCCL_HOSTID"] = f"rank-{rank}"
        store = dist.FileStore(task["store"], world_size)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT
        )
    return World(
        generation=1,
        rank=rank,
        world_size=world_size,
        local_rank=rank,
        device=_DEVICE if on_gpu else torch.device("cpu"),
        store=None,
        prefix="",
    )


def _do(task: dict[str, Any]) -> dict[str, Any]:
    module, _, name = task["function"].partition(":")
    try:
        world = _world(task)
        try:
            return {"result": getattr(importlib.import_module(module), name)(world, **task["arguments"])}
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    except Exception:
        return {"trace": traceback.format_exc()}
    finally:
        # Models and meshes hold their groups in cycles, and each group left has threads that look around 100 times a
        # second: the pool would take half a core for having worked.
        gc.collect()


def serve(end: socket.socket) -> None:
    """Do one task after the other, until the other side is gone."""
    with end, end.makefile("r") as tasks:
        end.sendall(b'{"result": "ready"}\n')
        for line in tasks:
            end.sendall((json.dumps(_do(json.loads(line))) + "\n").encode())


def main() -> None:
    """Fork the ranks and wait for them."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    # What was imported is garbage for no rank: without this each would look through all of it after every task.
    gc.collect()
    gc.freeze()
    descriptors = [int(word) for word in sys.argv[1:]]
    children: list[int] = []
    for descriptor in descriptors:
        child = os.fork()
        if not child:
            for other in descriptors:
                if other != descriptor:
                    os.close(other)
            serve(socket.socket(fileno=descriptor))
            os._exit(0)
        children.append(child)
    for descriptor in descriptors:
        os.close(descriptor)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
