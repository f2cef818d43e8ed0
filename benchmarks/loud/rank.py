"""A rank of the example GPT's training; rank 0 also writes so many bytes of lines a second to its standard output.

`rank.py FOLDER STEPS BYTES_PER_S`, beside the example's files. Each leaves its process in `FOLDER/pid.RANK`, rank 0
`FOLDER/steps`, the machine's monotonic nanoseconds at each step's end, and `FOLDER/written`, the bytes and lines that
it wrote.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import torch
from config import read_config
from corpus import Windows, read_corpus
from model import GPT, loss

from distroml.runtime import DataLoader, Trainer

TICK_S = 0.02
LINE = "{:09d} rank 0 sample loss 2.3417 tokens 1024 grad_norm 0.8812 lr 0.00093 data shard-00017.tar offset 48213"


class Loud:
    """Writes lines at a rate, in a thread of its own, until it is told to end."""

    def __init__(self, bytes_per_s: int) -> None:
        self.bytes = self.lines = 0
        self._rate = bytes_per_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write, name="loud")

    def __enter__(self) -> Loud:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _write(self) -> None:
        # Made once: what is measured is where lines go, not how a script comes by them.
        piece = "".join(LINE.format(number) + "\n" for number in range(10_000)).encode()
        length = len(LINE.format(0)) + 1
        begun = time.monotonic()
        while not self._over.wait(TICK_S):
            owed = int((time.monotonic() - begun) * self._rate) - self.bytes
            view = memoryview(piece)[: min(owed // length * length, len(piece))]
            self.bytes += len(view)
            self.lines += len(view) // length
            while view:
                view = view[os.write(1, view) :]


def main() -> None:
    folder, steps, bytes_per_s = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    (folder / f"pid.{os.environ['RANK']}").write_text(str(os.getpid()), encoding="utf-8")
    torch.set_num_threads(1)
    config = read_config(Path(__file__).parent / "gpt.toml")
    training = config.training
    trainer = Trainer(
        model_factory=lambda: GPT(config.model),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=training.learning_rate),
        loss=loss,
        data=DataLoader(
            Windows(read_corpus().train, config.model.context), training.global_batch, seed=1, collate=torch.stack
        ),
        steps=steps,
        grad_clip=training.grad_clip,
        seed=1,
        device="cpu",
    )
    if int(os.environ["RANK"]):
        for _ in trainer.steps():
            pass
        return
    # Only the loud thread's lines are on standard output.
    sys.stdout = sys.stderr
    with Loud(bytes_per_s) as loud, (folder / "steps").open("w", encoding="utf-8") as ends:
        for _ in trainer.steps():
            ends.write(f"{time.monotonic_ns()}\n")
            ends.flush()
    (folder / "written").write_text(json.dumps({"bytes": loud.bytes, "lines": loud.lines}), encoding="utf-8")


if __name__ == "__main__":
    main()
