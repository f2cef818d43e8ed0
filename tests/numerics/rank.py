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
_MOST_THREADS, _ANEW = 24, 75


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


def serve(end: socket.socket, *, first: bool) -> int:
    """Do one task after the other, until the other side is gone, or too much of them is left here: the exit code."""
    with end, end.makefile("r") as tasks:
        if first:
            end.sendall(b'{"result": "ready"}\n')
        for line in tasks:
            end.sendall((json.dumps(_do(json.loads(line))) + "\n").encode())
            # Torch remembers sharded models, and with them groups whose threads look around 100 times a second.
            if len(os.listdir("/proc/self/task")) > _MOST_THREADS:
                return _ANEW
    return 0


def _forked(descriptor: int, others: list[int], *, first: bool) -> int:
    """The process of a rank that serves a descriptor."""
    child = os.fork()
    if not child:
        for other in others:
            os.close(other)
        os._exit(serve(socket.socket(fileno=descriptor), first=first))
    return child


def main() -> None:
    """Fork the ranks, another one for each that has had enough, and wait for them."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    # What was imported is garbage for no rank: without this each would look through all of it after every task.
    gc.collect()
    gc.freeze()
    descriptors = [int(word) for word in sys.argv[1:]]
    children: dict[int, int] = {}
    for descriptor in descriptors:
        others = [other for other in descriptors if other != descriptor]
        children[_forked(descriptor, others, first=True)] = descriptor
    while children:
        child, status = os.wait()
        descriptor = children.pop(child)
        if os.waitstatus_to_exitcode(status) == _ANEW:
            children[_forked(descriptor, list(children.values()), first=False)] = descriptor
        else:
            # Whoever waits for an answer is to know that none comes.
            os.close(descriptor)


if __name__ == "__main__":
    main()
