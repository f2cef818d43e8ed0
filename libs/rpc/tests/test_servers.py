"""Which servers an environment names, and what is said of one that names them wrongly."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from distroml.rpc import ServiceSettings, SettingsError, serverstores
from distroml.rpc.servers import Servers

ETCD = {"DISTROML_ETCD_ENDPOINTS": "http://one:2379, http://two:2379"}
NATS = {"DISTROML_NATS_SERVERS": "nats://one:4222", "DISTROML_NATS_USER": "ann", "DISTROML_NATS_PASSWORD": "secret"}


def problems_of(environ: dict[str, str]) -> list[str]:
    problems: list[str] = []
    Servers.read(environ, problems)
    return problems


def test_both_are_read_and_secrets_are_not_shown() -> None:
    problems: list[str] = []
    servers = Servers.read(ETCD | NATS, problems)
    assert servers is not None
    assert not problems
    assert servers.etcd.addresses == ("http://one:2379", "http://two:2379")
    assert (servers.nats.user, servers.nats.password) == ("ann", "secret")
    assert "secret" not in repr(servers)
    assert Servers.read({}, problems) is None


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (ETCD, "DISTROML_ETCD_ENDPOINTS is set, but not DISTROML_NATS_SERVERS"),
        (NATS, "DISTROML_NATS_SERVERS is set, but not DISTROML_ETCD_ENDPOINTS"),
        ({"DISTROML_NATS_USER": "ann"}, "DISTROML_NATS_USER is set, but not DISTROML_NATS_SERVERS"),
        (ETCD | NATS | {"DISTROML_ETCD_USER": "ann"}, "DISTROML_ETCD_USER is set, but not DISTROML_ETCD_PASSWORD"),
        (ETCD | NATS | {"DISTROML_ETCD_ENDPOINTS": "one:2379"}, "expected http://HOST:PORT or https://HOST:PORT"),
        (ETCD | NATS | {"DISTROML_NATS_SERVERS": "http://one:4222"}, "expected nats://HOST:PORT or tls://HOST:PORT"),
        (ETCD | NATS | {"DISTROML_NATS_SERVERS": "nats://one:port"}, "is no address"),
        (ETCD | NATS | {"DISTROML_ETCD_ENDPOINTS": "http://a:1,https://b:1"}, "with and without TLS"),
        (ETCD | NATS | {"DISTROML_ETCD_CA": "/nowhere/ca.pem"}, "/nowhere/ca.pem cannot be read"),
        (ETCD | NATS | {"DISTROML_NATS_SERVERS": "nats://ann:secret@one:4222"}, "DISTROML_NATS_PASSWORD"),
    ],
)
def test_what_is_half_set_or_malformed_is_refused(environ: dict[str, str], said: str) -> None:
    problems = problems_of(environ)
    assert any(said in problem for problem in problems), problems
    assert not any("secret" in problem for problem in problems)


def test_all_problems_are_named_at_once() -> None:
    assert (
        len(problems_of({"DISTROML_ETCD_ENDPOINTS": "one", "DISTROML_ETCD_USER": "ann", "DISTROML_NATS_CA": "/x"})) == 4
    )


def test_services_on_several_machines_need_objects_in_s3(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("token")
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "format.json").write_text(json.dumps({"format": 1, "deployment": "dep-1"}))
    environ = {"DISTROML_DATA": str(tmp_path), **ETCD, **NATS}
    assert ServiceSettings.read(environ, "scheduler").servers is not None
    for elsewhere in ({"DISTROML_TELEMETRY": "gpu-node:7070"}, {"DISTROML_EXPOSE": "1"}):
        with pytest.raises(SettingsError, match="DISTROML_OBJECTS=s3://BUCKET"):
            ServiceSettings.read(environ | elsewhere, "scheduler")
        ServiceSettings.read(environ | elsewhere | {"DISTROML_OBJECTS": "s3://bucket"}, "scheduler")


def test_a_folder_whose_log_is_on_servers_is_not_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("token")
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "format.json").write_text(json.dumps({"format": 1, "deployment": "dep-1", "profile": "stack"}))
    environ = {"DISTROML_DATA": str(tmp_path)}
    with pytest.raises(SettingsError, match="was made for real servers"):
        ServiceSettings.read(environ, "scheduler")
    assert ServiceSettings.read(environ | ETCD | NATS, "scheduler").deployment == "dep-1"


async def test_a_client_that_loses_its_answer_does_not_hold_up_the_survey(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(*_: object) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(serverstores, "_SURVEY_S", 0.01)
    monkeypatch.setattr(serverstores, "_ask_etcd", lost)
    monkeypatch.setattr(serverstores, "_ask_nats", lost)
    servers = Servers.read(ETCD | NATS, [])
    assert servers is not None
    async with asyncio.timeout(30):
        found = await serverstores.survey(servers, "d")
    assert "etcd at http://one:2379" in (found[serverstores.ETCD] or "")
    assert "nothing came of it" in (found[serverstores.NATS] or "")
