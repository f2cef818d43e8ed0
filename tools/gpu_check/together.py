"""Checks of several ranks on the one device, each a host of its own to NCCL."""

from __future__ import annotations

import json
from typing import Any

from tools.gpu_check.lab import JOB, Failed, Lab, succeeded

Figures = dict[str, Any]

STEPS, KILL_AT = 60, 33
WORLDS = (2, 4)
FAULTS = ("absent", "cut", "killed")
PLANS = ("dp", "dp_shard", "HSDP", "tp", "pp", "tp × dp", "pp × dp_shard")
# Sharding and pipelines need what torch has from 2.15 on.
ANY_TORCH = ("dp", "tp", "tp × dp")
SCHEMES = ("none", "bf16", "int8", "int4", "sign", "topk:0.05", "powersgd:4", "powersgd:4+int8", "auto")
# Of two trainings that differ in the last bits of their sums, after thirty steps.
LOSS_TOLERANCE = 0.02


def several(lab: Lab) -> Figures:
    """Two and four ranks of NCCL carry what every back end carries."""
    name = "nccl" if lab.device == "cuda" else "gloo"
    cases: dict[str, int] = {}
    for count in WORLDS:
        out = lab.folder / f"ranks-{count}"
        out.mkdir()
        ended = lab.ranks(count, "-m", "libs.runtime.tests.comm.rank", name, str(out))
        for rank in range(count):
            file = out / f"{rank}.json"
            if not file.exists():
                raise Failed(f"rank {rank} of {count} ended with {ended[rank][0]}:\n{ended[rank][1][-3000:]}")
            if wrong := {case: text for case, text in json.loads(file.read_text()).items() if text}:
                raise Failed(f"rank {rank} of {count}: {wrong}")
            cases[str(count)] = len(json.loads(file.read_text()))
    return {"back_end": name, "cases": cases}


def faults(lab: Lab) -> Figures:
    """A peer that is silent, cut off or dead is an error that the runtime knows, and never a sum nor a hang."""
    found: dict[str, Any] = {}
    # Before it frees whoever waits longer than the limit, torch waits four times so long for its own debugging dumps.
    soon = {"TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "500"}
    for fault in FAULTS if lab.device == "cuda" else ("cut",):
        out = lab.folder / f"fault-{fault}"
        out.mkdir()
        ended = lab.ranks(2, "-m", "libs.runtime.tests.comm.rank", "nccl" if lab.device == "cuda" else "gloo",
                          str(out), fault, environ=soon)  # fmt: skip
        file = out / "0.json"
        said = json.loads(file.read_text()) if file.exists() else {"text": ended[0][1][-1500:], "code": ended[0][0]}
        found[fault] = said
    if wrong := {fault: said for fault, said in found.items() if said.get("communication") != "True"}:
        raise Failed(f"not known as communication: {wrong}; all: {found}")
    return found


def plans(lab: Lab) -> Figures:
    """Under every plan a training on the device is what plain PyTorch computes in one process, in float64."""
    old = lab.python("-c", _DIVIDES).strip() != "True"
    tried = ANY_TORCH if old else PLANS
    said = lab.python("-c", _PLANS, *tried, environ={"NUMERICS_DEVICE": lab.device})
    found: Figures = json.loads(said.splitlines()[-1])
    if wrong := {plan: text for plan, text in found.items() if not text.startswith("equal")}:
        raise Failed(f"{wrong}")
    return {
        **found,
        **{plan: "not tried: this torch is older than it needs" for plan in PLANS if plan not in tried},
    }


_DIVIDES = """
from torch.distributed.fsdp import FSDPModule
print(hasattr(FSDPModule, "set_reduce_scatter_unused_params"))
"""
_PLANS = """
import json, sys
from tests.numerics.pool import Pool, RankFailed
from tests.numerics.table import SETTINGS, try_out
from tests.numerics.zoo import BY_NAME
found, pool = {}, Pool(4)
try:
    for plan in sys.argv[1:]:
        try:
            cell = try_out(pool, BY_NAME["llama"], plan, SETTINGS["AdamW, float64"], steps=4)
            found[plan] = ("equal: " if cell.equal else "not equal: ") + cell.text
        except RankFailed as failed:
            found[plan] = "failed: " + str(failed)[-1500:]
finally:
    pool.close()
print(json.dumps(found))
"""


def compressed(lab: Lab) -> Figures:
    """Two ranks train under every scheme: alike to the bit, with losses as over Gloo on the processor."""
    found: Figures = {}
    for scheme in SCHEMES:
        ends: dict[str, float] = {}
        for device in dict.fromkeys((lab.device, "cpu")):
            name = f"{scheme.replace(':', '-')}-{device}"
            ended = lab.ranks(2, str(JOB / "train.py"), str(lab.folder / name), device, "--compress", scheme)
            if any(code for code, _ in ended):
                raise Failed(f"{scheme} on {device}: {[text[-2500:] for _, text in ended]}")
            told = lab.result(name)
            if told["fingerprint"] not in ended[1][1]:
                raise Failed(f"{scheme} on {device}: rank 0 ends with {told['fingerprint']}, {ended[1][1][-300:]}")
            ends[device] = told["loss"]
        off = abs(ends[lab.device] - ends["cpu"]) / ends["cpu"]
        # Which schemes `auto` takes is for the link to say.
        if scheme != "auto" and not off < LOSS_TOLERANCE:
            raise Failed(f"{scheme}: {ends}")
        found[scheme] = {"loss": round(ends[lab.device], 5), "off": round(off, 6)}
    return found


def survivor(lab: Lab) -> Figures:
    """Of two ranks one is killed: the other stays, goes on with a new one, and ends as an unharmed run, to the bit."""
    drawn = ("--steps", str(STEPS), "--dropout", "0.1")
    with lab.another_node():
        whole = lab.submit("whole2", *drawn, workers=2)
        succeeded(lab, whole, lab.ended(whole))
        job = lab.submit("killed2", *drawn, "--kill-at", str(KILL_AT), "--pause-s", "0.15", workers=2)
        shown = lab.ended(job)
        succeeded(lab, job, shown)
        starts = lab.events(job, "worker.Started")
        broken = [event["data"] for event in lab.events(job, "generation.GenerationBroken")]
    resumed = next((line["step"] for line in lab.told("killed2") if line["generation"] > 1), 0)
    if not 1 < resumed <= KILL_AT:
        raise Failed(f"killed after step {KILL_AT}, the second generation began at step {resumed}")
    if len(starts) != 3:
        raise Failed(f"{len(starts)} workers were started instead of 3: the survivor did not stay; {broken}")
    prints = lab.result("whole2")["fingerprint"], lab.result("killed2")["fingerprint"]
    if prints[0] != prints[1]:
        raise Failed(f"other bits after the recovery: {prints}")
    return {"resumed_at_step": resumed, "fingerprint": prints[0], "generations": len(broken) + 1}
