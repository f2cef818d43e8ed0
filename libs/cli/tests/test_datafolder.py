"""The data folder: private, exclusive, and clear about what it refuses."""

import json
import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from distroml.cli.doctor import control_plane, machine
from distroml.cli.errors import UsageError
from distroml.cli.plane import ports
from distroml.cli.plane.control import connect_or_fail, stop
from distroml.cli.plane.datafolder import DataFolder, Endpoints
from distroml.cli.plane.ports import dashboard_port, free_ports


def test_a_new_folder_gets_identity_and_a_private_token(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    deployment = folder.prepare()
    assert folder.prepare() == deployment
    assert len(folder.token()) >= 32
    assert folder.token_file.stat().st_mode & 0o777 == 0o600


def test_another_format_is_refused_by_name(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.prepare()
    (tmp_path / "format.json").write_text(json.dumps({"format": 99, "deployment": "dep-x"}))
    with pytest.raises(UsageError, match="format 99; this release reads format 1"):
        folder.prepare()


@pytest.mark.parametrize("content", ["", "[]", "{", "\x00\x01"])
def test_a_damaged_identity_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "format.json").write_text(content)
    with pytest.raises(UsageError):
        DataFolder(tmp_path).prepare()


def test_a_folder_with_other_things_in_it_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        DataFolder(tmp_path).prepare()


def test_a_path_that_cannot_be_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        DataFolder(tmp_path / "file" / "data").prepare()


def test_two_control_planes_cannot_share_a_folder(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.prepare()
    assert not folder.is_locked()
    held = folder.lock()
    assert folder.is_locked()
    with pytest.raises(UsageError, match="another control plane"):
        folder.lock()
    os.close(held)
    assert not folder.is_locked()


def test_looking_whether_a_folder_is_taken_keeps_nobody_from_taking_it(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.prepare()
    os.close(folder.lock())
    looking = ExitStack()
    assert looking.enter_context(folder.kept_free())
    # Nor does who looks take another one who looks for a control plane.
    assert not folder.is_locked()
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        looking.close()

    held = folder.lock(sleep=sleep)
    assert len(waited) == 1
    assert folder.is_locked()
    with folder.kept_free() as free:
        assert not free
    os.close(held)


@contextmanager
def nobody() -> Generator[None]:
    """Root may write everywhere: within this, the process is a user who may not."""
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(mine)


def test_a_folder_into_which_one_may_not_look_is_not_taken_for_one_without_a_control_plane(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    folder.path.chmod(0o000)
    tmp_path.chmod(0o755)
    try:
        with nobody():
            for ask in (connect_or_fail, stop):
                with pytest.raises(UsageError, match=f"{folder.path} may not be read by this user: Permission"):
                    ask(folder)
            assert [found.verdict for found in control_plane(folder.path)] == ["problem"]
            # What comes after may need modules that only root can read.
            assert any(found.check == "disk" for found in machine(folder.path / "below"))
    finally:
        folder.path.chmod(0o700)


def test_a_folder_without_write_permission_is_refused_with_what_to_do(tmp_path: Path) -> None:
    made = DataFolder(tmp_path / "made")
    made.prepare()
    for folder in (tmp_path / "new", made.path):
        tmp_path.chmod(0o500)
        made.path.chmod(0o500)
        try:
            with (
                nobody(),
                pytest.raises(UsageError, match=f"cannot write to the data folder {folder}: Permission") as no,
            ):
                DataFolder(folder).prepare()
            assert "--data or DISTROML_DATA, or mend its permissions" in no.value.hint
        finally:
            tmp_path.chmod(0o700)
            made.path.chmod(0o700)


def test_endpoints_survive_the_file(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.prepare()
    endpoints = Endpoints(services={"a": "h:1"}, metrics={}, dashboard="http://h:2", supervisor=7)
    folder.write_endpoints(endpoints)
    assert folder.endpoints() == endpoints
    (tmp_path / "endpoints.json").write_text('{"services": 3')
    assert folder.endpoints() is None


def test_a_port_in_use_is_refused_by_number() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} is in use"):
            dashboard_port(port)
    assert len(set(free_ports(20))) == 20


def test_ports_of_services_are_given_to_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "ip_local_port_range"
    monkeypatch.setattr(ports, "_GIVEN", given)
    given.write_text("32768\t60999\n")
    assert all(10_000 <= port < 32768 for port in free_ports(20))
    # Where the kernel gives nearly all of them, or does not say which, any will do.
    for text in ("10500\t60999\n", "?"):
        given.write_text(text)
        assert len(set(free_ports(20))) == 20


def test_no_two_control_planes_choose_one_port_of_a_dashboard() -> None:
    # Nothing listens yet at the first.
    assert dashboard_port(None) != dashboard_port(None)
