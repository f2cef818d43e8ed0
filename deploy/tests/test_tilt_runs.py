"""What Tilt would start, started as the Tiltfile says: commands, environments, order and probes of the local mode."""

import graphlib
import os
import signal
import subprocess
import time
import urllib.request

import pytest

from deploy.stack.running import is_free
from deploy.tests.tiltfile import ROOT, Tilt

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def probed(call):
    asked = call["readiness_probe"]["http_get"]
    try:
        with urllib.request.urlopen(f"http://{asked['host']}:{asked['port']}{asked['path']}", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def wait_for(condition, what):
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline, f"{what} in vain"
        time.sleep(0.1)


class Started:
    """Resources of the local mode as processes, without Tilt."""

    def __init__(self, folder):
        self.resources = Tilt({"servers": []}).evaluate().named("local_resource")
        self.folder, self.processes = folder, {}

    def start(self, name):
        call = self.resources[name]
        if "serve_cmd" not in call:
            self.run(name)
            return
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                call["serve_cmd"],
                cwd=call["serve_dir"],
                env=os.environ | call.get("serve_env", {}),
                stdout=log,
                stderr=log,
            )
        wait_for(lambda: probed(call), f"waited for {name}")

    def run(self, name, *more):
        call = self.resources[name]
        command = [*call["cmd"], *more]
        done = subprocess.run(command, cwd=call["dir"], env=os.environ | call["env"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self):
        for process in reversed(self.processes.values()):
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def free_range(count):
    """The first of so many ports in a row that nothing listens on, below those that the system gives away itself."""
    for first in range(20000 + os.getpid() % 5000, 32000, count):
        if all(is_free(port) for port in range(first, first + count)):
            return first
    raise AssertionError("no ports are free")


@pytest.fixture
def started(tmp_path, monkeypatch):
    first = free_range(170)
    monkeypatch.setenv("DISTROML_TILT_HOME", str(tmp_path))
    monkeypatch.setenv("DISTROML_TILT_PORT", str(first))
    found = Started(tmp_path)
    needs = {name: found.resources[name].get("resource_deps", ()) for name in found.resources}
    try:
        for name in graphlib.TopologicalSorter(needs).static_order():
            if found.resources[name].get("auto_init", True):
                found.start(name)
        yield found
    finally:
        found.stop()


def test_the_stack_comes_up_and_a_killed_service_comes_back(started):
    assert started.run("login").startswith(f"http://127.0.0.1:{os.environ['DISTROML_TILT_PORT']}/login?token=")
    kill = [started.resources["login"]["cmd"][0], "-m", "tilt.chaos", "service", "rendezvous"]
    told = subprocess.run(kill, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    log = started.folder / "rendezvous.log"
    wait_for(lambda: "starting it again" in log.read_text(), "waited for rendezvous to be started again")
    wait_for(lambda: probed(started.resources["rendezvous"]), "waited for rendezvous")
    assert "verified" in started.run("replay")
