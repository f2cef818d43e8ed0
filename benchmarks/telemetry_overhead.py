"""What telemetry costs a training step of the small GPT.

Counted: the seconds of every telemetry call on the training thread (samples, progress lines, recorded steps with
their fingerprints), and the CPU seconds of the link's thread (heartbeats, batches of samples), divided by the wall
time of the steps. One worker with half of the demonstration's batch, as each of its two workers has; a real agent
socket is read in another process.

    python benchmarks/telemetry_overhead.py [--steps 60] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "gpt"))

BOUND = 0.005


def listen(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        while connection.recv(1 << 16):
            pass


def measure(steps: int, link: str, objects: str) -> dict[str, float]:
    os.environ.update(
        DISTROML_LINK=link, DISTROML_WORKER="bench.1.node.0", DISTROML_GENERATION="1", DISTROML_JOB="bench",
        DISTROML_OBJECTS=f"file://{objects}",
    )  # fmt: skip
    import torch
    from config import read_config
    from corpus import Windows, read_corpus
    from model import GPT, loss

    from distroml.runtime import DataLoader, Trainer

    torch.set_num_threads(1)
    config = read_config(Path(__file__).parents[1] / "examples" / "gpt" / "gpt.toml")
    windows = Windows(read_corpus().train, config.model.context)
    trainer = Trainer(
        model_factory=lambda: GPT(config.model),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        loss=loss,
        data=DataLoader(windows, config.training.global_batch // 2, collate=torch.stack),
        steps=steps + 2,
        checkpoint_every=config.training.checkpoint_every,
        grad_clip=1.0,
        device="cpu",
    )
    made = trainer.steps()
    next(made)
    before, started, step_s = trainer.telemetry_s, time.perf_counter(), 0.0
    for _ in range(steps):
        step_s += next(made).step_s
    return {
        "steps": steps,
        "step_s": step_s / steps,
        "telemetry_s_per_step": (trainer.telemetry_s - before) / steps,
        "share": (trainer.telemetry_s - before) / (time.perf_counter() - started),
        "bound": BOUND,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="ten steps; rough figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "link.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        reader = os.fork()
        if reader == 0:
            listen(listener)
        try:
            result = measure(10 if arguments.quick else arguments.steps, path, str(Path(folder) / "objects"))
        finally:
            os.kill(reader, 9)
            os.waitpid(reader, 0)
    print(
        f"telemetry: {1e6 * result['telemetry_s_per_step']:.0f} us of a {1e3 * result['step_s']:.0f} ms step "
        f"= {result['share']:.3%} (bound {BOUND:.1%})"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.flush()
    # The training is broken off on purpose: nothing of it is worth an orderly end.
    os._exit(0 if result["share"] <= BOUND else 1)


if __name__ == "__main__":
    main()
