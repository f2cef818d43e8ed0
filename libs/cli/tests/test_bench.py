"""`distroml bench comm`, as a user calls it, and what its figures mean."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from distroml.cli import bench_output
from distroml.cli.errors import CliError, UsageError
from distroml.cli.main import app
from distroml.runtime.comm.report import CommReport, LinkRate, SchemeCost, SumTime

SVG = "{http://www.w3.org/2000/svg}"
MB = 1_000_000


def report() -> CommReport:
    return CommReport(
        world_size=2,
        hosts=("a", "b"),
        backend="gloo",
        buffer_bytes=4 << 20,
        links=(LinkRate("cluster", "all_reduce", 2, 4096, 0.001),),
        sums=(SumTime("flat", 4096, 0.001, {"cluster": 4096}, True),),
        schemes=(
            SchemeCost("none", 4 * MB, 0.0, 0.4, 1),
            SchemeCost("int8", 1 * MB, 0.01, 0.11, 2),
            SchemeCost("sign", MB // 10, 0.03, 0.04, 1),
            SchemeCost("slow", 5 * MB, 0.2, 0.7, 1),
            SchemeCost("free", 3 * MB, 0.0, 0.3, 1),
        ),
    )


def cost(name: str) -> SchemeCost:
    return next(one for one in report().schemes if one.scheme == name)


def test_a_scheme_pays_below_the_bandwidth_at_which_it_takes_as_long_as_the_plain_sum() -> None:
    shown = report()
    even = shown.break_even(cost("int8"))
    assert even == pytest.approx(300 * MB)
    assert cost("int8").seconds(even) == pytest.approx(shown.dense.seconds(even))
    assert cost("int8").seconds(even / 2) < shown.dense.seconds(even / 2)
    assert shown.break_even(cost("slow")) == 0
    assert math.isinf(shown.break_even(cost("free")))
    assert shown.link_bytes_per_s() == pytest.approx(10 * MB)


def test_each_bandwidth_has_its_fastest_scheme() -> None:
    ranges = report().ranges([MB * 2.0**power for power in range(12)])
    assert list(ranges) == ["sign", "int8", "free"]
    assert ranges["sign"] == (MB, 32 * MB), "0.9 MB fewer bytes are worth 20 ms of work up to 45 MB/s"
    assert ranges["int8"] == (64 * MB, 128 * MB)
    assert ranges["free"] == (256 * MB, 2048 * MB)


def test_json_knows_no_infinity() -> None:
    told = json.loads(json.dumps(bench_output.as_dict(report()), allow_nan=False))
    rows = {row["scheme"]: row for row in told["schemes"]}
    assert rows["free"]["break_even_mbit_per_s"] is None
    assert rows["slow"]["break_even_mbit_per_s"] == 0
    assert rows["int8"]["break_even_mbit_per_s"] == pytest.approx(2400)
    assert rows["int8"]["ratio"] == 4
    assert rows["int8"]["work_s_per_mib"] == pytest.approx(0.0025)
    assert told["link_mbit_per_s"] == pytest.approx(80)


def test_the_picture_has_a_row_for_each_scheme_and_says_where_it_pays() -> None:
    root = ElementTree.fromstring(bench_output.draw(report()))
    words = {text.text for text in root.iter(f"{SVG}text")}
    assert {"none", "int8", "sign", "slow", "free", "here 80 Mbit/s"} <= words
    titles = {title.text for title in root.iter(f"{SVG}title")}
    assert "int8 beats the plain sum: 2.4 Gbit/s" in titles
    assert not any(title and title.startswith(("slow", "none beats")) for title in titles)
    bars = [rect for rect in root.iter(f"{SVG}rect") if rect.get("class") == "forward"]
    assert len(bars) == 3 + 1, "three are the fastest somewhere; the last is the legend's"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--schemes", "int9"], "there is no such scheme"),
        (["--schemes", "topk:0"], "above 0 and up to 1"),
        (["--workers", "1"], "one process has no link"),
        (["--megabytes", "0"], "give 0.1 to 1024"),
        (["--timeout", "0"], "give seconds above 0"),
    ],
)
def test_wrong_wishes_are_refused_before_anything_starts(words: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["bench", "comm", *words])
    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)


def test_what_takes_too_long_is_ended_and_says_so() -> None:
    result = CliRunner().invoke(app, ["bench", "comm", "--timeout", "0.3"])
    assert isinstance(result.exception, CliError)
    assert "not done within 0.3 s" in str(result.exception)


@pytest.mark.e2e
@pytest.mark.timeout(240)
def test_two_processes_are_measured(tmp_path: Path) -> None:
    picture = tmp_path / "comm.svg"
    words = ["bench", "comm", "--schemes", "int8,powersgd:2", "--megabytes", "1", "--picture", str(picture), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "distroml.cli.main", *words],
        capture_output=True, text=True, timeout=220, check=False,
        env={name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["world_size"] == 2
    assert told["links"]
    assert all(one["seconds"] > 0 and one["picked"] for one in told["sums"])
    names = [row["scheme"] for row in told["schemes"]]
    assert names == ["none", "int8", "powersgd:2"]
    dense, int8, _ = told["schemes"]
    assert int8["ratio"] > 3.9
    assert dense["break_even_mbit_per_s"] in (0, None)
    assert all(0 <= row["work_s"] <= row["exchange_s"] * 1.5 for row in told["schemes"])
    assert ElementTree.parse(picture).getroot().tag == f"{SVG}svg"
