"""What `distroml doctor` says of MPI, which nobody needs who does not ask for it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from distroml.cli.doctor import Finding, mpi


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
