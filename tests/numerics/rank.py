"""One process of the pool: `python -m tests.numerics.rank FD...` forks one rank for each descriptor."""

from __future__ import annotations

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

from distroml.runtime.elastic import World

_TIMEOUT = timedelta(seconds=60)


def _world(task: dict[str, Any]) -> World:
    rank, world_size = task["rank"], task["world_size"]
    if world_size > 1:
        store = dist.FileStore(task["store"], world_size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT)
    return World(
        generation=1,
        rank=rank,
        world_size=world_size,
        local_rank=rank,
        device=torch.device("cpu"),
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
