"""Our images are built and run by the compose file as it stands, on an engine of the test's own, and train there.

The servers' images are stand-ins with the stack's own programs, for no registry of images is asked. The agent's is
built without torch, which would take minutes and gigabytes: where it trains, the packages of this interpreter are
mounted behind its own, read-only. `TORCH_IN_IMAGE=1` builds it with torch as anybody does. Where no engine can be
started, one line says why.
"""

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from deploy.docker import engine, images, standins
from deploy.docker.__main__ import write_environment
from deploy.stack import running
from deploy.stack.install import cache_folder
from distroml.cli.plane.ports import free_ports

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
TAG = "tested"
PROJECT = "distroml-tested"
TORCH_IN_IMAGE = os.environ.get("TORCH_IN_IMAGE", "") == "1"
# Dockerfiles are given what the stand-in for Python's image lacks, and spared a compiler and torch.
ARGUMENTS = {"PYTHON_IMAGE": standins.BASE, "BUILD_PACKAGES": ""} | ({} if TORCH_IN_IMAGE else {"TRAINING_EXTRAS": ""})
NODES = 2
# The example, so small that most of its time goes into reading what it learns.
SMALL = """
[model]
layers = 1
width = 32
heads = 2
context = 32
[training]
steps = 6
checkpoint_every = 3
[evaluation]
windows = 16
global_batch = 8
[sample]
length = 20
"""
PORTS = (
    "SCHEDULER_PORT",
    "RENDEZVOUS_PORT",
    "CHECKPOINT_PORT",
    "TELEMETRY_PORT",
    "DASHBOARD_PORT",
    "MINIO_CONSOLE_PORT",
)


class Containers:
    """The compose file's project on an engine."""

    def __init__(self, environment, file):
        self.environment, self.file = environment, file
        lines = (line.partition("=") for line in file.read_text().splitlines() if line and not line.startswith("#"))
        self.told = {name: value for name, _, value in lines}
        self.files = [images.COMPOSE]

    def docker(self, *words):
        done = subprocess.run(["env", "docker", *words], env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"docker {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def compose(self, *words):
        files = [word for file in self.files for word in ("--file", str(file))]
        return self.docker("compose", *files, "--env-file", str(self.file), "--project-name", PROJECT, *words)

    def inside(self, service, *command):
        return self.compose("exec", "-T", service, *command)

    def states(self):
        lines = [json.loads(line) for line in self.compose("ps", "--format", "json").splitlines()]
        return {line["Service"]: line["Health"] for line in lines}

    def wait_healthy(self):
        deadline = time.monotonic() + 120
        while set(self.states().values()) != {"healthy"} or set(images.SERVICES) - set(self.states()):
            assert time.monotonic() < deadline, self.compose("logs", "--tail", "20")
            time.sleep(0.5)


@pytest.fixture(scope="module")
def containers(tmp_path_factory):
    if why := engine.obstacle():
        # A developer's machine may have no engine and no rights to begin one; continuous integration has to.
        assert not os.environ.get("CI"), f"images cannot be built: {why}"
        pytest.skip(f"images are not built here: {why}")
    cache = cache_folder()
    # Beside the programs, so that layers of earlier builds are there; a socket's name must be short.
    folder = cache / "docker-engine"
    docker = engine.Docker(folder)
    with engine.unmounted(folder), running(docker, folder):
        environment = {**os.environ, **engine.client(cache), **docker.settings({})}
        standins.prepare(cache, environment)
        images.build(images.SERVICES, tag=TAG, arguments=ARGUMENTS, environment=environment, host_network=True)
        file = tmp_path_factory.mktemp("compose") / ".env"
        write_environment(file)
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        with file.open("a") as more:
            # One worker on each node: what they say to one another goes from container to container.
            own = {"DISTROML_TAG": TAG, "DISTROML_SLOTS": 1, **ports}
            more.writelines(f"{name}={value}\n" for name, value in own.items())
        found = Containers(environment, file)
        found.compose("down", "--volumes", "--timeout", "5")
        try:
            yield found
        finally:
            found.compose("down", "--volumes", "--timeout", "5")
            # What the next change of code makes useless.
            found.docker("image", "prune", "--force")


@pytest.fixture
def outside(containers, tmp_path, monkeypatch):
    """The command line of this machine is told of the containers: by the published ports and the token."""
    token = tmp_path / "token"
    token.write_text(containers.told["DISTROML_TOKEN"])
    monkeypatch.setenv("DISTROML_TOKEN_FILE", str(token))
    for name in ("SCHEDULER", "RENDEZVOUS", "CHECKPOINT", "TELEMETRY"):
        monkeypatch.setenv(f"DISTROML_{name}", f"127.0.0.1:{containers.told[f'{name}_PORT']}")


def test_the_platform_comes_up_in_containers_and_outlives_crashes(containers, outside):
    containers.compose("config", "--quiet")
    containers.compose("up", "--detach", "--no-build", "--wait", "--wait-timeout", "240", *images.SERVICES)
    assert containers.states() == dict.fromkeys((*images.SERVICES, *standins.SERVERS), "healthy")

    # Each is nobody in particular, without torch where none is needed, and keeps no secret in its image.
    for name in images.SERVICES:
        assert containers.inside(name, "id", "-u").strip() == "10001"
        assert containers.inside(name, "stat", "-c", "%a %u", "/run/distroml/token").strip() == "600 10001"
        shown = json.loads(containers.docker("image", "inspect", images.reference(name, TAG)))[0]
        assert shown["Config"]["User"] == "10001:10001"
        assert shown["Config"]["Healthcheck"]
        history = containers.docker("history", "--no-trunc", images.reference(name, TAG))
        assert not [secret for secret in secrets(containers.told) if secret in history + json.dumps(shown)]
        base = json.loads(containers.docker("image", "inspect", standins.BASE))[0]["Size"]
        packages = containers.inside(name, "pip", "list", "--format", "freeze").lower()
        trains = name == "agent" and TORCH_IN_IMAGE
        assert ("torch==" in packages) == trains
        assert trains or shown["Size"] - base < 250 << 20
        assert "grpcio==" in packages

    # From this machine.
    (node,) = json.loads(distroml("nodes", "--json"))
    assert node["slots"]
    port = int(containers.told["DASHBOARD_PORT"])
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as dashboard:
        dashboard.request("GET", f"/login?token={containers.told['DISTROML_TOKEN']}")
        answer = dashboard.getresponse()
        # It lets us in; what it shows of the past needs PostgreSQL, which is not there.
        assert answer.status == 303
        assert answer.getheader("set-cookie")
    # And inside the network, by the image's own command line.
    assert node["id"] in containers.compose("run", "--rm", "distroml", "nodes", "--json")

    # A crash of a service, and one of the server that takes its commits.
    containers.inside("scheduler", "sh", "-c", "kill -9 $(cat /proc/1/task/1/children)")
    containers.compose("kill", "--signal", "KILL", "etcd")
    containers.compose("up", "--detach", "--no-build", "--wait", "etcd")
    containers.wait_healthy()
    assert json.loads(distroml("nodes", "--json"))[0]["id"] == node["id"]
    assert "verified" in distroml("replay", "--verify")


def test_a_job_trains_in_containers_on_two_nodes(containers, outside, tmp_path):
    if not TORCH_IN_IMAGE:
        containers.files[1:] = [borrowed_torch(containers, tmp_path)]
    containers.compose(
        *("up", "--detach", "--no-build", "--wait", "--wait-timeout", "240", "--scale", f"agent={NODES}"),
        *images.SERVICES,
    )
    deadline = time.monotonic() + 60
    while len(nodes := json.loads(distroml("nodes", "--json"))) < NODES:
        assert time.monotonic() < deadline, containers.compose("logs", "--tail", "20", "agent")

    code = tmp_path / "code"
    shutil.copytree(images.ROOT / "examples" / "gpt", code, ignore=shutil.ignore_patterns("__pycache__"))
    (code / "small.toml").write_text(SMALL)
    words = ("--bundle", str(code), "--workers", str(NODES), "--name", "gpt", "train.py", "--config", "small.toml")
    # It follows the job, and ends with 0 only when that succeeded.
    assert "held-out loss" in distroml("run", *words)

    assert json.loads(distroml("job", "show", "gpt", "--json"))["state"] == "JOB_STATE_SUCCEEDED"
    (formed,) = happened("gpt", "GenerationFormed")
    assert {member["node"] for member in formed["generation"]["members"]} == {node["id"] for node in nodes}
    assert "[0] data: " in distroml("job", "logs", "gpt")
    # What is committed lies in the store of objects, which the catalogue reads byte by byte.
    assert [int(one["step"]) for one in happened("gpt", "Committed")] == [3, 6]
    assert json.loads(distroml("checkpoints", "verify", "gpt", "--json"))["sound"]


def borrowed_torch(containers, folder):
    """A compose file that has agents import this interpreter's packages where their image has none of that name."""
    ask = "import sys, sysconfig; print(*sys.version_info[:2], sysconfig.get_path('purelib'))"
    *version, site = containers.docker(
        "run", "--rm", "--network", "none", images.reference("agent", TAG), "python3", "-c", ask
    ).split()
    if version != [str(part) for part in sys.version_info[:2]]:
        assert not os.environ.get("CI"), "the torch of this interpreter fits the image's"
        pytest.skip(f"this interpreter's torch is for another Python than the image's {'.'.join(version)}")
    mine = Path(pytest.__file__).parents[1]
    # Folders that such a file names come behind all others, unlike those of PYTHONPATH.
    names = folder / "borrowed.pth"
    names.write_text("/opt/borrowed\n")
    volumes = [f"{mine}:/opt/borrowed:ro", f"{names}:{site}/borrowed.pth:ro"]
    file = folder / "borrowed.yaml"
    file.write_text(yaml.safe_dump({"services": {"agent": {"volumes": volumes}}}))
    return file


def happened(job, name):
    """What the job's events of this name say."""
    events = [json.loads(line) for line in distroml("events", job, "--json").splitlines()]
    return [event["data"] for event in events if event["type"].endswith("." + name)]


def secrets(told):
    return [value for name, value in told.items() if name == "DISTROML_TOKEN" or name.endswith("PASSWORD")]


def distroml(*words):
    done = subprocess.run([sys.executable, "-m", "distroml.cli", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
