"""The Tiltfile in both modes: what is there, in which order, how it is watched and probed, and that it can be run."""

import ast
import functools
import graphlib
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import yaml

from deploy.docker import images
from deploy.stack import registry
from deploy.tests.tiltfile import ROOT, Tilt
from deploy.tests.web import Web

SERVICES = {folder.name for folder in (ROOT / "services").iterdir() if (folder / "distroml").is_dir()}
# A second S3 is for tests alone.
SERVERS = set(registry.names()) - registry.SECOND
PYTHON = str(ROOT / ".venv" / "bin" / "python")


@pytest.fixture(scope="module")
def local():
    return Tilt().evaluate()


@pytest.fixture(scope="module")
def containers():
    return Tilt({"mode": "containers", "_exists": True}).evaluate()


def test_every_service_and_server_is_there(local, containers):
    resources = local.named("local_resource")
    assert set(resources) >= SERVICES | SERVERS
    assert {"demo", "replay", "login"} <= set(resources)
    assert not local.of("docker_compose")
    compose = yaml.safe_load(images.COMPOSE.read_text())["services"]
    always = {name for name, service in compose.items() if "profiles" not in service}
    assert set(containers.named("dc_resource")) == always
    assert {call["ref"] for call in containers.of("docker_build")} == {
        f"distroml/{name}" for name in (*SERVICES, "base", "wheel")
    }


def test_each_begins_after_what_it_needs(local, containers):
    for tilt in (local, containers):
        resources = tilt.named("local_resource")
        known = set(resources) | set(tilt.named("dc_resource"))
        needs = {name: set(call.get("resource_deps", ())) for name, call in resources.items()}
        assert set().union(*needs.values()) <= known
        assert set(graphlib.TopologicalSorter(needs).static_order()) >= set(resources)
    needs = {name: set(call.get("resource_deps", ())) for name, call in local.named("local_resource").items()}
    assert all({"folder", "etcd", "nats", "minio"} <= needs[name] for name in SERVICES)
    # Nobody waits for what only observes.
    assert not {"postgres", "elasticsearch", "jaeger"} & set().union(*needs.values())


class AnyPort(dict):
    def __missing__(self, _):
        return 1


def test_what_serves_is_probed_where_it_listens(local):
    listens = {}
    for name, call in local.named("local_resource").items():
        if "serve_cmd" not in call:
            continue
        probe = call["readiness_probe"]
        ((_, asked),) = ((kind, probe[kind]) for kind in ("http_get", "tcp_socket") if kind in probe)
        if name in SERVICES:
            environ = call["serve_env"]
            found = {key for server in SERVERS for key in registry.server(server).settings(AnyPort())}
            assert found <= set(environ)
            assert environ["DISTROML_METRICS_LISTEN"] == f"{asked['host']}:{asked['port']}"
            listens[name] = {environ["DISTROML_LISTEN"], environ["DISTROML_METRICS_LISTEN"]}
            if name in ("scheduler", "rendezvous", "checkpoint", "telemetry"):
                for other in SERVICES:
                    peers = local.named("local_resource")[other]["serve_env"]
                    assert peers[f"DISTROML_{name.upper()}"] == environ["DISTROML_LISTEN"]
        else:
            ports = dict(pair.split("=") for pair in call["serve_cmd"][-1].split(","))
            assert set(ports) == set(registry.server(name).ports)
            assert str(asked["port"]) in ports.values()
            listens[name] = {f"127.0.0.1:{port}" for port in ports.values()}
    everywhere = [address for addresses in listens.values() for address in addresses]
    assert len(everywhere) == len(set(everywhere))
    dashboard = local.named("local_resource")["telemetry"]["serve_env"]["DISTROML_DASHBOARD_LISTEN"]
    for link in local.of("link"):
        assert urlsplit(link["url"]).netloc in {*everywhere, dashboard}


def test_everything_has_a_label_and_commands_are_there_to_run(local, containers):
    for tilt in (local, containers):
        for call in (*tilt.of("local_resource"), *tilt.of("dc_resource")):
            assert call["labels"] in (["services"], ["servers"], ["training"])
        commands = [call["args"] for call in tilt.of("cmd")]
        commands += [call[kind] for call in tilt.of("local_resource") for kind in ("cmd", "serve_cmd") if kind in call]
        for command in commands:
            assert command[0] in (PYTHON, "docker")
            modules = [word for before, word in itertools.pairwise(command) if before == "-m"]
            assert modules or command[0] == "docker"
            for module in modules:
                # Found from the project's own folder, which is where each of them runs.
                base = ROOT / module.replace(".", "/")
                mine = base.with_suffix(".py").exists() or (base / "__main__.py").exists()
                assert mine or list(ROOT.glob(f"*/*/{module.replace('.', '/')}/__main__.py")), module
        for call in tilt.of("local_resource"):
            assert call["serve_dir" if "serve_cmd" in call else "dir"] == str(ROOT)


def test_buttons_belong_to_resources_and_do_something(local, containers):
    for tilt in (local, containers):
        pressed = {button for call in tilt.of("cmd") for button in call["start_on"]["ui_buttons"]}
        buttons = tilt.named("ui_button")
        assert pressed == set(buttons)
        known = set(tilt.named("local_resource")) | set(tilt.named("dc_resource"))
        assert {button["location"]["component_id"] for button in buttons.values()} <= known
        kills = {f"kill-{name}" for name in SERVICES} | {"kill-worker"}
        assert kills | {f"stop-{name}" for name in ("etcd", "nats", "minio")} <= set(buttons)


@functools.cache
def imported(folder):
    """Parts of the project that the code in a folder imports by `from`, as all of our code does."""
    nodes = [node for file in folder.glob("distroml/**/*.py") for node in ast.walk(ast.parse(file.read_text()))]
    froms = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {module.split(".")[1] for module in froms if module.startswith("distroml.")}


def test_a_service_starts_again_when_its_code_or_a_library_of_it_changes(local, containers):
    folder = {part.name: part.parents[1] for kind in ("libs", "services") for part in ROOT.glob(f"{kind}/*/distroml/*")}
    for name in SERVICES:
        watched = {Path(path) for path in local.named("local_resource")[name]["deps"]}
        assert folder[name] in watched
        for one in watched:
            assert {folder[other] for other in imported(one)} <= watched, one
        build = next(call for call in containers.of("docker_build") if call["ref"] == f"distroml/{name}")
        synced = {Path(step["local_path"]).parent for step in build["live_update"] if step["built_in"] == "sync"}
        assert synced == watched
        assert build["live_update"][-1]["built_in"] == "restart_container"
    assert folder["runtime"] not in watched


def test_containers_are_those_of_the_compose_file(containers):
    (compose,) = containers.of("docker_compose")
    assert compose["configPaths"] == str(images.COMPOSE)
    assert not any("environment" in call["command"] for call in containers.of("local"))
    # Where there are no passwords yet, they are made first.
    first = Tilt({"mode": "containers"}).evaluate().of("local")
    assert first[-1]["command"] == [PYTHON, "-m", "deploy.docker", "environment"]
    for call in containers.of("docker_build"):
        for step in call.get("live_update", ()):
            if step["built_in"] == "sync":
                assert step["remote_path"] == "/opt/distroml/app/distroml"
    assert "--target /opt/distroml/app" in (ROOT / "deploy" / "docker" / "Dockerfile").read_text()


def test_what_is_wrong_is_said():
    with pytest.raises(Exception, match="there is no mode kubernetes"):
        Tilt({"mode": "kubernetes"}).evaluate()
    with pytest.raises(Exception, match="there is no server oracle to choose"):
        Tilt({"servers": ["oracle"]}).evaluate()
    assert Tilt({"resources": ["relay"]}).evaluate().of("set_enabled_resources") == [{"resources": ["relay"]}]
    chosen = set(Tilt({"servers": ["postgres"]}).evaluate().named("local_resource"))
    assert {"etcd", "nats", "minio", "postgres"} <= chosen
    assert "prometheus" not in chosen


def test_a_service_is_started_again_until_it_is_told_to_end(tmp_path):
    script = tmp_path / "count.py"
    script.write_text(
        "import os, pathlib, time; pathlib.Path('pids').open('a').write(f'{os.getpid()}\\n'); time.sleep(60)"
    )
    code = "import os, sys; from tilt.inside import again; os.chdir(sys.argv[1]); again(sys.argv[2:], os.environ)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), sys.executable, str(script)], cwd=ROOT)
    pids = tmp_path / "pids"

    def started(count):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if pids.exists() and len(found := pids.read_text().splitlines()) == count:
                return int(found[-1])
            time.sleep(0.02)
        raise AssertionError(f"it was not started {count} times")

    with process:
        first = started(1)
        os.kill(first, signal.SIGKILL)
        second = started(2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert not psutil.pid_exists(second)


def test_chaos_breaks_what_runs_and_says_where_nothing_does(tmp_path, monkeypatch, capsys):
    from deploy.stack import running
    from tilt import chaos

    monkeypatch.setenv("DISTROML_STACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(chaos, "STACK", tmp_path)
    monkeypatch.setattr(chaos, "DATA", tmp_path / "data")
    with running(Web("web"), tmp_path / "web") as web:
        chaos.pause(chaos.server("web"), 0)
        assert web.server.ready(web.ports)
        assert chaos.main(["server", "web"]) == 0
        assert not web.owner.alive
    assert [chaos.main([*words]) for words in (["server", "web"], ["service", "scheduler"], ["worker"])] == [1, 1, 1]
    assert "no worker runs: start the demo first" in capsys.readouterr().err
    mine = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)", "-m", "distroml.scheduler"],
        env=os.environ | {"DISTROML_DATA": str(tmp_path / "data")},
    )
    with mine:
        assert chaos.main(["service", "scheduler"]) == 0
        assert mine.wait(10) == -signal.SIGKILL
