"""Predictions against published tables, with one set of constants per architecture."""

import statistics

import pytest

from benchmarks._published import errors, rows, single_rate
from distroml.planner import Pricer, transformer_profile

TABLES = {}
for _row in rows():
    TABLES.setdefault(_row.table, []).append(_row)


@pytest.mark.parametrize(
    ("table", "median", "worst"),
    [
        ("megatron", 0.05, 0.10),
        ("korthikanti", 0.08, 0.08),
        ("mpt-H100", 0.05, 0.20),
        ("mpt-A100-80GB", 0.06, 0.25),
        ("mpt-A100-40GB", 0.06, 0.25),
    ],
)
def test_errors_are_small_and_smaller_than_those_of_the_best_single_rate(table, median, worst):
    found = [abs(error) for error in errors(TABLES[table])]
    assert statistics.median(found) <= median
    assert max(found) <= worst
    least_median, least_worst = single_rate(TABLES[table])
    assert statistics.median(found) < least_median
    assert max(found) < least_worst


def test_megatrons_and_korthikantis_plans_fit_their_gpus():
    for row in (*TABLES["megatron"], *TABLES["korthikanti"]):
        profile = transformer_profile(row.transformer, row.training.precision)
        found = Pricer(profile, row.topology(), row.training, row.global_batch).predict(row.plan)
        assert found.peak_bytes_per_rank < found.capacity_bytes, row.name
