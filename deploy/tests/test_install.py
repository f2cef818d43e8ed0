"""Programs come into the cache once, whole, or not at all."""

import os
import threading
from pathlib import Path

import pytest

from deploy.stack.elasticsearch import Elasticsearch
from deploy.stack.install import cache_folder, go_build, go_build_pinned, once, run
from deploy.stack.server import StackError


def test_of_many_at_once_one_installs(tmp_path):
    made, start, folders = [], threading.Barrier(4), []

    def make(folder):
        made.append(folder)
        (folder / "program").write_text("x")

    def ask():
        start.wait()
        folders.append(once(tmp_path, "web", "1", make))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert set(folders) == {tmp_path / "web-1"}
    assert (tmp_path / "web-1" / "program").read_text() == "x"


def test_half_an_installation_is_none(tmp_path):
    def make(folder):
        (folder / "half").touch()
        raise StackError("the line went dead")

    with pytest.raises(StackError, match="dead"):
        once(tmp_path, "web", "1", make)
    assert [path.name for path in tmp_path.iterdir()] == [".web-1.lock"]


def test_another_version_is_another_folder(tmp_path):
    assert once(tmp_path, "web", "1", lambda _: None) != once(tmp_path, "web", "2", lambda _: None)


def test_a_command_that_fails_tells_what_it_said():
    with pytest.raises(StackError, match=r"installing web 1: `sh -c .*` failed with status 4:\nno disk"):
        run("web 1", ["sh", "-c", "echo no disk >&2; exit 4"])


def test_without_go_one_is_told_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StackError, match=r"no `go` on PATH: install Go"):
        go_build(tmp_path, "web", "1", "go 1.25\n", {"web": "example.test/web"})


def test_a_large_program_is_built_with_its_module_s_own_versions(tmp_path, monkeypatch):
    module, tools = tmp_path / "module", tmp_path / "tools"
    for folder in (module, tools):
        folder.mkdir()
    (module / "go.mod").write_text("module example.test/web\n\ngo 1.25\n\nreplace a => b v1.0.0\n")
    (module / "go.sum").write_text("sums\n")
    # Go as far as it concerns us: says where the module lies, and keeps what it is asked to build.
    (tools / "go").write_text(
        "#!/bin/sh\n"
        f'[ "$1" = mod ] && echo \'{{"Dir": "{module}"}}\'\n'
        'if [ "$1" = build ]; then for last; do :; done; { cat go.mod go.sum; echo "$3" "$last"; } > "$5"; fi\n'
        "exit 0\n"
    )
    (tools / "go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    folder = go_build_pinned(tmp_path / "cache", "web", "1", "example.test/web@v1.2.3", "cmd/web", flags="-X v=1")
    assert (folder / "web").read_text() == (
        "module local/build\n\ngo 1.25\n\nreplace a => b v1.0.0\n\nrequire example.test/web v1.2.3\n"
        "sums\n-ldflags=-s -w -X v=1 example.test/web/cmd/web\n"
    )


def test_the_cache_is_where_the_user_says(monkeypatch):
    monkeypatch.delenv("DISTROML_STACK_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/distroml/stack")
    monkeypatch.setenv("DISTROML_STACK_CACHE", "/y")
    assert cache_folder() == Path("/y")


def test_elasticsearch_says_what_it_is_laid_out_by(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StackError, match="apt install maven"):
        Elasticsearch().install(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("elasticsearch-*"))
