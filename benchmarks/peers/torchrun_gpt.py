"""The peer of `benchmarks/recovery.py`: the example's GPT as a careful torchrun user writes it.

DDP, a checkpoint every K steps by rank 0 (written aside, synced, renamed), resumed at the start. Prints one line per
step of rank 0 with the wall clock at its end, and each rank's process id.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "gpt"))

from config import read_config
from corpus import Windows, read_corpus
from model import GPT, loss


def say(line: str) -> None:
    """One write for the whole line: torchrun's unbuffered output would let two ranks' lines mix."""
    os.write(1, f"{line}\n".encode())


def main() -> None:
    config, file, every = read_config(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    say(f"PID {rank} {os.getpid()}")
    torch.manual_seed(config.seed)
    corpus = read_corpus()
    windows = Windows(corpus.train, config.model.context)
    model = torch.nn.parallel.DistributedDataParallel(GPT(config.model), gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.training.learning_rate)
    step = 0
    if file.exists():
        saved = torch.load(file, weights_only=True)
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    batch = config.training.global_batch // world_size
    while True:
        first = (step * world_size + rank) * batch
        total, count = loss(model, torch.stack([windows[i % len(windows)] for i in range(first, first + batch)]))
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.grad_clip)
        optimizer.step()
        step += 1
        if rank == 0:
            say(f"STEP {step} {time.time()}")
            if step % every == 0:
                scratch = file.with_suffix(".new")
                with scratch.open("wb") as out:
                    torch.save(
                        {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, out
                    )
                    out.flush()
                    os.fsync(out.fileno())
                scratch.replace(file)
                say(f"SAVED {step}")


main()
