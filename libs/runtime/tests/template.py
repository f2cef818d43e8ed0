"""A warm parent of worker processes, as an agent has one."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

SCRIPTS = Path(__file__).parent / "scripts"


class Template:
    """A warm parent of workers."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPTS / "template.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        )
        self.ended: dict[int, int] = {}
        self.started: list[int] = []
        self.news = threading.Condition()
        assert json.loads(self.process.stdout.readline())["ready"]
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            answer = json.loads(line)
            with self.news:
                if "code" in answer:
                    self.ended[answer["pid"]] = answer["code"]
                else:
                    self.started.append(answer["pid"])
                self.news.notify_all()

    def fork(self, argv: list[str], env: dict[str, str], log: Path) -> int:
        with self.news:
            already = len(self.started)
            self.process.stdin.write(json.dumps({"argv": argv, "env": env, "log": str(log)}) + "\n")
            self.process.stdin.flush()
            assert self.news.wait_for(lambda: len(self.started) > already, 20)
            return self.started[already]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.thread.join(5)
        self.process.stdout.close()
