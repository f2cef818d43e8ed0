"""Where a control plane finds its servers, and what it says where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from distroml.cli.errors import UsageError
from distroml.cli.plane.datafolder import DataFolder, Profile
from distroml.cli.plane.profile import FILE, adopt, environment_of

NAMED = {"DISTROML_ETCD_ENDPOINTS": "http://one:2379", "DISTROML_NATS_SERVERS": "nats://one:4222"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataFolder:
    monkeypatch.chdir(tmp_path)
    made = DataFolder(tmp_path / "data")
    made.prepare(Profile.STACK)
    return made


def write(text: str) -> None:
    FILE.parent.mkdir(parents=True)
    FILE.write_text(text)


def test_the_environment_comes_before_the_file(folder: DataFolder) -> None:
    write("export DISTROML_ETCD_ENDPOINTS=http://file:1\nexport DISTROML_NATS_SERVERS=nats://file:2\n")
    assert environment_of(folder, NAMED)["DISTROML_ETCD_ENDPOINTS"] == "http://one:2379"
    found = environment_of(folder, {"PATH": "/bin"})
    assert (found["DISTROML_NATS_SERVERS"], found["PATH"]) == ("nats://file:2", "/bin")


def test_a_file_is_read_as_a_shell_reads_it(folder: DataFolder) -> None:
    named = "".join(f"export {name}={value}\n" for name, value in NAMED.items())
    write(f"# servers\n{named}export DISTROML_NATS_USER=ann DISTROML_NATS_PASSWORD='it'\"'\"'s = secret'\n")
    assert environment_of(folder, {})["DISTROML_NATS_PASSWORD"] == "it's = secret"


@pytest.mark.parametrize("location", ["s3://shared", "s3://shared/", "s3://shared?region=eu"])
def test_objects_have_a_place_of_the_deployments_own(folder: DataFolder, location: str) -> None:
    path, mark, options = location.partition("?")
    found = environment_of(folder, NAMED | {"DISTROML_OBJECTS": location})["DISTROML_OBJECTS"]
    assert found == f"{path.rstrip('/')}/{folder.deployment()}{mark}{options}"


def test_a_process_that_took_the_files_servers_over_knows_all_of_them(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command asks the servers first, and starts services with its own environment afterwards."""
    for name in (*NAMED, "DISTROML_OBJECTS"):
        # Set first, so that it is deleted again whatever the test makes of it.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    write("".join(f"export {name}={value}\n" for name, value in (NAMED | {"DISTROML_OBJECTS": "s3://shared"}).items()))
    place = f"s3://shared/{folder.deployment()}"
    for _ in range(2):
        assert adopt(folder)["DISTROML_OBJECTS"] == place
        assert environment_of(folder)["DISTROML_OBJECTS"] == place


@pytest.mark.parametrize("environ", [{}, {"DISTROML_ETCD_ENDPOINTS": "http://one:2379"}])
def test_servers_that_are_not_named_are_asked_for(folder: DataFolder, environ: dict[str, str]) -> None:
    with pytest.raises(UsageError) as refused:
        environment_of(folder, environ)
    assert "make stack" in refused.value.hint


def test_an_unreadable_file_is_named(folder: DataFolder) -> None:
    write("export DISTROML_NATS_PASSWORD='half\n")
    with pytest.raises(UsageError, match="cannot be read"):
        environment_of(folder, {})


def test_an_embedded_plane_keeps_to_its_folder(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    objects = {"DISTROML_OBJECTS": "s3://shared"}
    assert environment_of(folder, NAMED | objects) == objects
    assert "relay" not in folder.services()


def test_a_folder_stays_with_its_profile(folder: DataFolder, tmp_path: Path) -> None:
    assert folder.prepare() == folder.prepare(Profile.STACK)
    assert "relay" in folder.services()
    with pytest.raises(UsageError, match="was made with the profile stack"):
        folder.prepare(Profile.EMBEDDED)
    old = DataFolder(tmp_path / "old")
    old.prepare()
    with pytest.raises(UsageError, match="was made with the profile embedded"):
        old.prepare(Profile.STACK)
    (tmp_path / "old" / "format.json").write_text('{"format": 1, "deployment": "dep-1", "profile": "moon"}')
    with pytest.raises(UsageError, match="does not know"):
        old.prepare()
