"""What `distroml doctor` says of MPI, which nobody needs who does not ask for it, of objects, history and lines."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from distroml.cli.doctor import mpi
from distroml.cli.doctor_servers import history, lines, object_store
from distroml.cli.finding import Finding


@pytest.fixture
def with_mpirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "mpirun"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    return program


def test_without_mpirun_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = mpi(tmp_path)
    assert (found.verdict, found.text) == ("ok", "no mpirun on PATH")
    assert "apt-get install openmpi-bin" in found.advice


def test_without_mpi4py_it_says_what_to_install(with_mpirun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    (found,) = mpi(with_mpirun)
    assert found.advice == "for --backend mpi only: pip install 'distroml[mpi]'"


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        ("Open MPI v4.1.4, package: Debian OpenMPI", ""),
        ("MPICH Version: 4.2, ABI 1", "for --backend mpi only: ranks are started by Open MPI's mpirun"),
    ],
)
def test_the_library_is_named(with_mpirun: Path, monkeypatch: pytest.MonkeyPatch, version: str, advice: str) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(rc=SimpleNamespace()))
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", SimpleNamespace(Get_library_version=lambda: version))
    assert list(mpi(with_mpirun)) == [Finding("mpi", "ok", f"{version.split(',')[0]}, {with_mpirun}", advice)]


def test_objects_are_in_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DISTROML_OBJECTS", raising=False)
    assert list(object_store(tmp_path)) == [Finding("objects", "ok", (tmp_path / "objects").as_uri())]


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("gs://bucket", "expected file:///FOLDER or s3://BUCKET/PREFIX"),
        ("s3://bucket?endpoint=http://127.0.0.1:{closed}", "Connection refused"),
    ],
)
def test_objects_that_cannot_be_there_are_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, location: str, said: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("DISTROML_OBJECTS", location.format(closed=closed.getsockname()[1]))
        (finding,) = object_store(tmp_path)
    assert finding.verdict == "problem"
    assert said in finding.text


def test_a_database_that_cannot_be_had_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISTROML_POSTGRES", raising=False)
    assert list(history(tmp_path)) == []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}/jobs"
        monkeypatch.setenv("DISTROML_POSTGRES", f"postgresql://ann:hidden@{place}")
        (found,) = history(tmp_path)
    assert found.verdict == "problem"
    assert found.text.startswith(f"PostgreSQL at {place}: ")
    assert "hidden" not in found.text
    monkeypatch.setenv("DISTROML_POSTGRES", "mysql://ann:hidden@h/jobs")
    (found,) = history(tmp_path)
    assert "is no address of a PostgreSQL server" in found.text
    assert "hidden" not in found.text


def test_a_store_of_lines_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTROML_ELASTICSEARCH", raising=False)
    assert list(lines(tmp_path / "none")) == []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("DISTROML_ELASTICSEARCH", f"http://127.0.0.1:{taken.getsockname()[1]}")
        (found,) = lines(tmp_path / "none")
    assert (found.check, found.verdict) == ("log store", "problem")
    assert "jobs run on" in found.advice
    monkeypatch.setenv("DISTROML_ELASTICSEARCH", "ftp://here")
    (found,) = lines(tmp_path / "none")
    assert "ftp://here" in found.text
