"""Kernels are built at installation, and whatever is wrong with them costs speed and one warning, nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from distroml.runtime.compress.native import Kernels, Unusable, build

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]  # compiles, and starts interpreters that import torch

ROOT = Path(__file__).parents[4]

# Encodes by whatever this installation has, and says with what and how often that was warned of.
PROGRAM = """
import logging, sys
from pathlib import Path
import torch
from distroml.runtime.compress import native
from distroml.runtime.compress.codecs import INT8, SIGN, TopK
native.LIBRARY = Path(sys.argv[1])
logging.basicConfig(format="WARNED %(message)s")
x = torch.randn(1000, generator=torch.Generator().manual_seed(1))
for codec in (INT8, SIGN, TopK(0.1), INT8):
    residual, code = torch.ones(1000), torch.empty(codec.size(1000), dtype=torch.uint8)
    codec.encode(x, residual, 2.0, 3, code)
    print(code.sum().item(), residual.double().sum().item())
print("kernels", native.kernels() is not None, file=sys.stderr)
"""


def encode_with(library: Path) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(library)], capture_output=True, text=True, check=True, timeout=250
    )
    return done.stdout, done.stderr


def built_by(cxx: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    monkeypatch.setenv("CXX", cxx)
    return build.build(folder / "kernels.so")


def test_without_kernels_codes_are_the_same_and_one_warning_says_what_to_do(tmp_path: Path) -> None:
    slow, said = encode_with(tmp_path / "missing.so")
    fast, quiet = encode_with(build.LIBRARY)
    assert slow == fast
    assert "kernels False" in said
    assert said.count("WARNED") == 1
    assert "apt install g++" in said
    assert "make setup" in said
    assert "kernels True" in quiet
    assert "WARNED" not in quiet


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "were not built"), (b"no library at all", "do not load")],
)
def test_a_library_that_cannot_be_used_says_why(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "kernels.so"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Unusable, match=why):
        Kernels(path)


def test_a_library_of_other_sources_is_not_used(tmp_path: Path) -> None:
    stale = tmp_path / "kernels.so"
    content = build.LIBRARY.read_bytes()
    assert build.sources_hash().encode() in content
    stale.write_bytes(content.replace(build.sources_hash().encode(), b"0123456789abcdef"))
    with pytest.raises(Unusable, match=r"other sources \(0123456789abcdef"):
        Kernels(stale)


def test_a_broken_compiler_leaves_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernels.so").write_bytes(b"an old one")
    broken = tmp_path / "cxx"
    broken.write_text("#!/bin/sh\necho internal compiler error >&2\nexit 4\n")
    broken.chmod(0o755)
    with pytest.raises(build.BuildFailed, match="internal compiler error"):
        built_by(str(broken), monkeypatch, tmp_path)
    assert not (tmp_path / "kernels.so").exists()


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(build.BuildFailed, match="no-such-compiler could not be run"):
        built_by("no-such-compiler", monkeypatch, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildFailed, match=r"no C\+\+ compiler was found"):
        built_by("", monkeypatch, tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the place of a folder")
    with pytest.raises(build.BuildFailed, match=r"file/kernels.so could not be written"):
        build.build(tmp_path / "file" / "kernels.so")


def pack(folder: Path, cxx: str) -> tuple[Path, str]:
    """A wheel of a copy of the runtime alone, and what was said while it was made."""
    source = folder / "source"
    shutil.copytree(
        ROOT / "libs/runtime/distroml", source / "libs/runtime/distroml", ignore=shutil.ignore_patterns("*.so")
    )
    shutil.copytree(ROOT / "examples/gpt", source / "examples/gpt")
    shutil.copy(ROOT / "hatch_build.py", source)
    shutil.copy(ROOT / ".gitignore", source)
    shutil.copy(ROOT / "README.md", source)
    shutil.copy(ROOT / "pyproject.toml", source)
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"],
        cwd=source, env=os.environ | {"CXX": cxx}, capture_output=True, text=True, check=True, timeout=250,
    )  # fmt: skip
    (wheel,) = (source / "dist").glob("*.whl")
    return wheel, done.stderr


LIBRARY_IN_WHEEL = "distroml/runtime/compress/native/kernels.so"


def test_a_wheel_holds_the_kernels_and_names_its_platform(tmp_path: Path) -> None:
    wheel, said = pack(tmp_path, f"{build.compiler()[0]} -Wall")  # a compiler may have arguments
    assert wheel.name.startswith("distroml-0.1.0-py3-none-")
    assert not wheel.name.endswith("-any.whl"), said
    with zipfile.ZipFile(wheel) as packed:
        packed.extract(LIBRARY_IN_WHEEL, tmp_path)
        assert "distroml/runtime/compress/native/abi.cpp" in packed.namelist()
        # What `distroml demo` trains, beside the module that looks for it.
        assert {f"distroml/cli/examples/gpt/{name}" for name in ("train.py", "gpt.toml")} <= set(packed.namelist())
    assert Kernels(tmp_path / LIBRARY_IN_WHEEL).first_nonfinite(torch.tensor([1.0, float("nan")])) == 1


def test_a_wheel_without_a_compiler_is_a_pure_one(tmp_path: Path) -> None:
    wheel, said = pack(tmp_path, "no-such-compiler")
    assert wheel.name == "distroml-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as packed:
        assert LIBRARY_IN_WHEEL not in packed.namelist()
    assert "slower code" in said
    assert "no-such-compiler" in said
