"""Which back end is used, and what is said where it cannot be."""

import sys
from types import ModuleType

import pytest
import torch

from distroml.runtime.comm.backends import NAMES, BackEndUnavailable, choose_backend, make_backend, with_mpirun
from distroml.runtime.comm.backends.mpi import library
from distroml.runtime.elastic.world import World, world_of_environment
from distroml.workerlink.backends import BACKENDS

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


@pytest.mark.parametrize(
    ("wanted", "environ", "device", "chosen"),
    [
        (None, {}, CPU, "gloo"),
        (None, {}, CUDA, "nccl"),
        (None, MPIRUN, CPU, "mpi"),
        (None, {**MPIRUN, "MASTER_ADDR": "127.0.0.1"}, CPU, "gloo"),
        ("gloo", MPIRUN, CPU, "gloo"),
        (None, {"DISTROML_BACKEND": "mpi"}, CPU, "mpi"),
        ("mpi", {"DISTROML_BACKEND": "mpi"}, CPU, "mpi"),
    ],
)
def test_what_was_asked_for_or_what_launcher_and_device_suggest(
    wanted: str | None, environ: dict[str, str], device: torch.device, chosen: str
) -> None:
    assert choose_backend(wanted, environ, device) == chosen


def test_a_script_and_its_job_must_agree() -> None:
    with pytest.raises(ValueError, match="set DISTROML_BACKEND=gloo"):
        choose_backend("gloo", {"DISTROML_BACKEND": "mpi"}, CPU)


def test_jobs_may_name_every_back_end_that_the_runtime_has() -> None:
    assert set(BACKENDS) == set(NAMES)


def test_an_unknown_back_end_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="'ucx'; choose one of " + ", ".join(NAMES)):
        choose_backend("ucx", {}, CPU)


def test_mpirun_alone_says_who_a_process_is() -> None:
    world = world_of_environment(MPIRUN, "cpu")
    assert (world.rank, world.local_rank, world.world_size, world.backend) == (2, 1, 4, "mpi")
    assert with_mpirun({**MPIRUN, "RANK": "0"})["RANK"] == "0"


def seat(device: torch.device = CPU) -> World:
    return World(generation=0, rank=0, world_size=2, local_rank=0, device=device, store=None, prefix="")


@pytest.mark.parametrize(
    ("name", "device", "said"),
    [
        ("gloo", CUDA, "leave `backend` out to use nccl"),
        ("nccl", CPU, "use gloo or mpi, or a machine with a GPU"),
        ("mpi", CUDA, "use nccl, or device='cpu'"),
    ],
)
def test_a_device_that_a_back_end_does_not_serve_is_refused(name: str, device: torch.device, said: str) -> None:
    with pytest.raises(BackEndUnavailable, match=said):
        make_backend(name).check(seat(device))


def test_without_mpi4py_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_loaded", None)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(BackEndUnavailable, match=r"needs mpi4py.*pip install 'distroml\[mpi\]'"):
        make_backend("mpi").check(seat())


def test_without_an_mpi_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "mpi4py.MPI":
                raise RuntimeError("cannot load MPI library\nlibmpi.so.40: cannot open shared object file")

    package = ModuleType("mpi4py")
    package.__path__ = []
    package.rc = type("rc", (), {})
    monkeypatch.setattr(library, "_loaded", None)
    monkeypatch.setitem(sys.modules, "mpi4py", package)
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Found(), *sys.meta_path])
    said = r"cannot load MPI library.*apt-get install openmpi-bin libopenmpi-dev"
    with pytest.raises(BackEndUnavailable, match=said):
        make_backend("mpi").check(seat())
