"""GPUs of a node, by a driver's library that is made up: what is offered, what a worker gets, what is told of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from distroml.agent import node
from distroml.agent.adapters.gpus import Gpu, Gpus, visible
from distroml.agent.node import offered_slots
from distroml.agent.settings import AgentSettings
from services.agent.tests.conftest import World
from services.agent.tests.plane import until


@dataclass
class Nvml:
    """What this project uses of `pynvml`: handles are numbers here."""

    names: tuple[str | bytes, ...] = (b"H100", "H100", "A2")
    busy: dict[int, int] = field(default_factory=lambda: {0: 7, 1: 93, 2: 0})
    works: bool = True

    def nvmlInit(self) -> None:
        if not self.works:
            raise RuntimeError("driver not loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        raise RuntimeError(f"a part of a GPU has no figures: {uuid}")

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return self.names[handle]

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}a-77"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=self.busy[handle])

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=(handle + 1) << 30)


def driver(folder: Path) -> Path:
    """What the kernel's driver lists: a folder per address."""
    for address, name, uuid in (("0000:0a:00.0", "NVIDIA A2", "GPU-b"), ("0000:01:00.0", "NVIDIA H100", "GPU-a")):
        (folder / address).mkdir(parents=True)
        (folder / address / "information").write_text(f"Model: \t\t {name}\nIRQ:   \t\t 42\nGPU UUID: \t {uuid}\n")
    (folder / "0000:0b:00.0").mkdir()
    return folder


def offered(data: Path, gpus: Gpus, **settings: int) -> list[tuple[str, str, str]]:
    slots = offered_slots(
        AgentSettings(service="agent", data=data, token="t", deployment="d", **settings),  # pyright: ignore[reportArgumentType]
        gpus,
    )
    return [(slot.id, slot.kind, slot.device) for slot in slots]


def test_a_slot_for_each_gpu_unless_a_number_of_cpu_slots_was_asked_for(tmp_path: Path) -> None:
    gpus = Gpus(Nvml(), None, tmp_path / "none")
    assert [gpu.name for gpu in gpus.found] == ["H100", "H100", "A2"]
    assert offered(tmp_path, gpus) == [(f"cuda-{index}", "cuda", str(index)) for index in range(3)]
    assert offered(tmp_path, gpus, slots=2) == [(f"cpu-{index}", "cpu", "cpu") for index in range(2)]
    assert offered(tmp_path, Gpus(Nvml(), "2,1", tmp_path)) == [("cuda-2", "cuda", "2"), ("cuda-1", "cuda", "1")]
    hidden = offered(tmp_path, Gpus(Nvml(), "", tmp_path))
    assert hidden
    assert {kind for _, kind, _ in hidden} == {"cpu"}


def test_cores_that_the_agent_may_use_are_its_slots_and_divided_among_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "usable_cores", lambda: 6)
    assert [slot for slot, _, _ in offered(tmp_path, Gpus(Nvml(), "", tmp_path))] == [f"cpu-{n}" for n in range(6)]
    settings = AgentSettings(service="agent", data=tmp_path, token="t", deployment="d")
    assert node.base_env({}, {}, tmp_path, settings, slots=2)["OMP_NUM_THREADS"] == "3"


def test_figures_of_a_gpu_and_none_of_what_fell_off_the_bus(tmp_path: Path) -> None:
    nvml = Nvml()
    gpus = Gpus(nvml, None, tmp_path)
    assert gpus.look("1") == (0.93, 2 << 30)
    assert gpus.look("MIG-1") is None
    del nvml.busy[1]
    assert gpus.look("1") is None


@pytest.mark.parametrize("nvml", [None, Nvml(works=False)], ids=["no library", "no driver for it"])
def test_without_the_library_the_driver_s_list_is_offered_in_order_of_addresses(
    tmp_path: Path, nvml: Nvml | None
) -> None:
    gpus = Gpus(nvml, None, driver(tmp_path / "gpus"))
    assert gpus.found == (Gpu("0", "NVIDIA H100", "GPU-a"), Gpu("1", "NVIDIA A2", "GPU-b"))
    assert gpus.look("0") is None
    assert Gpus(nvml, "GPU-b", tmp_path / "gpus").found == gpus.found[1:]
    assert Gpus(nvml, None, tmp_path / "none").found == ()


@pytest.mark.parametrize(
    ("inherited", "seen"),
    [
        (None, ["0", "1", "2"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", ["1"]),
        (" 2 , 0", ["2", "0"]),
        ("0,7,1", ["0"]),
        ("0,0,1", ["0"]),
        ("GPU-2b,0", ["2", "0"]),
        ("GPU-", []),
        ("GPU-1a,1", ["1"]),
        ("MIG-5,MIG-6", ["MIG-5", "MIG-6"]),
    ],
)
def test_gpus_that_the_agent_may_not_see_are_not_offered(inherited: str | None, seen: list[str]) -> None:
    present = [Gpu(str(index), "H100", f"GPU-{index}{letter}-77") for index, letter in enumerate("aab")]
    assert [gpu.device for gpu in visible(present, inherited)] == seen


async def test_a_worker_sees_its_job_s_gpus_and_its_use_of_them_is_told(world: World, tmp_path: Path) -> None:
    agent = await world.agent(slots=0, gpus=Gpus(Nvml(), "1,2,0", tmp_path / "none"))
    plane = world.plane
    script = """
        import os, pathlib, sys, time
        print(os.environ["CUDA_DEVICE_ORDER"], os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
        while not pathlib.Path(sys.argv[1]).exists():
            time.sleep(0.05)
    """
    told = tmp_path / "told"
    wanted = world.attempt(agent.id, world.bundle({"t.py": script}), "t.py", str(told))
    wanted.slots[:] = ["cuda-2", "cuda-1"]
    plane.scheduler.want(wanted)
    await until(lambda: len({sample.rank for sample in plane.telemetry.resources()}) == 2)
    told.touch()
    await plane.scheduler.stopped("job-1", plane.rendezvous)
    assert plane.telemetry.lines() == ["PCI_BUS_ID 1,2"] * 2
    use = {sample.rank: (round(sample.gpu_ratio, 2), sample.gpu_bytes) for sample in plane.telemetry.resources()}
    assert use == {0: (0.93, 2 << 30), 1: (0.0, 3 << 30)}
