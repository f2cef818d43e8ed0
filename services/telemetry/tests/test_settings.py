from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from distroml.rpc import SettingsError
from distroml.telemetry.domain.usage import Price
from distroml.telemetry.settings import TelemetrySettings


def environ(tmp_path: Path, **more: str) -> dict[str, str]:
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "format.json").write_text(json.dumps({"format": 1, "deployment": "dep-1"}))
    return {"DISTROML_DATA": str(tmp_path), **more}


def test_the_dashboard_listens_where_it_is_told(tmp_path: Path) -> None:
    more = {"DISTROML_DASHBOARD_LISTEN": "127.0.0.1:7077", "DISTROML_TELEMETRY_LOG_LINES": "10"}
    settings = TelemetrySettings.read(environ(tmp_path, **more), "telemetry")
    assert settings.dashboard_listen == "127.0.0.1:7077"
    assert settings.limits.log_lines == 10


@pytest.mark.parametrize("address", ["0.0.0.0:80", "example.org:80", "nonsense", "127.0.0.1:x"])
def test_an_address_that_others_reach_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(SettingsError, match="DISTROML_DASHBOARD_LISTEN"):
        TelemetrySettings.read(environ(tmp_path, DISTROML_DASHBOARD_LISTEN=address), "telemetry")


def test_inside_a_container_the_dashboard_may_listen_on_its_address(tmp_path: Path) -> None:
    more = {"DISTROML_DASHBOARD_LISTEN": "0.0.0.0:7080", "DISTROML_EXPOSE": "1"}
    assert TelemetrySettings.read(environ(tmp_path, **more), "telemetry").dashboard_listen == "0.0.0.0:7080"


def test_where_traces_are_looked_at_is_a_page(tmp_path: Path) -> None:
    settings = TelemetrySettings.read(environ(tmp_path, DISTROML_JAEGER_UI="http://127.0.0.1:16686"), "telemetry")
    assert settings.jaeger_ui == "http://127.0.0.1:16686"
    with pytest.raises(SettingsError, match="DISTROML_JAEGER_UI"):
        TelemetrySettings.read(environ(tmp_path, DISTROML_JAEGER_UI="javascript:alert(1)"), "telemetry")


def test_where_grafana_is_looked_at_is_a_page(tmp_path: Path) -> None:
    settings = TelemetrySettings.read(environ(tmp_path, DISTROML_GRAFANA_URL="https://grafana.example"), "telemetry")
    assert settings.grafana_url == "https://grafana.example"
    with pytest.raises(SettingsError, match="DISTROML_GRAFANA_URL"):
        TelemetrySettings.read(environ(tmp_path, DISTROML_GRAFANA_URL="javascript:alert(1)"), "telemetry")


def test_a_limit_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="DISTROML_TELEMETRY_SPANS"):
        TelemetrySettings.read(environ(tmp_path, DISTROML_TELEMETRY_SPANS="many"), "telemetry")


def test_history_and_the_price_of_a_slot_are_told_and_the_password_is_not_shown(tmp_path: Path) -> None:
    address = "postgresql://ann:hidden@db:5432/jobs"
    more = {"DISTROML_POSTGRES": address, "DISTROML_SLOT_HOUR_PRICE": "2.40 EUR"}
    settings = TelemetrySettings.read(environ(tmp_path, **more), "telemetry")
    assert (settings.postgres, settings.price) == (address, Price(Decimal("2.40"), "EUR"))
    assert "hidden" not in repr(settings)
    assert Price(Decimal("2.40"), "EUR").of(1_500) == "0.00"
    assert Price(Decimal("0.03"), "EUR").of(600_000) == "0.01"
    with pytest.raises(SettingsError, match="DISTROML_POSTGRES is no address") as refused:
        TelemetrySettings.read(environ(tmp_path, DISTROML_POSTGRES="mysql://ann:hidden@db/jobs"), "telemetry")
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("price", ["2.40", "2,40 EUR", "-1 EUR", "1e3 EUR", "2.40 euro", "EUR 2.40", "2.40 EURO"])
def test_a_price_that_is_none_is_refused(tmp_path: Path, price: str) -> None:
    with pytest.raises(SettingsError, match="DISTROML_SLOT_HOUR_PRICE"):
        TelemetrySettings.read(environ(tmp_path, DISTROML_SLOT_HOUR_PRICE=price), "telemetry")
