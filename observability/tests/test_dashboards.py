"""The dashboards that Grafana is given are what the code makes, and ask only for what somebody exports."""

from __future__ import annotations

import re

import pytest
import yaml

from observability.grafana.panels import CHOICES, DEPLOYMENT
from observability.grafana.render import FOLDER, PAGES, rendered
from observability.tests.queries import panels
from observability.tests.test_rules import rules
from tools.metrics import all_metrics

_WORD = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*:?distroml_[a-zA-Z0-9_:]*|\bdistroml_[a-z0-9_]+")
_SUFFIXES = ("", "_sum", "_count", "_bucket")


def exported() -> set[str]:
    """Every series that a query may name."""
    found: set[str] = set(rules("record"))
    for metric in all_metrics():
        found |= {metric.name + suffix for suffix in (_SUFFIXES if metric.kind == "histogram" else ("",))}
    return found


def test_the_files_are_what_the_code_makes() -> None:
    there = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.json")}
    assert there == rendered(), "run `python -m observability.grafana`"


def test_every_panel_says_what_it_shows() -> None:
    assert [page.uid for page in PAGES] == [f"distroml-{word}" for word in ("cluster", "job", "checkpoint", "services")]
    found = [panel for text in rendered().values() for panel in panels(text)]
    assert len(found) > 50
    for panel in found:
        assert panel.text.endswith("."), panel.title
        assert panel.queries, panel.title


def test_queries_of_panels_choices_and_rules_name_series_that_somebody_exports() -> None:
    asked = [query for text in rendered().values() for panel in panels(text) for query in panel.queries]
    asked += [DEPLOYMENT, *CHOICES.values()]
    asked += [rule["expr"] for kind in ("alert", "record") for rule in rules(kind).values()]
    unknown = {word for query in asked for word in _WORD.findall(query)} - exported() - {"distroml_"}
    assert not unknown


def test_every_query_of_a_panel_keeps_to_the_chosen_deployment() -> None:
    for text in rendered().values():
        for panel in panels(text):
            for query in panel.queries:
                selectors = re.findall(r"\{([^}]*)\}", query)
                assert selectors, f"{panel.title}: {query}"
                assert all('deployment=~"$deployment"' in one for one in selectors), f"{panel.title}: {query}"


@pytest.mark.parametrize("kind", ["datasources", "dashboards"])
def test_provisioning_is_by_file_under_fixed_names(kind: str) -> None:
    file = FOLDER.parent / "provisioning" / kind / "distroml.yml"
    found = yaml.safe_load(file.read_text("utf-8"))
    assert found["apiVersion"] == 1
    if kind == "datasources":
        assert {one["uid"]: one["type"] for one in found["datasources"]} == {
            "prometheus": "prometheus",
            "jaeger": "jaeger",
            "elasticsearch": "elasticsearch",
        }
    else:
        (provider,) = found["providers"]
        assert provider["type"] == "file"
        assert provider["allowUiUpdates"] is False
