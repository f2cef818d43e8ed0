"""The planner's step times against published tables; median error of Megatron's at most 5%, worst 10%.

Beside it the best model of one TFLOP/s figure per table, which may look at the answers. Then how the errors change
when each table in turn is left out and the constants of its GPU type are fitted to the others.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

from _published import Row, errors, rows, single_rate

from distroml.planner import gpu

MEDIAN, WORST, KORTHIKANTI_WORST = 0.05, 0.10, 0.08


def told(values: Sequence[float]) -> str:
    sizes = [abs(value) for value in values]
    return f"median {statistics.median(sizes):5.1%}  worst {max(sizes):5.1%}  bias {statistics.median(values):+5.1%}"


def left_out(tables: Mapping[str, Sequence[Row]], name: str, quick: bool) -> list[float]:
    """Errors on one table with constants fitted to the other tables of the same architecture."""
    kind = tables[name][0].gpu
    others = [table for other, table in tables.items() if other != name and table[0].gpu[0] == kind[0]]
    if not others:
        return []
    best = (float("inf"), gpu(kind))
    step = 3 if quick else 1
    for matmul, memory, attention in itertools.product(
        (0.8, 0.83, 0.86, 0.89, 0.92)[::step], (0.63, 0.66, 0.69, 0.72, 0.75)[::step], (0.5, 0.55, 0.6)[::step]
    ):
        constants = {
            "matmul_efficiency": matmul,
            "memory_efficiency": memory,
            "attention_efficiency": attention,
        }
        score = statistics.mean(
            statistics.median(map(abs, errors(table, replace(gpu(table[0].gpu), **constants)))) for table in others
        )
        best = min(best, (score, replace(gpu(kind), **constants)), key=lambda pair: pair[0])
    return errors(tables[name], best[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    tables: dict[str, list[Row]] = {}
    for row in rows():
        tables.setdefault(row.table, []).append(row)
    failed = False
    for name, table in tables.items():
        found = errors(table)
        median, worst = single_rate(table)
        print(f"{name:<16} {len(table):2} rows  planner: {told(found)}")
        print(f"{'':<16}          one rate: median {median:5.1%}  worst {worst:5.1%}")
        for row, error in zip(table, found, strict=True):
            print(f"    {row.name:<22} {row.seconds:8.2f} s  {error:+6.1%}")
        size = [abs(error) for error in found]
        if name == "megatron":
            failed |= statistics.median(size) > MEDIAN or max(size) > WORST
        if name == "korthikanti":
            failed |= max(size) > KORTHIKANTI_WORST
    print("left out, with constants fitted to the other tables of its architecture:")
    for name in tables:
        if found := left_out(tables, name, options.quick):
            print(f"    {name:<16} {told(found)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
