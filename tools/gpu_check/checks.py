"""The checks, in their order; each returns its figures, and raises `Failed` with what is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from tools.gpu_check.lab import ROOT, Failed, Lab, succeeded
from tools.gpu_check.together import compressed, faults, plans, several, survivor

Figures = dict[str, Any]
Check = Callable[[Lab], Figures]

STEPS, KILL_AT = 60, 33
# Sums in another order: of single numbers to seven digits, over some thirty steps.
LOSS_TOLERANCE = 1e-3
MOST_RATIO = 1.05


def machine(lab: Lab) -> Figures:
    """What is here."""
    said = lab.python("-c", _MACHINE, lab.device)
    return json.loads(said)


_MACHINE = """
import json, platform, sys, torch
cuda = sys.argv[1] == "cuda"
properties = torch.cuda.get_device_properties(0) if cuda else None
print(json.dumps({
    "python": platform.python_version(), "torch": torch.__version__,
    "gpu": properties.name if cuda else None, "bytes": properties.total_memory if cuda else None,
    "nccl": list(torch.cuda.nccl.version()) if cuda else None,
}))
"""


def back_end(lab: Lab) -> Figures:
    """NCCL of one rank is held to what every back end is held to (of one GPU, that is all there can be)."""
    name = "nccl" if lab.device == "cuda" else "gloo"
    out = lab.folder / "ranks"
    out.mkdir()
    seat = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}
    lab.python("-m", "libs.runtime.tests.comm.rank", name, str(out), environ=seat)
    said: dict[str, str] = json.loads((out / "0.json").read_text())
    if wrong := {case: text for case, text in said.items() if text}:
        raise Failed("\n".join(f"{case}: {text}" for case, text in wrong.items()))
    return {"back_end": name, "cases": len(said)}


def codecs(lab: Lab) -> Figures:
    """Triton's kernels are used on the device for every codec that has some: they give the bits of its definition."""
    said = json.loads(lab.python("-c", _CODECS, lab.device).splitlines()[-1])
    if unused := [name for name, used in said.items() if not used]:
        raise Failed(f"kernels are not used for {', '.join(unused)}")
    agreed = lab.python("-c", _BITS, lab.device) if lab.device == "cuda" else "0"
    return {"codecs": sorted(said), "cases": int(agreed)}


_CODECS = """
import json, logging, sys, torch
logging.basicConfig()
from distroml.runtime.compress.codecs import BF16, INT4, INT8, SIGN, TopK
from distroml.runtime.compress.codecs.fast import kernels_for
device = torch.device(sys.argv[1], 0)
found = (INT8, INT4, SIGN, BF16, TopK(0.01))
print(json.dumps({codec.name: kernels_for(codec, device) is not None for codec in found}))
"""
_BITS = """
import sys
from libs.runtime.tests.compress.interpreted import CASES, CODECS, agree
for name in CODECS:
    for case in CASES:
        agree(name, *case, device=sys.argv[1])
    agree(name, 1500, "normal", 2.0, True, begin=1, device=sys.argv[1])
print(len(CODECS) * (len(CASES) + 1))
"""


def slots(lab: Lab) -> Figures:
    """The agent offers a slot for the GPU."""
    lab.distroml("up", *([] if lab.device == "cuda" else ["--slots", "1"]))
    nodes = lab.until(lambda: lab.asked("nodes") or None, "the agent's slots")
    offered = [slot["id"] for node in nodes for slot in node["slots"]]
    wanted = "cuda-0" if lab.device == "cuda" else "cpu-0"
    if wanted not in offered:
        raise Failed(f"the agent offers {offered} and not {wanted}")
    return {"slots": offered}


def training(lab: Lab) -> Figures:
    """A training under Trainer succeeds on the device, with the losses that a processor finds."""
    job = lab.submit("trained")
    shown = lab.ended(job)
    succeeded(lab, job, shown)
    lab.python(str(ROOT / "tools/gpu_check/job/train.py"), str(lab.folder / "on_cpu"), "cpu")
    ours, theirs = lab.told("trained"), lab.told("on_cpu")
    if not {line["device"].partition(":")[0] for line in ours} == {lab.device}:
        raise Failed(f"it did not train on {lab.device}: {ours[:1]}")
    if [line["step"] for line in ours] != [line["step"] for line in theirs]:
        raise Failed(f"{len(ours)} steps were told, {len(theirs)} on the processor")
    off = max(abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in zip(ours, theirs, strict=True))
    if not off < LOSS_TOLERANCE:
        raise Failed(f"losses are {off:.2e} of their size off the processor's")
    return {"steps": len(ours), "loss": ours[-1]["loss"], "largest_difference": off}


def recovery(lab: Lab) -> Figures:
    """A killed worker goes on from a checkpoint in a warm process, and ends with the bits of one that was not."""
    drawn = ("--steps", str(STEPS), "--dropout", "0.1")
    whole = lab.submit("whole", *drawn)
    succeeded(lab, whole, lab.ended(whole))
    # Slow enough that saves are committed before the end, and that its use of the device is seen.
    job = lab.submit("killed", *drawn, "--kill-at", str(KILL_AT), "--pause-s", "0.15")
    succeeded(lab, job, lab.ended(job))
    resumed = next((line["step"] for line in lab.told("killed") if line["generation"] > 1), 0)
    if not 1 < resumed <= KILL_AT:
        raise Failed(f"killed after step {KILL_AT}, the second generation began at step {resumed}")
    starts = [event["data"]["start"] for event in lab.events(job, "worker.Started")]
    if starts[1:] != ["warm"]:
        raise Failed(f"workers started {starts}")
    prints = lab.result("whole")["fingerprint"], lab.result("killed")["fingerprint"]
    if prints[0] != prints[1]:
        raise Failed(f"other bits after the recovery: {prints}")
    return {"resumed_at_step": resumed, "fingerprint": prints[0], "job": job, **_use(lab, job)}


def _use(lab: Lab, job: str) -> Figures:
    """Its use of the device, as telemetry keeps it."""
    found: dict[str, float] = json.loads(lab.python("-c", _SERIES, str(lab.folder / "plane"), job))
    wanted = {"cpu_ratio", "rss_bytes"}
    if lab.device == "cuda":
        wanted |= {"gpu_ratio", "gpu_bytes"}
    if not wanted <= found.keys():
        raise Failed(f"telemetry knows {sorted(found)} of {job}, not {sorted(wanted - found.keys())}")
    if found.get("gpu_bytes", math.inf) < 1 << 20:
        raise Failed(f"the GPU is said to hold {found['gpu_bytes']} bytes while a job trains on it")
    return {"most": found}


_SERIES = """
import json, sys
from pathlib import Path
from distroml.api.telemetry.v1 import telemetry_pb2
from distroml.cli import client
names = ["cpu_ratio", "rss_bytes", "gpu_ratio", "gpu_bytes"]
request = telemetry_pb2.QuerySeriesRequest(job=sys.argv[2], names=names, max_points=500)
async def ask(plane):
    return await plane.telemetry.QuerySeries(request)
found = client.call(Path(sys.argv[1]), ask).series
print(json.dumps({one.name: max(point.mean for point in one.points) for one in found if one.points}))
"""


def memory(lab: Lab) -> Figures:
    """A worker that asks for more memory than its device has fails as one that did, with the device's own words."""
    job = lab.submit("filled", "--fill", failures=0)
    shown = lab.ended(job)
    category = str(shown.get("category", "")).removeprefix("FAILURE_CATEGORY_")
    if category != "OUT_OF_MEMORY":
        raise Failed(f"{job} ended as {shown['state']}, {category}: {shown.get('message')}")
    return {"message": shown["message"]}


def speed(lab: Lab) -> Figures:
    """A step of Trainer takes at most so many times what a plain loop takes."""
    quick = ["--quick"] if lab.device == "cpu" else []
    lab.python(
        str(ROOT / "benchmarks/trainer_on_gpu.py"), "--device", lab.device, "--json", str(lab.folder / "s"), *quick
    )
    figures: Figures = json.loads((lab.folder / "s").read_text())
    if lab.device == "cuda" and not figures["ratio"] <= MOST_RATIO:
        raise Failed(f"a step of Trainer takes {figures['ratio']:.3f} times a plain loop's: {figures}")
    return figures


# What takes longest comes last.
CHECKS: tuple[Check, ...] = (
    machine, back_end, several, faults, slots, training, recovery, memory, survivor, plans, compressed, speed, codecs,
)  # fmt: skip
