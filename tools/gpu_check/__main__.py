"""Try on one GPU what no machine without one can try; at most eight minutes, and no network.

    python -m tools.gpu_check [--out FILE] [--seconds 460] [--on-cpu] [CHECK…]

Works in a bare checkout: packages need not be installed but those that they need, torch for CUDA among them (the extras
`torch`, `services`, `dashboard` and `cli`). Ends with 0 where every check passed, with 1 where one did not, and with 2
where nothing can be checked, which is said at once. `--on-cpu` rehearses all of it on the processor.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.gpu_check.checks import CHECKS, Check
from tools.gpu_check.lab import Failed, Lab, Refused, missing

# A fault in one says nothing about the others, but for these.
_LEAVES_NOTHING = ("machine", "slots")
_SUBMIT = {"training", "recovery", "memory", "survivor"}


def look_for_gpu(device: str, torch: Any) -> None:
    """Raise `Refused` where `device` is no place to train on."""
    if device == "cpu" or torch.cuda.is_available():
        return
    built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
    why = f"{built} and finds none: `nvidia-smi` says what the driver sees"
    if not torch.version.cuda:
        why = f"torch {torch.__version__} is built without CUDA: install torch for CUDA"
    raise Refused(f"there is no GPU to check: {why}; `--on-cpu` rehearses the checks on the processor")


def refuse_without_packages(device: str) -> None:
    """Raise `Refused` where this interpreter lacks what the checks need; all of it is named."""
    lacking = [name for name in missing() if device == "cuda" or name != "nvidia-ml-py"]
    if lacking:
        raise Refused(f"{sys.executable} lacks {', '.join(lacking)}: install them and try again")


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {check.__name__: check for check in CHECKS}
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"{', '.join(known)} [default: all]")
    parser.add_argument("--out", type=Path, help="write what was found, as JSON")
    parser.add_argument("--seconds", type=float, default=460.0, help="for all of it [default: 460]")
    parser.add_argument("--on-cpu", action="store_true", help="rehearse on the processor")
    options = parser.parse_args(arguments)
    if unknown := set(options.checks) - set(known):
        parser.error(f"no check {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    device = "cpu" if options.on_cpu else "cuda"
    try:
        refuse_without_packages(device)
        look_for_gpu(device, importlib.import_module("torch"))
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as folder:
        lab = Lab(device, Path(folder), options.seconds)
        try:
            found = run(lab, with_what_they_need(options.checks or list(known)), options.out)
        finally:
            lab.seconds += 60.0
            lab.distroml("down", code=None)
    return 0 if all(one["ok"] for one in found) else 1


def with_what_they_need(names: Sequence[str]) -> list[Check]:
    """The checks of these names in their order, with the control plane's start before those that submit jobs."""
    wanted = {*names, *(["slots"] if _SUBMIT & set(names) else [])}
    return [check for check in CHECKS if check.__name__ in wanted]


def run(lab: Lab, checks: Sequence[Check], out: Path | None) -> list[dict[str, Any]]:
    """Make `checks`; what each found, in their order, also in the file `out` as far as they came."""
    found: list[dict[str, Any]] = []
    for check in checks:
        name, began = check.__name__, time.monotonic()
        try:
            one: dict[str, Any] = {"check": name, "ok": True, **check(lab)}
        except Failed as failed:
            one = {"check": name, "ok": False, "why": str(failed)}
        except Exception:  # the others' findings are worth having, whatever this one met
            one = {"check": name, "ok": False, "why": traceback.format_exc()}
        one["seconds"] = round(time.monotonic() - began, 1)
        found.append(one)
        if out is not None:
            out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{'ok  ' if one['ok'] else 'FAIL'} {name}: {one.get('why') or json.dumps(one)}", flush=True)
        if not one["ok"] and name in _LEAVES_NOTHING:
            break
    return found


if __name__ == "__main__":
    sys.exit(main())
