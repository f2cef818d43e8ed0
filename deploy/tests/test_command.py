"""`up`, `down` and `status` over several servers."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from deploy.stack import StackError, registry
from deploy.stack.__main__ import down, main, status, up
from deploy.stack.foreground import follow
from deploy.stack.owner import owner_of
from deploy.stack.running import begin
from deploy.tests.web import Web

WEBS = (Web("one"), Web("two"))


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTROML_STACK_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def bring_up(data):
    begun = []
    yield lambda: begun.extend(up(WEBS, data))
    down(WEBS, data)
    for one in begun:
        one.process.wait()


def wait_until_ended(data):
    deadline = time.monotonic() + 10
    while owner_of(data / "two").alive and time.monotonic() < deadline:
        time.sleep(0.01)


def pids(data):
    return [owner_of(data / web.name).pid for web in WEBS]


def ports(data):
    return [owner_of(data / web.name).ports for web in WEBS]


def test_up_again_leaves_alone_what_runs_and_mends_what_does_not(bring_up, data, capsys):
    bring_up()
    first, listened = pids(data), ports(data)
    assert status(WEBS, data) == 0
    os.kill(first[1], signal.SIGKILL)
    wait_until_ended(data)
    assert status(WEBS, data) == 1
    assert "two 1: not running" in capsys.readouterr().out
    bring_up()
    second = pids(data)
    assert (second[0] == first[0], second[1] == first[1]) == (True, False)
    assert ports(data) == listened


def test_down_ends_all_and_may_be_said_twice(bring_up, data, capsys):
    bring_up()
    begun = pids(data)
    down(WEBS, data)
    said = capsys.readouterr().out.splitlines()[-2:]
    assert said == [f"two: ended process {begun[1]}", f"one: ended process {begun[0]}"]
    down(WEBS, data)
    assert capsys.readouterr().out == ""
    assert status(WEBS, data) == 1


def test_settings_are_written_for_a_shell(bring_up, data):
    bring_up()
    file = data / "environment"
    assert file.stat().st_mode & 0o777 == 0o600
    shown = subprocess.run(["sh", "-c", f'. {file}; echo "$ONE_URL $SECRET"'], capture_output=True, text=True)
    assert shown.stdout == f"http://127.0.0.1:{ports(data)[0]['client']} it's one\n"


def test_every_server_that_is_named_is_there():
    for name in registry.names():
        server = registry.server(name)
        assert server.name == name
        assert server.version
        assert server.ports
        assert server.settings(dict.fromkeys(server.ports, 1))


def test_an_unknown_server_is_refused(capsys, tmp_path):
    with pytest.raises(StackError, match="no server 'oracle'"):
        registry.server("oracle")
    assert main(["up", "oracle", "--data", str(tmp_path)]) == 1
    assert f"there are {registry.ALL}" in capsys.readouterr().err


def test_the_command_line_says_what_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "deploy.stack", "status", "minio", "--data", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, f"minio {registry.server('minio').version}: not running\n")


def test_run_ends_its_servers_with_itself_and_keeps_the_settings_of_others(bring_up, data, tmp_path):
    bring_up()
    script = (
        "import pathlib, sys; from deploy.stack.__main__ import run; from deploy.tests.web import Web; "
        "run([Web('three')], pathlib.Path(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(data)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        said = next(iter(process.stdout))
        assert f"three 1: process {owner_of(data / 'three').pid}" in said
        assert "settings for services" in next(iter(process.stdout))
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert not owner_of(data / "three").alive
    # A server that dies ends it, and says so: whoever watches over it hears of it.
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(data)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        next(iter(process.stdout))
        os.kill(owner_of(data / "three").pid, signal.SIGKILL)
        assert process.wait(20) == 1
        assert "three ended by itself, with status -9" in process.stderr.read()


def test_run_prints_what_its_servers_log_and_not_what_earlier_ones_did(data, capfd, tmp_path):
    (data / "three").mkdir()
    (data / "three" / "log").write_text("of an earlier process\n")
    three = begin(Web("three", then="print('of this one', flush=True)"), data / "three")
    told = threading.Event()
    following = threading.Thread(target=follow, args=([three], told))
    following.start()
    said, deadline = "", time.monotonic() + 20
    while "of this one" not in said and time.monotonic() < deadline:
        said += capfd.readouterr().out
        time.sleep(0.01)
    told.set()
    following.join()
    assert "of this one" in said
    assert "earlier" not in said


def test_ports_are_those_of_the_server(capsys, tmp_path):
    assert main(["run", "etcd", "--ports", "client=1", "--data", str(tmp_path)]) == 1
    assert "must name every port of one server (etcd: client, peer)" in capsys.readouterr().err
    assert main(["settings", "etcd"]) == 1
    assert "give those of one server" in capsys.readouterr().err
    assert main(["settings", "etcd", "--ports", "client=1,peer=2"]) == 0
    assert json.loads(capsys.readouterr().out) == {"DISTROML_ETCD_ENDPOINTS": "http://127.0.0.1:1"}
