"""Job files: every mistake is named with its line and a suggestion."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from distroml.cli import jobfile, spec
from distroml.cli.errors import UsageError
from distroml.cli.main import app


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


def test_a_whole_file_becomes_a_spec(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    path = write(
        tmp_path,
        "name: big\ncommand: [train.py, --lr, 0.1]\nworkers: {min: 2, max: 8}\nretry: {max_failures: 0}\n"
        "env: {A: 1}\npriority: -5\ncheckpoint:\n  keep: 2\n",
    )
    request = spec.from_job_file(jobfile.read(path).values, path)
    assert request.root == tmp_path.resolve()
    assert list(request.spec.command) == ["train.py", "--lr", "0.1"]
    assert (request.spec.workers.min, request.spec.workers.max) == (2, 8)
    assert request.spec.retry.HasField("max_failures")
    assert request.spec.retry.max_failures == 0
    assert dict(request.spec.env) == {"A": "1"}
    assert (request.spec.priority, request.spec.checkpoint.keep) == (-5, 2)


def test_all_mistakes_are_named_with_line_and_suggestion(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "comand: [train.py]\nworkers: many\nretry:\n  max_failure: 3\npriority: 1.5\nenv: [A=1]\npriority: 2\n",
    )
    with pytest.raises(UsageError) as caught:
        jobfile.read(path)
    text = caught.value.message
    assert "line 1: unknown field `comand`; did you mean `command`?" in text
    assert "line 2: `workers` takes a whole number or mapping, not 'many'" in text
    assert "line 4: unknown field `retry.max_failure`; did you mean `retry.max_failures`?" in text
    assert "line 5: `priority` takes a whole number, not '1.5'" in text
    assert "line 6: `env` takes a mapping of texts, not a list" in text
    assert "line 7: `priority` is given twice" in text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("priority: 99999999999", "`priority` is too large a number"),
        ("workers: {min: 1, max: -99999999999}", "`workers.max` is too large a number"),
        ("workers: 010", "`workers` takes a whole number or mapping, not '010'"),
        ("grace_s: 1:30", "`grace_s` takes a whole number, not '1:30'"),
    ],
)
def test_numbers_that_do_not_fit_or_are_not_meant_are_mistakes(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        jobfile.read(write(tmp_path, f"command: [train.py]\n{text}\n"))
    assert f"line 2: {problem}" in caught.value.message


def test_a_file_nested_without_end_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no YAML"):
        jobfile.read(write(tmp_path, "command: " + "[" * 5000))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "name: x\n"])
def test_a_file_without_a_command_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="command"):
        jobfile.read(write(tmp_path, text))


def test_what_is_no_yaml_says_where(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="line 2"):
        jobfile.read(write(tmp_path, "a: [1\nb: }\n"))


def test_a_yaml_object_tag_is_text_never_an_object(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes a text"):
        jobfile.read(write(tmp_path, "command: [a]\nname: !!python/object/apply:os.system ['true']\n"))


def test_options_that_a_job_file_has_fields_for_are_not_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path, "command: [train.py]\n")
    with pytest.raises(UsageError, match="--max-failures, --workers goes with a script, not with --file"):
        CliRunner().invoke(
            app, ["submit", "--file", str(path), "-w", "4", "--max-failures", "1"], catch_exceptions=False
        )


def test_every_field_is_described() -> None:
    text = (Path(__file__).parents[3] / "docs/jobs.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(jobfile.SCHEMA)
    for name, known in jobfile.SCHEMA.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        assert [below for below in known.below if below not in line] == []
