"""Each real server that comes quickly starts, does what it is for, and keeps it over a restart."""

import json
import subprocess
import urllib.parse
import urllib.request

import pytest

from deploy.stack import running
from deploy.stack.install import libraries
from deploy.stack.postgres import PASSWORD, Postgres
from deploy.stack.prometheus import Prometheus


def test_postgres_keeps_what_it_was_told(tmp_path):
    with running(Postgres(), tmp_path / "postgres") as server:
        url = server.server.settings(server.ports)["DISTROML_POSTGRES"]

        def ask(sql, url=url):
            command = [server.programs / "psql", url, "-Atqc", sql]
            done = subprocess.run(command, env=libraries(server.programs.parents[4]), capture_output=True, text=True)
            return done.stdout.strip() or done.stderr

        assert ask("show server_version").startswith(server.server.version)
        assert ask("show fsync") == "on"
        ask("create table t as select 42 as n")
        server.kill()
        server.restart()
        assert ask("select n from t") == "42"
        assert "password authentication failed" in ask("select 1", url.replace(PASSWORD, "guess"))
    assert "database system is shut down" in server.log()


def test_prometheus_scrapes_what_a_file_names(tmp_path, wait_until):
    with running(Prometheus(), tmp_path / "prometheus") as server:
        target = {"targets": [f"127.0.0.1:{server.port}"], "labels": {"service": "itself"}}
        # As by the file of a data folder, and by the one among those of all control planes.
        for name in ("itself", "again"):
            target["labels"]["__distroml_data"] = name
            (server.folder / "targets" / f"{name}.json").write_text(json.dumps([target]))

        def scraped():
            query = urllib.parse.urlencode({"query": 'up{service="itself"}'})
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/api/v1/query?{query}") as answer:
                return [one["value"][1] for one in json.load(answer)["data"]["result"]] == ["1"]

        wait_until(scraped, timeout_s=30)
        version = subprocess.run([server.programs / "promtool", "--version"], capture_output=True, text=True)
        assert f"version {server.server.version}" in version.stdout + version.stderr


@pytest.fixture
def wait_until():
    import time

    def wait(condition, *, timeout_s):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "it did not come to be in time"
            time.sleep(0.05)

    return wait
