"""From a command line to a job spec."""

from pathlib import Path

import pytest

from distroml.cli import spec
from distroml.cli.errors import UsageError


@pytest.mark.parametrize(("text", "bounds"), [("1", (1, 1)), ("4", (4, 4)), ("2..8", (2, 8))])
def test_workers(text: str, bounds: tuple[int, int]) -> None:
    assert spec.parse_workers(text) == bounds


@pytest.mark.parametrize("text", ["", "x", "0", "3..2", "-1", "2..x"])
def test_workers_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError, match="--workers"):
        spec.parse_workers(text)


def test_environment_pairs() -> None:
    assert spec.parse_env(["A=1", "B=x=y", "C="]) == {"A": "1", "B": "x=y", "C": ""}
    with pytest.raises(UsageError, match="'BAD'"):
        spec.parse_env(["A=1", "BAD"])


@pytest.mark.parametrize(
    ("command", "name"),
    [(["train.py"], "train"), (["a/My Model_v2.py"], "my-model_v2"), (["-m", "pkg.run"], "run"), (["___.py"], "job")],
)
def test_default_names_are_legal(command: list[str], name: str) -> None:
    assert spec.default_name(command) == name


def test_the_bundle_is_the_working_folder_when_the_script_lies_in_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/train.py").write_text("")
    root = spec.resolve_root(["sub/train.py"], None, tmp_path)
    assert root == tmp_path.resolve()
    assert spec.relative_command(["sub/train.py", "x"], root, tmp_path) == ["sub/train.py", "x"]


def test_a_script_elsewhere_brings_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    script = tmp_path / "there/train.py"
    script.write_text("")
    root = spec.resolve_root([str(script)], None, tmp_path / "here")
    assert root == (tmp_path / "there").resolve()
    assert spec.relative_command([str(script)], root, tmp_path / "here") == ["train.py"]


def test_a_missing_script_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no script .*nope\.py"):
        spec.resolve_root(["nope.py"], None, tmp_path)


def test_a_script_outside_the_named_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "train.py").write_text("")
    with pytest.raises(UsageError, match="not below"):
        spec.relative_command(["train.py"], (tmp_path / "code").resolve(), tmp_path)


def test_compression_is_read_into_its_one_spelling(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("")
    more = {"name": "", "workers": "1", "env": [], "bundle": None, "priority": 0, "max_failures": None, "keep": None}
    assert spec.from_command([str(script)], compress=" PowerSGD:4+int8", **more).spec.compress == "powersgd:4+int8"
    assert spec.from_command([str(script)], **more).spec.compress == ""
    asked = spec.from_job_file({"command": ["train.py"], "compress": "auto"}, tmp_path / "job.yaml")
    assert asked.spec.compress == "auto"


def test_how_often_replicas_meet_reaches_the_spec(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.touch()
    more = {"name": "", "workers": "1", "env": [], "bundle": None, "priority": 0, "max_failures": None, "keep": None}
    assert spec.from_command([str(script)], sync_every=50, **more).spec.sync_every == 50
    assert spec.from_command([str(script)], **more).spec.sync_every == 0
    asked = spec.from_job_file({"command": ["train.py"], "sync_every": 8}, tmp_path / "job.yaml")
    assert asked.spec.sync_every == 8


def test_compression_that_is_none_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    with pytest.raises(UsageError, match=r"--compress: .*'powersgd': the rank is missing; write powersgd:4"):
        spec.compression("powersgd", "--compress")
    with pytest.raises(UsageError, match=r"job\.yaml: `compress`: .*'init8': there is no such scheme; write int8"):
        spec.from_job_file({"command": ["train.py"], "compress": "init8"}, tmp_path / "job.yaml")


MORE = {"name": "", "env": [], "bundle": None, "priority": 0, "max_failures": None, "keep": None}


@pytest.mark.parametrize(("text", "name"), [("", ""), ("auto", ""), (" MPI ", "mpi"), ("nccl", "nccl")])
def test_a_back_end_is_read_into_its_one_spelling(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "train.py").write_text("")
    command = spec.from_command([str(tmp_path / "train.py")], workers="2", backend=text, **MORE)
    assert command.spec.backend == name
    file = spec.from_job_file({"command": ["train.py"], "workers": 2, "backend": text}, tmp_path / "job.yaml")
    assert file.spec.backend == name


def test_a_back_end_that_is_none_or_cannot_carry_the_workers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    with pytest.raises(UsageError, match=r"--backend: there is no back end 'gluu'; did you mean gloo\?"):
        spec.from_command([str(tmp_path / "train.py")], workers="2", backend="gluu", **MORE)
    with pytest.raises(UsageError, match=r"--backend: .* use auto, gloo, nccl or mpi"):
        spec.from_command([str(tmp_path / "train.py")], workers="2", backend="x", **MORE)
    wanted = {"command": ["train.py"], "workers": {"min": 2, "max": 4}, "backend": "mpi"}
    with pytest.raises(UsageError, match=r"job\.yaml: `backend`: an MPI world keeps its size, .* 2\.\.4 workers"):
        spec.from_job_file(wanted, tmp_path / "job.yaml")
