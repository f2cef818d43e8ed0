"""Results that benchmarks keep: found again while the code is the same, never mixed with those of other code."""

import re
from pathlib import Path

import pytest

from benchmarks.compression import sources
from benchmarks.compression.kept import Kept

pytestmark = pytest.mark.timeout(30)

CODE = {
    "runtime/step.py": '"""Steps."""\n\n\ndef step(n):\n    """One."""\n    return n + 1\n',
    "runtime/kernel.cpp": "int one() { return 1; }\n",
    "runtime/control/guard.py": "LIMIT = 3\n",
    "lesson/model.py": "WIDTH = 64\n",
}
PARTS = [Path("runtime"), Path("lesson/model.py")]


def write(root: Path, **changed: str) -> None:
    for name, text in (CODE | {name.replace("__", "/"): text for name, text in changed.items()}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "another"),
    [
        ("runtime/step.py", CODE["runtime/step.py"].replace("+ 1", "+ 2"), True),
        ("runtime/kernel.cpp", "int one() { return 2; }\n", True),
        ("lesson/model.py", "WIDTH = 128\n", True),
        ("runtime/new.py", "ANOTHER = 1\n", True),
        ("runtime/step.py", '"""Other words."""\n\n\ndef step(n):  # and these\n    return n + 1\n', False),
        ("runtime/README.md", "Other words.\n", False),
        ("lesson/train.py", "UNNAMED = 1\n", False),
        ("runtime/control/guard.py", "LIMIT = 4\n", False),
    ],
)
def test_code_has_another_name_once_it_does_something_else(tmp_path: Path, name: str, text: str, another: bool):
    write(tmp_path)
    before = sources.named(tmp_path, PARTS, without=Path("runtime/control"))
    write(tmp_path, **{name.replace("/", "__"): text})
    after = sources.named(tmp_path, PARTS, without=Path("runtime/control"))
    assert (before != after) is another


def test_what_is_left_out_counts_where_it_is_not_left_out(tmp_path: Path):
    write(tmp_path)
    assert sources.named(tmp_path, PARTS) != sources.named(tmp_path, PARTS, without=Path("runtime/control"))


def test_times_and_losses_have_names_of_the_code_that_is_here():
    assert re.fullmatch("[0-9a-f]{10}", sources.of_timings())
    assert sources.of_timings() != sources.of_losses()


def test_what_is_kept_is_found_again_and_its_commit_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "build" / "kept.json"
    Kept(fresh=False, file=file).put([1.5, 2], "timed", "abc", 100.0)
    assert Kept(fresh=False, file=file).get("timed", "abc", 100.0) == [1.5, 2]
    assert re.fullmatch(r"  kept, of commit ([0-9a-f]+\+?|unknown): timed abc 100\.0\n", capsys.readouterr().err)


def test_other_code_and_a_fresh_run_find_nothing_and_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "kept.json"
    Kept(fresh=False, file=file).put(1.0, "timed", "abc", 100.0)
    assert Kept(fresh=False, file=file).get("timed", "def", 100.0) is None
    assert Kept(fresh=True, file=file).get("timed", "abc", 100.0) is None
    assert capsys.readouterr().err == ""
