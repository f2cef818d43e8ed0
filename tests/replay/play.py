"""Play a run whose log is worth recording: `python -m tests.replay.play KIND FOLDER`, then `tests.replay.record`.

`retired` is the demo, and the streams of its job leave the live state at the end. `second-attempt` is a job whose first
attempt fails, since a secret is missing, and whose second one succeeds after an error of its own.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from distroml.cli.plane import control
from distroml.cli.plane.datafolder import DataFolder
from distroml.eventstore.sqlite import open_event_store
from tests.e2e.conftest import Cli, wait_for

JOBS = Path(__file__).parent / "jobs"
SLOTS = 2


@contextmanager
def control_plane(folder: DataFolder) -> Iterator[Cli]:
    """Services on embedded stores, as long as the block lasts."""
    control.start(folder, slots=SLOTS)
    try:
        yield Cli(folder.path)
    finally:
        control.stop(folder)


def retired(folder: DataFolder) -> None:
    """See above."""
    Cli(folder.path)("demo", "--steps", "60", "--data", str(folder.path), timeout=400)
    os.environ["DISTROML_RETIRE_AFTER_S"] = "1"
    with control_plane(folder):
        wait_for(lambda: not any("/job/" in name for name in asyncio.run(_live(folder))), 120)


def second_attempt(folder: DataFolder) -> None:
    """See above."""
    with control_plane(folder) as cli:
        options = ("--workers", f"{SLOTS}", "--max-failures", "3", "--env", "TOKEN=secret:token")
        secrets = folder.path / "node" / "secrets"
        secrets.mkdir(mode=0o700, exist_ok=True)
        late = Thread(target=asyncio.run, args=[_after_a_failure(folder, secrets / "token")])
        late.start()
        job = cli.submit(*options, "stumbles.py", "40", str(folder.path / "stumbled"), cwd=JOBS)
        late.join(60)
        assert cli.wait_state(job, "SUCCEEDED", "FAILED", timeout=240) == "SUCCEEDED", cli.explain(job)
        attempts = [one for one in cli.events(job) if one["type"].endswith("AttemptStarted")]
        assert len(attempts) == 2, "the secret came too late: play it again"


async def _after_a_failure(folder: DataFolder, secret: Path) -> None:
    """Give the secret at once: the next attempt begins within a tenth of a second."""
    store = open_event_store(folder.path / "control.sqlite", create=False)
    try:
        async with asyncio.timeout(60):
            while not any(one.type.endswith(".FailureCounted") for one in await store.read()):
                await asyncio.sleep(0.001)
        secret.write_text("of no use")
    finally:
        await store.close()


async def _live(folder: DataFolder) -> list[str]:
    store = open_event_store(folder.path / "control.sqlite", create=False)
    try:
        return list(await store.streams())
    finally:
        await store.close()


KINDS: Mapping[str, Callable[[DataFolder], None]] = {"retired": retired, "second-attempt": second_attempt}

if __name__ == "__main__":
    _, kind, place = sys.argv
    KINDS[kind](DataFolder(Path(place)))
