"""Hierarchical all-reduce against flat rings: 2 hosts of 2 processes each, joined by a slow link.

Three ways to sum the same tensor over four ranks, in turn: reduce-scatter in the host, all-reduce of shares between
hosts, all-gather in the host; Gloo's ring in an order that leaves each host once (node-major); Gloo's ring in an order
that goes to and fro (interleaved). Bytes are the interface's own, headers included. First the link is checked: one
message of 128 KB must take its nominal time.

To reach at 100 Mbit/s with 4 and 16 MB: 1.2 times as fast as the node-major ring (its bytes allow 1.5) and 2.5 times
as fast as the interleaved one (3), with at most 1.1 times the tensor's size over the link each way. Needs root and
iproute2.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from links.checking import check
from links.namespaces import Host, hosts
from links.workers import TaskFailed, Workers, workers

RANK = Path(__file__).parent / "links" / "sums.py"
WAYS = ("hierarchical", "node-major", "interleaved")
_MIB = 1 << 20


def one(made: Workers, apart: list[Host], way: str, megabytes: float, timeout_s: float) -> tuple[float, float]:
    """Seconds of one sum on the slowest rank, and the link's bytes in the busier direction over the tensor's size."""
    before = [host.sent_bytes() for host in apart]
    answers = made.ask({"do": "sum", "way": way, "megabytes": megabytes}, timeout_s)
    sent = [host.sent_bytes() - earlier for host, earlier in zip(apart, before, strict=True)]
    if not all(answer["right"] for answer in answers):
        raise TaskFailed(f"the {way} sum of {megabytes:g} MB is wrong")
    return max(answer["seconds"] for answer in answers), max(sent) / (megabytes * _MIB)


def compare(made: Workers, apart: list[Host], megabytes: float, mbit: float, rounds: int) -> dict[str, Any]:
    """All ways in turn, `rounds` times; ratios are of neighbours in one round."""
    timeout_s = 60 + 20 * megabytes * _MIB * 8 / mbit / 1e6
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    sent: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        # Whoever comes first changes, so that nothing before favours one.
        for way in (*WAYS[number % 3 :], *WAYS[: number % 3]):
            took_s, share = one(made, apart, way, megabytes, timeout_s)
            seconds[way].append(took_s)
            sent[way].append(share)
    own = seconds["hierarchical"]
    found: dict[str, Any] = {"mbit": mbit, "megabytes": megabytes, "ways": {}}
    for way in WAYS:
        ratios = [other / mine for other, mine in zip(seconds[way], own, strict=True)]
        found["ways"][way] = {
            "seconds": statistics.median(seconds[way]),
            "seconds_all": seconds[way],
            "times_hierarchical": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
            "sent": statistics.median(sent[way]),
        }
    return found


def show(found: dict[str, Any]) -> None:
    """One size as lines."""
    print(f"{found['megabytes']:g} MB at {found['mbit']:g} Mbit/s")
    for way, one in found["ways"].items():
        spread = f"{min(one['seconds_all']):.3f} to {max(one['seconds_all']):.3f}"
        ratio = f"{one['times_hierarchical']:.2f} ({one['least']:.2f} to {one['most']:.2f})"
        print(f"  {way:<13} {one['seconds']:7.3f} s ({spread})   x {ratio:<22} link bytes {one['sent']:.2f} x size")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbit", type=float, nargs="+", default=[100], help="rates between the hosts")
    parser.add_argument("--megabytes", type=float, nargs="+", default=[4, 16], help="sizes of the tensor")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--quick", action="store_true", help="4 MB, three rounds")
    args = parser.parse_args()
    if args.quick:
        args.megabytes, args.rounds = [4], 3
    # So that an ended run takes its hosts along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    results: list[dict[str, Any]] = []
    with hosts(2) as apart, workers(RANK, 4, apart) as made:
        for mbit in args.mbit:
            print(check(apart, mbit), flush=True)
            for megabytes in args.megabytes:
                results.append(compare(made, apart, megabytes, mbit, args.rounds))
                show(results[-1])
                sys.stdout.flush()
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
