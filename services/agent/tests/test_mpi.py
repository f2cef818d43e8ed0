"""What the agent says where MPI is missing or does not come up, and what it makes of what mpirun gives."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from distroml.agent.adapters.mpi import MpiHost, why_not
from distroml.agent.launcher import CannotStart, ProcessLauncher

Make = Callable[[str], dict[str, str]]


@pytest.fixture
def mpirun(tmp_path: Path) -> Make:
    """An environment in which mpirun is this shell script."""

    def make(script: str) -> dict[str, str]:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "mpirun").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "mpirun").chmod(0o700)
        return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}

    return make


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[MpiHost]:
    made = MpiHost(tmp_path, ProcessLauncher(None), name="j.1.mpi", python=sys.executable, orphan_grace_s=60.0)
    yield made
    await made.close(end=True)


async def test_what_is_missing_is_named_with_what_to_install(tmp_path: Path, mpirun: Make) -> None:
    assert "no mpirun on PATH; install Open MPI" in await why_not(sys.executable, {"PATH": str(tmp_path)})
    env = mpirun("exit 0")
    assert await why_not(sys.executable, env) == ""
    # mpi4py as a package that is none, found before the real one.
    (tmp_path / "mpi4py.py").write_text("raise ImportError('not here')")
    lacking = await why_not(sys.executable, {**env, "PYTHONPATH": str(tmp_path)})
    assert "has no mpi4py; install it there: pip install 'distroml[mpi]'" in lacking
    (tmp_path / "mpi4py.py").unlink()
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py/__init__.py").write_text("class rc: initialize = True")
    (tmp_path / "mpi4py/MPI.py").write_text("raise RuntimeError('cannot load MPI library')")
    lacking = await why_not(sys.executable, {**env, "PYTHONPATH": str(tmp_path)})
    assert "no MPI library that it can load (cannot load MPI library); install Open MPI" in lacking
    (tmp_path / "mpi4py/MPI.py").write_text("Get_library_version = lambda: 'MPICH Version: 4.2, ABI 1'")
    assert "loads MPICH Version: 4.2" in await why_not(sys.executable, {**env, "PYTHONPATH": str(tmp_path)})


async def test_an_interpreter_that_cannot_even_be_asked_is_told_of(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no such library' >&2\nexit 4\n")
    broken.chmod(0o700)
    assert "ends with 4 when it looks for mpi4py: no such library" in await why_not(str(broken), dict(os.environ))


async def test_every_rank_gets_its_own_seat_of_one_mpirun(host: MpiHost, mpirun: Make, tmp_path: Path) -> None:
    # As Open MPI does it: the program behind its own options, once per rank.
    env = mpirun("""
        while [ "$1" != -n ]; do shift; done; count=$2; shift 2
        echo started >> "$STARTS"
        for rank in $(seq 0 $((count - 1))); do
            OMPI_COMM_WORLD_RANK=$rank PMIX_RANK=$rank OTHER=x "$@" &
        done
        wait""")
    env["STARTS"] = str(tmp_path / "starts")
    seats = await asyncio.gather(*(host.seat(4, 3, rank, env) for rank in range(3)))
    assert [seat["OMPI_COMM_WORLD_RANK"] + seat["PMIX_RANK"] for seat in seats] == ["00", "11", "22"]
    assert all("OTHER" not in seat and "STARTS" not in seat for seat in seats), "nothing but what MPI told"
    assert (tmp_path / "mpi.4/rank.2").stat().st_mode & 0o777 == 0o600
    again = MpiHost(tmp_path, ProcessLauncher(None), name="j.1.mpi", python=sys.executable, orphan_grace_s=60.0)
    again.adopt()
    assert await again.seat(4, 3, 1, env) == seats[1], "the next agent goes on with the same one"
    await again.close(end=False)
    await host.seat(5, 1, 0, env)
    assert (tmp_path / "starts").read_text() == "started\nstarted\n"
    assert (tmp_path / "mpi.4/exit.json").exists(), "the mpirun of an older generation is ended"
    with pytest.raises(CannotStart, match="the mpirun of generation 4 has ended"):
        await host.seat(4, 3, 0, env)


async def test_an_mpirun_that_fails_is_quoted(host: MpiHost, mpirun: Make) -> None:
    env = mpirun("echo ------- >&2; echo 'There are not enough slots' >&2; exit 1")
    with pytest.raises(CannotStart, match="mpirun ended before its ranks began: There are not enough slots"):
        await host.seat(1, 2, 0, env)


async def test_another_mpirun_than_open_mpis_is_refused(host: MpiHost, mpirun: Make) -> None:
    env = mpirun('while [ "$1" != -n ]; do shift; done; shift 2; exec "$@"')
    with pytest.raises(CannotStart, match="the mpirun on PATH is not Open MPI's"):
        await host.seat(1, 1, 0, env)
