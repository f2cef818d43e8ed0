"""Bad input at every border: a clear message, nothing lost, nothing left running."""

from __future__ import annotations

import os
import secrets
import signal
import socket
from pathlib import Path

import pytest

from distroml.cli.errors import CliError, UsageError
from distroml.cli.plane import control
from distroml.cli.plane.datafolder import SERVICES, DataFolder
from distroml.rpc.settings import PEERS
from tests.e2e.conftest import Cli, Plane, plane, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
JOBS = Path(__file__).parents[1] / "e2e" / "jobs"
__all__ = ["plane"]


def test_garbage_on_every_port_and_socket_hurts_nobody_a_running_job_least(plane: Plane, tmp_path: Path) -> None:
    before = {service: plane.pid(service) for service in SERVICES}
    job = plane.cli.submit("--workers", "2", "tiny.py", "60", "0.3", str(tmp_path / "gate"), cwd=JOBS)

    def formed() -> list[dict[str, str]]:
        return [e["data"]["generation"] for e in plane.cli.events(job) if e["type"].endswith("GenerationFormed")]

    wait_for(
        lambda: any(e["type"] == "checkpoint.Committed" for e in plane.cli.events(job)),
        150,
        lambda: plane.cli.explain(job),
    )
    (generation,) = formed()
    dashboard = plane.endpoints.dashboard.removeprefix("http://")
    services = [*plane.endpoints.services.values(), *plane.endpoints.metrics.values(), dashboard]
    # The last is the torch store by which its ranks met.
    addresses = [*services, generation["store_endpoint"]]
    for address in addresses:
        host, _, port = address.rpartition(":")
        for garbage in (secrets.token_bytes(100_000), b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 4096, b""):
            with socket.create_connection((host, int(port)), timeout=5) as link:
                try:
                    link.sendall(garbage)
                    link.settimeout(0.2)
                    link.recv(1024)
                except OSError:
                    pass
    sockets = [p for p in plane.folder.path.rglob("*.sock") if p.is_socket()]
    # The agent's, each holder's (of two workers and of the store's host), and the store's.
    names = [path.name for path in sockets]
    assert (names.count("holder.sock"), names.count("store.sock")) == (3, 1), names
    for path in sockets:
        for garbage in (secrets.token_bytes(100_000), b"\xff\xff\xff\xff", b"{}\n"):
            with socket.socket(socket.AF_UNIX) as link:
                try:
                    link.connect(str(path))
                    link.sendall(garbage)
                except OSError:
                    pass
    # Whoever connects to a holder takes the agent's place for a moment; the end of a worker is told all the same.
    os.kill(
        next(int(e["data"]["pid"]) for e in plane.cli.events(job) if e["type"].endswith("worker.Started")),
        signal.SIGKILL,
    )
    (tmp_path / "gate").touch()
    assert plane.cli.wait_state(job, "SUCCEEDED", "FAILED") == "SUCCEEDED", plane.cli.explain(job)
    assert len(formed()) == 2, "nothing broke but by the kill"
    assert {service: plane.pid(service) for service in SERVICES} == before


def test_a_wrong_token_is_refused_with_what_to_do(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PEERS:
        monkeypatch.setenv(f"DISTROML_{name.upper()}", plane.endpoints.services[name])
    monkeypatch.setenv("DISTROML_TOKEN_FILE", str(tmp_path / "token"))
    (tmp_path / "token").write_text("wrong")
    said = plane.cli("jobs", code=2).stderr
    assert "carries no token, or one of another deployment" in said
    assert "--data or DISTROML_DATA), or its token (DISTROML_TOKEN_FILE)" in said
    assert "reason: WrongToken" in said
    (tmp_path / "token").write_text(plane.folder.token())
    plane.cli("jobs")


def test_a_second_control_plane_on_one_folder_is_refused(plane: Plane) -> None:
    with pytest.raises(UsageError, match="a control plane runs on"):
        control.start(plane.folder)
    assert "runs already" in plane.cli("up").stdout


def test_a_flipped_byte_in_the_newest_checkpoint_falls_back_to_the_one_before(plane: Plane, tmp_path: Path) -> None:
    job = plane.cli.submit("--workers", "2", "tiny.py", "60", "0.3", str(tmp_path / "gate"), cwd=JOBS)

    def committed() -> list[int]:
        return [int(c["step"]) for c in plane.cli.json("checkpoints", "list", job) if c["state"] == "Committed"]

    wait_for(lambda: len(committed()) >= 2, 150, lambda: plane.cli.explain(job))
    plane.cli("job", "pause", job)
    plane.cli.wait_state(job, "PAUSED")
    newest, before = sorted(committed())[-1], sorted(committed())[-2]
    assert plane.cli("checkpoints", "verify", job).stdout.startswith("sound")
    packs = [p for p in plane.folder.path.glob(f"objects/**/checkpoints/{job}/data/**/*") if p.is_file()]
    damaged = max(packs, key=lambda p: p.stat().st_mtime)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 0x10
    damaged.write_bytes(data)
    assert damaged.name.rstrip("@") in plane.cli("checkpoints", "verify", job, code=1).stdout
    (tmp_path / "gate").touch()
    plane.cli("job", "resume", job)
    assert plane.cli.wait_state(job, "SUCCEEDED", "FAILED") == "SUCCEEDED", plane.cli.explain(job)
    events = {e["type"]: e["data"] for e in plane.cli.events(job)}
    assert int(events["checkpoint.CorruptChunkFound"]["step"]) == newest
    assert int(events["checkpoint.FellBack"]["to_step"]) == before


def test_a_bundle_past_its_cap_is_refused_with_its_largest_files(plane: Plane, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    (tmp_path / "weights.bin").write_bytes(b"\0" * 70_000_000)
    done = plane.cli("submit", "train.py", code=2, cwd=tmp_path)
    assert "weights.bin" in done.stderr
    assert ".distromlignore" in done.stderr


def test_a_job_file_with_mistakes_names_all_of_them(plane: Plane, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("command: [a.py]\nwrokers: 2\npriority: high\n")
    done = plane.cli("submit", "--file", "job.yaml", code=2, cwd=tmp_path)
    assert "line 2: unknown field `wrokers`; did you mean `workers`?" in done.stderr
    assert "line 3: `priority` takes a whole number" in done.stderr


def test_an_unknown_job_is_a_clear_error(plane: Plane) -> None:
    done = plane.cli("job", "show", "job-nope", code=2)
    assert "job-nope" in done.stderr


def test_without_a_control_plane_the_exit_code_is_3(tmp_path: Path) -> None:
    done = Cli(tmp_path / "none")("jobs", code=3)
    assert "distroml up" in done.stderr


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = Cli(tmp_path / "data")("up", "--dashboard-port", str(port), code=2)
    assert f"port {port} is in use" in done.stderr


def test_a_data_folder_of_another_format_is_refused(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    (folder.path / "format.json").write_text('{"format": 7, "deployment": "dep-x"}')
    done = Cli(folder.path)("up", code=2)
    assert "format 7" in done.stderr


def test_a_data_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = Cli(tmp_path / "file" / "data")("up", code=2)
    assert "cannot write to the data folder" in done.stderr


def test_a_truncated_log_is_told_at_start_and_not_touched(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    control.start(folder, slots=1)
    control.stop(folder)
    file = folder.path / "control.sqlite"
    os.truncate(file, file.stat().st_size // 2)
    size = file.stat().st_size
    with pytest.raises(CliError, match=r"control\.sqlite") as caught:
        control.start(folder, slots=1)
    assert "damaged" in caught.value.message
    assert file.stat().st_size == size
    assert not folder.is_locked()
