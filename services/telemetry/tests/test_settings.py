from __future__ import annotations

import json
from pathlib import Path

import pytest

from distroml.rpc import SettingsError
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


def test_a_limit_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="DISTROML_TELEMETRY_SPANS"):
        TelemetrySettings.read(environ(tmp_path, DISTROML_TELEMETRY_SPANS="many"), "telemetry")
