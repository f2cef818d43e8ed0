"""The compose file against the code, and against what servers are run elsewhere: no engine is needed."""

import os
import re
import subprocess
import tomllib
from collections.abc import Mapping

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from deploy.docker import images
from deploy.docker.__main__ import EXAMPLE, write_environment
from deploy.docker.engine import obstacle
from deploy.docker.requirements import needed
from deploy.stack import StackError, registry
from distroml.agent.agent import DOWN_S
from distroml.agent.settings import AgentSettings
from distroml.checkpoint.settings import CheckpointSettings
from distroml.relay.settings import RelaySettings
from distroml.rendezvous.settings import RendezvousSettings
from distroml.scheduler.settings import SchedulerSettings
from distroml.telemetry.settings import TelemetrySettings

ROOT = images.ROOT
COMPOSE = yaml.safe_load(images.COMPOSE.read_text())
SERVICES = COMPOSE["services"]
BASE = ROOT / "deploy" / "docker" / "Dockerfile"
READ = {
    "scheduler": SchedulerSettings.read,
    "rendezvous": RendezvousSettings.read,
    "checkpoint": CheckpointSettings.read,
    "telemetry": TelemetrySettings.read,
    "relay": RelaySettings.read,
    "agent": lambda environ, _: AgentSettings.read_agent(environ),
}
# By names that are not ours: what reads them, as our code or a library that it uses names them.
FOREIGN = re.compile(r"AWS_|OTEL_|PG")
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::[-?][^}]*)?}")


class Environment(Mapping):
    """Variables that note which of them were asked for."""

    def __init__(self, values):
        self.values_, self.asked = values, set()

    def __getitem__(self, name):
        self.asked.add(name)
        return self.values_[name]

    def __iter__(self):
        return iter(self.values_)

    def __len__(self):
        return len(self.values_)

    def __contains__(self, name):
        self.asked.add(name)
        return name in self.values_


@pytest.fixture
def environment(tmp_path):
    """What `deploy/.env` holds."""
    write_environment(tmp_path / ".env")
    lines = (tmp_path / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def instructions(dockerfile):
    """Its lines without comments, each whole."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    return "\n".join(lines).replace("\\\n", "").splitlines()


def filled(text, environment):
    return VARIABLE.sub(lambda found: environment[found[1]], text)


def test_every_service_of_ours_is_there_and_is_told_only_what_it_reads(environment, tmp_path):
    folders = {folder.name for folder in (ROOT / "services").iterdir() if (folder / "distroml").is_dir()}
    assert folders == set(READ) == set(images.SERVICES)
    code = "".join(
        file.read_text() for kind in ("libs", "services") for file in ROOT.glob(f"{kind}/*/distroml/**/*.py")
    )
    token = tmp_path / "token"
    token.write_text(environment["DISTROML_TOKEN"])
    token.chmod(0o600)
    for name, read in READ.items():
        told = {key: filled(value, environment) for key, value in SERVICES[name]["environment"].items()}
        for dockerfile in (BASE, ROOT / "services" / name / "Dockerfile"):
            lines = [line for line in instructions(dockerfile) if line.startswith("ENV ")]
            told |= dict(re.findall(r"(DISTROML_[A-Z_]+)=(\S+)", "".join(lines)))
        asked = Environment(told | {"DISTROML_TOKEN_FILE": str(token), "DISTROML_DATA": str(tmp_path)})
        settings = read(asked, name)
        assert settings.deployment == environment["DISTROML_DEPLOYMENT"]
        assert settings.listen.endswith(":7100")
        assert settings.metrics_listen.endswith(":9100")
        assert set(settings.peers) == {"scheduler", "rendezvous", "checkpoint", "telemetry"} <= set(SERVICES)
        unread = {key for key in told if key not in asked.asked}
        assert [key for key in unread if not FOREIGN.match(key)] == []
        assert all(key in code for key in unread if not key.startswith("PG"))


def test_addresses_lead_to_services_of_the_file():
    for service in SERVICES.values():
        for value in (service.get("environment") or {}).values():
            for host, port in re.findall(r"(?:^|//|@)([a-z]+):(\d+)", str(value)):
                if host != "http":
                    assert host in SERVICES, f"{host}:{port}"


def test_everything_that_the_file_asks_for_is_in_the_example():
    text = images.COMPOSE.read_text()
    told = {line.split("=")[0] for line in EXAMPLE.read_text().splitlines() if line and not line.startswith("#")}
    assert {name for name in VARIABLE.findall(text)} - {"PWD"} == told
    # What has no default is a secret, or who the installation is: never in the file, always asked for.
    for name in ("DISTROML_TOKEN", "NATS_PASSWORD", "MINIO_PASSWORD", "POSTGRES_PASSWORD", "ELASTIC_PASSWORD"):
        assert f"${{{name}:?" in text
        assert f"{name}=\n" in EXAMPLE.read_text()


def test_secrets_are_fresh_and_for_the_owner_only(environment, tmp_path):
    file = tmp_path / ".env"
    assert file.stat().st_mode & 0o777 == 0o600
    secrets = [value for name, value in environment.items() if name == "DISTROML_TOKEN" or name.endswith("PASSWORD")]
    assert len(set(secrets)) == len(secrets) == 6
    assert all(re.fullmatch(r"s[0-9a-f]{48}", secret) for secret in secrets)
    with pytest.raises(StackError, match="is there already"):
        write_environment(file)


def test_servers_are_those_of_the_stack_at_their_versions():
    for name in set(registry.names()) - registry.SECOND:
        version, tag = registry.server(name).version, SERVICES[name]["image"].rpartition(":")[2]
        if name == "minio":
            # Its makers publish no image of the version that the stack builds.
            assert re.fullmatch(r"RELEASE\.2025-.*Z", tag)
        else:
            assert re.match(rf"v?{re.escape(version)}(\W|$)", tag), f"{name}: {tag} is not {version}"
    for service in SERVICES.values():
        assert not service["image"].endswith(":latest")
        assert ":" in service["image"]


def test_the_network_is_inside_and_the_machine_sees_loopback_only():
    for name, service in SERVICES.items():
        assert service["networks"] == ["distroml"], name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port}"
    published = [re.search(r":-(\d+)", port)[1] for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(set(published)) == len(published)


def test_nobody_waits_for_what_only_observes_and_what_is_waited_for_is_checked():
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "test" in SERVICES[other].get("healthcheck", {}) or other in images.SERVICES
            if name in images.SERVICES:
                assert other not in ("postgres", "elasticsearch", "jaeger", "prometheus", "grafana")
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    assert {volume for volume in used if re.fullmatch(r"[a-z]+", volume)} == set(COMPOSE["volumes"])
    for volume in used:
        if volume.startswith("./"):
            assert (images.COMPOSE.parent / volume).exists()


def test_an_agent_is_given_the_time_to_end_its_workers_with_itself():
    assert SERVICES["agent"]["init"]
    assert float(SERVICES["agent"]["stop_grace_period"].removesuffix("s")) > DOWN_S
    assert "/node/down" in (ROOT / "services" / "agent" / "Dockerfile").read_text()


def test_nats_acknowledges_what_is_on_disk():
    assert "sync_interval: always" in (ROOT / "deploy" / "docker" / "nats.conf").read_text()


def test_dockerfiles_are_small_and_end_as_nobody_in_particular():
    for image in images.images():
        assert "# syntax=" not in image.dockerfile.read_text()
        text = "\n".join(instructions(image.dockerfile))
        assert not re.search(r"(?i)password|token\s*=|secret", text)
        if image.name in images.SERVICES:
            users = re.findall(r"^USER (\S+)", text, re.MULTILINE)
            assert users in ([], ["root", "10001:10001"])
            assert f"-m distroml.{image.name}" in text.replace('", "', " ")
            assert set(image.arguments) <= images.declared(image.dockerfile)
            # torch is where training is, and nowhere else.
            assert ("torch" in text) == (image.name == "agent")
    base = BASE.read_text()
    assert base.index("HEALTHCHECK") > base.index("USER 10001:10001")


def test_the_builder_is_sent_sources_only():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "**"
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", BASE.read_text(), re.MULTILINE)
    sent = {line.removeprefix("!").removesuffix("/**") for line in lines if line.startswith("!")}
    assert {source for line in copied for source in line.split()} == sent
    assert all((ROOT / source).exists() for source in sent)
    assert {"**/tests", "**/__pycache__"} <= set(lines)


def test_every_package_of_an_image_is_pinned_to_a_version_that_the_project_takes():
    pins = (ROOT / "deploy" / "docker" / "constraints.txt").read_text().splitlines()
    pinned = {}
    for line in pins:
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            pinned.setdefault(requirement.name, []).append(next(iter(requirement.specifier)).version)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in needed(project, ["services", "stack", "cli", "dashboard", "torch"]):
        requirement = Requirement(text)
        versions = pinned.get(requirement.name, [])
        assert versions, f"{requirement.name} has no pin: run `make pins`"
        assert all(requirement.specifier.contains(version) for version in versions), f"{text}: run `make pins`"
    # The same torch built for CPUs alone, where an index that pip is told of has it, goes before the one for GPUs.
    (torch,) = (Requirement(line) for line in pins if line.startswith("torch=="))
    (version,) = pinned["torch"]
    assert torch.specifier.contains(f"{version}+cpu")
    assert Version(f"{version}+cpu") > Version(version)


def test_who_cannot_start_an_engine_is_told_why():
    assert obstacle(user=1000) == "an engine of one's own needs the superuser"


def test_an_image_that_nobody_has_is_refused(capsys):
    with pytest.raises(StackError, match="there is no image oracle"):
        images.images(["oracle"])
    shown = subprocess.run(
        ["python3", str(ROOT / "deploy/docker/requirements.py"), "rpc"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    ).stdout
    assert shown.startswith("--constraint ")
    assert "grpcio>=1.71,<2\n" in shown
