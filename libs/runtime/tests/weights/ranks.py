"""Real processes joined by gloo, each running one function: `run(world_size, "module:function", folder)`.

The ranks are forked by one child, so that torch is imported once; no thread runs before.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import traceback
from pathlib import Path


def run(world_size: int, function: str, folder: Path, *, timeout_s: float = 100) -> str:
    """Every rank calls `function(rank, world_size, folder)`; returns what they printed, fails where one raised."""
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-m", __name__, str(world_size), function, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _main(world_size: int, function: str, folder: Path) -> int:
    import torch._dynamo  # noqa: F401  # What the first step of an optimizer imports.

    module, _, name = function.partition(":")
    called = getattr(importlib.import_module(module), name)
    ranks: list[int] = []
    for rank in range(world_size):
        ranks.append(os.fork())
        if not ranks[-1]:
            code = 1
            try:
                _rank(rank, world_size, called, folder)
                code = 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    codes: list[int] = []
    while len(codes) < world_size:
        pid, status = os.wait()
        codes.append(os.waitstatus_to_exitcode(status))
        ranks.remove(pid)
        if codes[-1]:
            # The others may wait for it in a collective.
            for left in ranks:
                os.kill(left, 9)
    return 1 if any(codes) else 0


def _rank(rank: int, world_size: int, called: object, folder: Path) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world_size)
    assert callable(called)
    called(rank, world_size, folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
