"""A control plane that the environment names, without a data folder of its own."""

import json

import pytest
from typer.testing import CliRunner

from distroml.cli.client import call
from distroml.cli.errors import UsageError
from distroml.cli.main import app
from distroml.cli.objects import deployment_of, location_of
from distroml.cli.plane.datafolder import DataFolder, Profile
from distroml.cli.plane.elsewhere import named
from distroml.cli.spec import from_command

SERVICES = {
    "DISTROML_SCHEDULER": "127.0.0.1:1",
    "DISTROML_RENDEZVOUS": "127.0.0.1:2",
    "DISTROML_CHECKPOINT": "127.0.0.1:3",
    "DISTROML_TELEMETRY": "127.0.0.1:4",
}


@pytest.fixture
def token_file(tmp_path):
    file = tmp_path / "token"
    file.write_text("secret\n")
    return file


def test_what_the_environment_names_is_taken(token_file):
    found = named(SERVICES | {"DISTROML_TOKEN_FILE": str(token_file), "DISTROML_DASHBOARD": "http://127.0.0.1:5"})
    assert found is not None
    assert found.endpoints.services["checkpoint"] == "127.0.0.1:3"
    assert (found.token, found.endpoints.dashboard) == ("secret", "http://127.0.0.1:5")
    assert "secret" not in repr(found)


def test_a_dashboard_that_nobody_named_has_no_address_and_shows_no_token(tmp_path, token_file, monkeypatch):
    async def page(plane):
        return plane.login_url

    monkeypatch.delenv("DISTROML_DASHBOARD", raising=False)
    for name, value in (SERVICES | {"DISTROML_TOKEN_FILE": str(token_file)}).items():
        monkeypatch.setenv(name, value)
    assert call(tmp_path, page) == ""
    monkeypatch.setenv("DISTROML_DASHBOARD", "http://127.0.0.1:5")
    assert call(tmp_path, page) == "http://127.0.0.1:5/login?token=secret"


def test_an_environment_without_services_leaves_it_to_the_data_folder(token_file):
    assert named({"DISTROML_TOKEN_FILE": str(token_file), "DISTROML_ETCD_ENDPOINTS": "http://etcd:2379"}) is None


def test_a_part_alone_is_refused_with_what_is_missing(tmp_path):
    with pytest.raises(UsageError, match="DISTROML_TELEMETRY, DISTROML_TOKEN_FILE is not set"):
        named({name: value for name, value in SERVICES.items() if name != "DISTROML_TELEMETRY"})
    with pytest.raises(UsageError, match="cannot be read"):
        named(SERVICES | {"DISTROML_TOKEN_FILE": str(tmp_path / "nothing")})


def test_objects_are_where_the_environment_has_them_whatever_folder_is_here(tmp_path, token_file, monkeypatch):
    folder = DataFolder(tmp_path / "data")
    folder.prepare(Profile.STACK)
    monkeypatch.delenv("DISTROML_DEPLOYMENT", raising=False)
    servers = {"DISTROML_ETCD_ENDPOINTS": "http://one:2379", "DISTROML_NATS_SERVERS": "nats://one:4222"}
    for name, value in (servers | {"DISTROML_OBJECTS": "s3://shared"}).items():
        monkeypatch.setenv(name, value)
    assert location_of(folder.path) == f"s3://shared/{folder.deployment()}"
    assert deployment_of(folder.path) == folder.deployment()
    # A control plane elsewhere: its services were told this very place.
    for name, value in (SERVICES | {"DISTROML_TOKEN_FILE": str(token_file)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DISTROML_OBJECTS", "s3://theirs/dep-2")
    assert location_of(folder.path) == "s3://theirs/dep-2"
    assert deployment_of(folder.path) is None
    monkeypatch.setenv("DISTROML_DEPLOYMENT", "dep-2")
    assert deployment_of(folder.path) == "dep-2"


def test_commands_go_there_and_start_nothing(tmp_path, token_file, monkeypatch):
    for name, value in (SERVICES | {"DISTROML_TOKEN_FILE": str(token_file)}).items():
        monkeypatch.setenv(name, value)
    script = tmp_path / "train.py"
    script.write_text("")
    monkeypatch.chdir(tmp_path)
    asked = {"name": "", "workers": "1", "env": [], "bundle": None, "priority": 0, "max_failures": None, "keep": None}
    # Nodes there have their own interpreter.
    assert from_command([str(script)], **asked).spec.python == ""
    done = CliRunner().invoke(app, ["run", "--data", str(tmp_path / "data"), str(script)])
    # Nobody listens there: that is what it says, instead of starting a control plane of its own.
    assert type(done.exception).__name__ == "Unreachable"
    assert not (tmp_path / "data").exists()
    seen = CliRunner().invoke(app, ["doctor", "--json", "--data", str(tmp_path / "data")])
    findings = {one["check"]: one["verdict"] for one in json.loads(seen.stdout)}
    assert findings["scheduler"] == findings["telemetry"] == "problem"
