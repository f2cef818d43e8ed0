"""A server as a process: begun, waited for, owned, ended."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from deploy.stack import StackError, running
from deploy.stack.owner import Owner, owner_of, record
from deploy.stack.running import begin, is_free
from deploy.tests.web import Web
from distroml.cli.plane.ports import free_ports


def test_a_server_is_ready_in_the_block_and_ended_after_it(tmp_path):
    with running(Web(environment={"PORT_OF_CALL": "x"}), tmp_path / "data", cache=tmp_path / "cache") as web:
        (web.folder / "hello").write_text("there")
        with urllib.request.urlopen(f"http://127.0.0.1:{web.port}/hello") as answer:
            assert answer.read() == b"there"
        environ = Path(f"/proc/{web.pid}/environ").read_text().split("\0")
        assert "PORT_OF_CALL=x" in environ
        assert f"HOME={os.environ['HOME']}" in environ
        assert "GET /hello" in web.log()
    assert web.process.returncode == -signal.SIGTERM
    assert is_free(web.port)


def test_a_restart_keeps_data_and_ports(tmp_path):
    with running(Web(), tmp_path / "data", cache=tmp_path / "cache") as web:
        before, port = web.pid, web.port
        (web.folder / "kept").write_text("1")
        web.kill()
        web.restart()
        assert (web.pid != before, web.port) == (True, port)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/kept") as answer:
            assert answer.read() == b"1"
        web.restart()
    assert web.process.returncode == -signal.SIGTERM
    assert web.server.installed == 1


def test_a_server_that_ends_says_why(tmp_path):
    with pytest.raises(StackError, match=r"web 1 ended with status 3 before it was ready; .*\n.*no luck today"):
        begin(Web(then="print('no luck today', flush=True); os._exit(3)"), tmp_path / "data", cache=tmp_path)
    owner = owner_of(tmp_path / "data")
    assert owner is not None
    assert not owner.alive


def test_a_folder_has_one_server(tmp_path):
    with (
        running(Web(), tmp_path / "data", cache=tmp_path / "cache") as web,
        pytest.raises(StackError, match=rf"served by process {web.pid} already"),
    ):
        begin(Web(), tmp_path / "data", cache=tmp_path / "cache")


def test_a_port_that_is_taken_is_told(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(StackError, match="Address already in use"):
            begin(Web(), tmp_path / "data", cache=tmp_path, ports={"client": port})


def test_a_program_that_cannot_be_run_is_told(tmp_path):
    class Gone(Web):
        def start(self, programs, folder, ports):
            launch = super().start(programs, folder, ports)
            return type(launch)(command=(str(tmp_path / "gone"),))

    with pytest.raises(StackError, match=r"web cannot be started: .*gone"):
        begin(Gone(), tmp_path / "data", cache=tmp_path)


def test_a_stopped_server_ends_too(tmp_path):
    web = begin(Web(), tmp_path / "data", cache=tmp_path / "cache")
    os.kill(web.pid, signal.SIGSTOP)
    web.stop()
    assert web.process.returncode == -signal.SIGTERM


def test_a_server_that_does_not_listen_is_ended_by_force(tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.stack.owner.STOP_S", 0.2)
    deaf = Web(then="signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    web = begin(deaf, tmp_path / "data", cache=tmp_path / "cache")
    web.stop()
    assert web.process.returncode == -signal.SIGKILL


def test_a_process_of_the_same_number_is_not_taken_for_the_owner(tmp_path):
    other = Owner(pid=os.getpid(), begun="another boot 1", ports={}, stop_signal=int(signal.SIGKILL))
    assert not other.alive
    other.end()
    assert owner_of(tmp_path) is None


def test_a_process_that_had_ended_when_it_was_noted_serves_nothing(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        owner = record(tmp_path, pid=process.pid, ports={}, stop_signal=int(signal.SIGTERM))
        assert not owner.alive
    # Nor once its number is nobody's.
    assert not owner.alive
    owner.end()


OUTLIVING = """
import ctypes, socket, threading
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
threading.Thread(target=threading.Event().wait).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_server_lives_and_has_its_port_until_its_last_thread_has_ended(tmp_path):
    with subprocess.Popen([sys.executable, "-c", OUTLIVING], stdout=subprocess.PIPE) as process:
        try:
            owner = record(tmp_path, pid=process.pid, ports={}, stop_signal=int(signal.SIGTERM))
            port = int(process.stdout.readline())
            deadline = time.monotonic() + 30
            while ") Z" not in Path(f"/proc/{process.pid}/stat").read_text():
                assert time.monotonic() < deadline, "its first thread did not end"
                time.sleep(0.01)
            assert (owner.alive, is_free(port)) == (True, False)
            owner.end()
            assert (owner.alive, is_free(port)) == (False, True)
        finally:
            process.kill()


def test_free_ports_differ():
    assert len(set(free_ports(50))) == 50
