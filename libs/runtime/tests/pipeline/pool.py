"""Four warm processes that run pipelines of two (twice at once) or four."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

SIZE = 4


class Pool:
    """Real processes with gloo between them; each rank of a pipeline is given the same case."""

    def __init__(self, folder: Path) -> None:
        pairs = [socket.socketpair() for _ in range(SIZE)]
        theirs = [end.fileno() for _, end in pairs]
        self._errors = folder / "errors"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).parent / "worker.py"), str(folder / "store"), *map(str, theirs)],
                pass_fds=theirs,
                stdout=errors,
                stderr=errors,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                # Not a session of its own: to the scheduler it would be a user of its own, however nice its tests are.
                process_group=0,
            )
        self._connections = [end for end, _ in pairs]
        for _, end in pairs:
            end.close()
        # Apart: a text stream for both forgets what it has read ahead when it writes.
        self._answers = [end.makefile("r") for end in self._connections]
        self._cases = [end.makefile("w") for end in self._connections]
        for rank in range(SIZE):
            self.answer(rank, 100)

    def run(self, case: dict[str, Any], ranks: range, timeout_s: float = 40) -> list[dict[str, Any]]:
        """Every rank's answer.

        Raises:
            AssertionError: a rank failed; with its trace.
        """
        self.send(case, ranks)
        return self.answers(ranks, timeout_s)

    def answers(self, ranks: range, timeout_s: float = 40) -> list[dict[str, Any]]:
        """What the ranks answer to what was sent; as `run`."""
        answers = [self.answer(rank, timeout_s) for rank in ranks]
        failed = [
            f"rank {rank}: {answer['trace']}" for rank, answer in zip(ranks, answers, strict=True) if "error" in answer
        ]
        assert not failed, "\n".join(failed)
        return answers

    def send(self, case: dict[str, Any], ranks: range) -> None:
        for rank in ranks:
            print(json.dumps({**case, "pp": len(ranks)}), file=self._cases[rank], flush=True)

    def answer(self, rank: int, timeout_s: float) -> dict[str, Any]:
        self._connections[rank].settimeout(timeout_s)
        line = self._answers[rank].readline()
        assert line, f"rank {rank} ended:\n{self._errors.read_text()[-4000:]}"
        return json.loads(line)

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        for end in (*self._answers, *self._cases, *self._connections):
            end.close()
