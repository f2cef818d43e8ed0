"""What a machine lacks for the whole suite is named, with how to get it, and nothing that the suite installs itself."""

from __future__ import annotations

from dataclasses import replace

from tools.needs import Machine, lacking

BARE = Machine(
    which={"sudo": "/usr/bin/sudo", "go": "/usr/bin/go"}.get,
    says=lambda *command: "go version go1.25.3 linux/amd64",
    mounts="mount: must be superuser to use mount",
    absent=frozenset({"etcd", "nats", "elasticsearch", "postgres"}),
    root=False,
)


def test_each_thing_that_is_missing_is_named_with_how_to_get_it() -> None:
    compiler, mpi, browser, go, maven, debian, root = lacking(BARE)
    assert compiler == "c++: install it, as root (Debian: apt install g++)"
    assert "apt install openmpi-bin" in mpi
    assert "apt install chromium" in browser
    assert go == "Go 1.26 or newer on PATH, to build etcd, nats: https://go.dev/dl"
    assert maven == "mvn, to lay out elasticsearch: install Maven (Debian: apt install maven)"
    assert "to take postgres out of packages" in debian
    assert "run it as root (mount: must be superuser" in root


def test_what_the_suite_installs_and_what_is_in_the_cache_is_not_asked_for() -> None:
    debian = {name: f"/usr/bin/{name}" for name in ("apt-get", "dpkg-deb", "sudo")}
    able = replace(BARE, which=debian.get, mounts=None, absent=frozenset({"postgres"}))
    assert list(lacking(able)) == []
    assert len(list(lacking(replace(able, which={**debian, "sudo": None}.get)))) == 3, "only root may install"
    go = replace(able, which={**debian, "go": "/usr/bin/go"}.get, absent=frozenset({"jaeger"}))
    assert list(lacking(replace(go, says=lambda *command: "go version go1.30 linux/amd64"))) == []
    assert len(list(lacking(go))) == 1
