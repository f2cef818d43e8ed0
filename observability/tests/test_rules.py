"""Rules as Prometheus' own tool runs them: each alert fires and stays silent, each recorded series has its value."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.stack.install import cache_folder, libraries
from deploy.stack.prometheus import OURS, Prometheus
from observability.tests.cases import ALSO_FIRES, ALSO_SILENT, CASES, RECORDED, S, Series

REPOSITORY = Path(__file__).parents[2]


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """Rules by name; `kind` is `alert` or `record`."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted((OURS / "rules").glob("*.yml")):
        for group in yaml.safe_load(file.read_text("utf-8"))["groups"]:
            found |= {rule[kind]: rule for rule in group["rules"] if kind in rule}
    return found


@pytest.fixture(scope="session")
def promtool() -> Callable[..., str]:
    programs = Prometheus().install(cache_folder())

    def run(*arguments: str | Path) -> str:
        command = [programs / "promtool", *arguments]
        environment = libraries(programs.parent.parent)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def expectation(series: Mapping[str, str], at_min: int, expr: str, samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": expr, "eval_time": f"{at_min}m", "exp_samples": samples}],
    }


def alert(name: str, series: Series, at_min: int, fires: bool) -> dict[str, Any]:
    expr = f'count(ALERTS{{alertname="{name}",alertstate="firing"}})'
    return expectation(series, at_min, expr, [{"labels": "{}", "value": 1}] if fires else [])


def test_prometheus_takes_the_configuration(promtool: Any) -> None:
    assert "SUCCESS" in promtool("check", "config", OURS / "prometheus.yml")
    assert "SUCCESS" in promtool("check", "config", OURS / "compose.yml")


def test_every_alert_fires_and_stays_silent_and_every_recorded_series_is_right(promtool: Any, tmp_path: Path) -> None:
    assert CASES.keys() == rules("alert").keys()
    assert RECORDED.keys() == rules("record").keys()
    tests = [alert(name, case.fires, case.at_min, True) for name, case in (*CASES.items(), *ALSO_FIRES.items())]
    tests += [alert(name, case.silent, case.at_min, False) for name, case in (*CASES.items(), *ALSO_SILENT.items())]
    for name, (series, (labels, value)) in RECORDED.items():
        at_min = 30 if "1d" not in name else 24 * 60
        tests.append(expectation(series, at_min, name, [{"labels": f"{name}{{{labels}}}", "value": value}]))
    file = tmp_path / "tests.yml"
    named = [str(path) for path in sorted((OURS / "rules").glob("*.yml"))]
    file.write_text(yaml.safe_dump({"rule_files": named, "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", file)


def test_an_alert_reads_as_a_sentence(promtool: Any, tmp_path: Path) -> None:
    """One whole alert as its receiver gets it, templates filled in."""
    rule = rules("alert")["ServiceDown"]
    annotations = {
        "summary": "scheduler of dep-1 does not answer",
        "description": rule["annotations"]["description"].replace("{{ $labels.instance }}", "10.0.0.1:9100"),
        "runbook": "docs/alerts.md#servicedown",
    }
    labels = dict(re.findall(r'(\w+)="([^"]*)"', S)) | rule["labels"]
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in CASES["ServiceDown"].fires.items()],
        "alert_rule_test": [
            {
                "eval_time": "30m",
                "alertname": "ServiceDown",
                "exp_alerts": [{"exp_labels": labels, "exp_annotations": annotations}],
            }
        ],
    }
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(OURS / "rules" / "alerts.yml")], "tests": [test]}))
    promtool("test", "rules", file)


@pytest.mark.parametrize("name", sorted(rules("alert")))
def test_an_alert_says_what_is_wrong_and_where_to_read_on(name: str) -> None:
    rule = rules("alert")[name]
    assert rule["labels"]["severity"] in ("warning", "critical")
    said = rule["annotations"]
    assert said["summary"]
    assert said["description"].endswith(".")
    page, _, anchor = said["runbook"].partition("#")
    text = (REPOSITORY / page).read_text("utf-8")
    assert anchor == name.lower()
    chapter = re.search(rf"^## {name}\n\n(.+?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert chapter, f"{page} has no chapter {name}"
    assert "**Do:**" in chapter[1]
