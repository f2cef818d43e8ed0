from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from distroml.rpc import ServiceSettings, SettingsError


@dataclass(frozen=True, kw_only=True)
class Mine(ServiceSettings):
    cycle_s: float = 0.5
    depth: int = 4
    eager: bool = False


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("secret-token\n")
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "format.json").write_text(json.dumps({"format": 1, "deployment": "dep-1"}))
    return tmp_path


def test_everything_comes_from_environment_and_data_folder(data: Path) -> None:
    settings = Mine.read(
        {
            "DISTROML_DATA": str(data),
            "DISTROML_LISTEN": "127.0.0.1:7070",
            "DISTROML_RENDEZVOUS": "127.0.0.1:7071",
            "DISTROML_SCHEDULER_CYCLE_S": "0.25",
            "DISTROML_SCHEDULER_EAGER": "1",
            "DISTROML_DRAIN_S": "3",
        },
        "scheduler",
    )
    assert (settings.service, settings.token, settings.deployment) == ("scheduler", "secret-token", "dep-1")
    assert (settings.listen, settings.peer("rendezvous")) == ("127.0.0.1:7070", "127.0.0.1:7071")
    assert (settings.cycle_s, settings.depth, settings.eager, settings.drain_s) == (0.25, 4, True, 3.0)


def test_objects_are_in_the_data_folder_unless_somebody_says_where(data: Path) -> None:
    environ = {"DISTROML_DATA": str(data)}
    assert Mine.read(environ, "scheduler").objects_location == (data / "objects").as_uri()
    assert Mine.read(environ | {"DISTROML_OBJECTS": "s3://b/p"}, "scheduler").objects_location == "s3://b/p"


@pytest.mark.parametrize("location", ["gs://bucket", "s3://me:secret@bucket"])
def test_a_malformed_location_of_objects_is_named(data: Path, location: str) -> None:
    with pytest.raises(SettingsError, match=r"DISTROML_OBJECTS: .*s3://") as refused:
        Mine.read({"DISTROML_DATA": str(data), "DISTROML_OBJECTS": location}, "scheduler")
    assert "secret" not in str(refused.value)


def test_a_token_shows_in_no_repr(data: Path) -> None:
    assert "secret" not in repr(ServiceSettings.read({"DISTROML_DATA": str(data)}, "scheduler"))


def test_everything_that_is_wrong_is_named_at_once(data: Path) -> None:
    (data / "token").chmod(0o644)
    (data / "format.json").write_text('{"format": 7, "deployment": "dep-1"}')
    with pytest.raises(SettingsError) as refused:
        Mine.read({"DISTROML_DATA": str(data), "DISTROML_SCHEDULER_DEPTH": "deep"}, "scheduler")
    token, format_, depth = refused.value.problems
    assert "chmod 600" in token
    assert "format 7" in format_
    assert "DISTROML_SCHEDULER_DEPTH='deep': expected a whole number" in depth


@pytest.mark.parametrize(
    ("name", "content"), [("token", None), ("token", b"\xff\xfe"), ("format.json", None), ("format.json", b"[]")]
)
def test_a_damaged_data_folder_is_a_clear_error(data: Path, name: str, content: bytes | None) -> None:
    (data / name).unlink()
    if content is not None:
        (data / name).write_bytes(content)
        (data / name).chmod(0o600)
    with pytest.raises(SettingsError):
        ServiceSettings.read({"DISTROML_DATA": str(data)}, "scheduler")


@pytest.mark.parametrize("address", ["0.0.0.0:1", "192.168.1.4:80", "[::]:1", "gpu-node:1"])
def test_only_loopback_is_bound_unless_told_otherwise(data: Path, address: str) -> None:
    environ = {"DISTROML_DATA": str(data), "DISTROML_LISTEN": address}
    with pytest.raises(SettingsError, match="DISTROML_EXPOSE"):
        ServiceSettings.read(environ, "scheduler")
    assert ServiceSettings.read({**environ, "DISTROML_EXPOSE": "1"}, "scheduler").listen == address


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.9:1", "[::1]:1"])
def test_loopback_has_several_names(data: Path, address: str) -> None:
    ServiceSettings.read({"DISTROML_DATA": str(data), "DISTROML_METRICS_LISTEN": address}, "scheduler")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:", ":80", "127.0.0.1:99999", "127.0.0.1:http"])
def test_a_malformed_address_says_what_is_expected(data: Path, address: str) -> None:
    with pytest.raises(SettingsError, match="HOST:PORT"):
        ServiceSettings.read({"DISTROML_DATA": str(data), "DISTROML_LISTEN": address}, "scheduler")


def test_a_missing_peer_names_its_variable(data: Path) -> None:
    with pytest.raises(SettingsError, match="DISTROML_TELEMETRY"):
        ServiceSettings.read({"DISTROML_DATA": str(data)}, "scheduler").peer("telemetry")
