"""Every metric is in the documentation, follows Prometheus' conventions, and has labels whose bound is known."""

from __future__ import annotations

import re

import pytest

from distroml.observability import names
from distroml.observability.metrics import Described
from tools import metrics

UNITS = ("_seconds", "_bytes", "_ratio")


def test_the_documented_table_is_what_the_code_makes():
    text = metrics.PAGE.read_text("utf-8")
    assert metrics.page(text) == text, "run `python tools/metrics.py`"


def test_names_labels_and_helps_keep_the_conventions():
    found = metrics.all_metrics()
    assert len(found) > 50
    for one in found:
        assert re.fullmatch(r"distroml_[a-z0-9_]+", one.name), one.name
        assert one.name.endswith("_total") == (one.kind == "counter"), one.name
        assert one.kind != "histogram" or one.name.endswith(UNITS), one.name
        assert not re.search(r"_(ms|millis|minutes|hours|kb|mb|percent)(_|$)", one.name), one.name
        assert one.help[0].isupper(), one.name
        assert one.help.endswith("."), one.name
        unbounded = set(one.labels) - names.LABEL_BOUNDS.keys()
        assert not unbounded, f"{one.name}: say in names.LABEL_BOUNDS why {unbounded} has few values"
        assert not {"job", "instance", "le", "quantile"} & set(one.labels), f"{one.name}: Prometheus' own label"


def test_a_metric_that_no_heading_is_for_is_named():
    with pytest.raises(ValueError, match="distroml_weather_total: no heading"):
        metrics.heading(Described("distroml_weather_total", "counter", "Rain.", ()))
