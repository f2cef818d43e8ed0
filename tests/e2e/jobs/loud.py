"""Rank 0 writes 10 MB/s, the others a line now and then: `python loud.py GATES`, phase by phase as gates open."""

import os
import sys
import time
from pathlib import Path

rank, gates = int(os.environ["RANK"]), Path(sys.argv[1])
LINES, BEATS, BEAT_S = 10_000, 20, 0.1

print("ready", flush=True)
for phase in ("up", "down", "again"):
    while not (gates / phase).exists():
        time.sleep(0.02)
    for beat in range(BEATS):
        if rank == 0:
            sys.stdout.write("".join(f"{phase} loud {beat * LINES + n} {'x' * 80}\n" for n in range(LINES)))
            sys.stdout.flush()
        else:
            print(f"{phase} quiet {beat} of {rank}", "WARNING" if beat % 10 == 0 else "", flush=True)
        time.sleep(BEAT_S)
    (gates / f"{phase}-{rank}").touch()
