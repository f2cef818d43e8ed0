"""Codecs on GPUs: Triton's kernels where they are the definition bit for bit, the definition elsewhere."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distroml.runtime.compress import native
from distroml.runtime.compress.codecs import INT8, TopK
from distroml.runtime.compress.codecs.fast import usable
from distroml.runtime.compress.native.library import Kind

HERE = Path(__file__).parent
CPU = torch.device("cpu")


def run(*arguments: str, **environment: str) -> str:
    """What a Python without GPUs says; it must end well."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=Path(__file__).parents[4], env=environment, capture_output=True, text=True, check=False, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.mark.e2e
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("tests", "interpret"), [("interpreted.py", "1"), ("compiled.py", "0")])
def test_kernels(tests: str, interpret: str, tmp_path: Path) -> None:
    """In processes of their own: whether Triton interprets is decided for good when it is imported."""
    said = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / tests),
        TRITON_INTERPRET=interpret, TRITON_CACHE_DIR=str(tmp_path),
    )  # fmt: skip
    assert " passed" in said


class Wrong(native.Kernels):
    """Encodes with a bit that is another."""

    def encode(
        self,
        kind: Kind,
        vector: torch.Tensor,
        residual: torch.Tensor | None,
        carry: float,
        seed: int,
        out: torch.Tensor,
        *,
        finite: bool = False,
    ) -> int:
        found = super().encode(kind, vector, residual, carry, seed, out, finite=finite)
        out[-1] ^= 1
        return found


class Failing(native.Kernels):
    """Cannot be compiled."""

    def add(self, kind: Kind, codes: torch.Tensor, total: torch.Tensor) -> None:
        raise RuntimeError("Failed to find C compiler")


@pytest.mark.parametrize(
    ("kernels", "why"), [(Wrong, "give other bits on cpu"), (Failing, "RuntimeError: Failed to find C compiler")]
)
def test_kernels_that_are_not_the_definition_are_not_used(
    kernels: type[native.Kernels], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert not usable(INT8, kernels(native.build.LIBRARY), CPU)
    (record,) = caplog.records
    assert "gradient compression by int8 works by slower code" in record.getMessage()
    assert why in record.getMessage()


@pytest.mark.parametrize("codec", [INT8, TopK(0.1)], ids=lambda codec: codec.name)
def test_kernels_that_are_it_are(codec: INT8 | TopK, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert usable(codec, native.Kernels(native.build.LIBRARY), CPU)
    assert not caplog.records


ON_THE_CPU = """
import sys, torch
from distroml.runtime.compress.codecs import INT8
INT8.encode(torch.ones(9), None, 1.0, 0, torch.empty(INT8.size(9), dtype=torch.uint8))
print("triton imported:", "triton" in sys.modules)
"""

ON_A_GPU = """
import logging, sys, torch
logging.basicConfig(format="WARNED %(message)s")
if sys.argv[1] == "missing":
    sys.modules["triton"] = None
from distroml.runtime.compress.codecs import INT4, INT8
from distroml.runtime.compress.codecs.fast import kernels_for
print([kernels_for(codec, torch.device("cuda", 0)) for codec in (INT8, INT8)])
"""


def test_a_process_without_a_gpu_does_not_import_triton() -> None:
    assert "triton imported: False" in run("-c", ON_THE_CPU)


@pytest.mark.parametrize(
    ("state", "why"), [("missing", "Triton cannot be imported"), ("there", "its kernels do not work on cuda:0")]
)
def test_without_triton_or_where_it_does_not_work_the_definition_runs_after_one_warning(state: str, why: str) -> None:
    said = run("-c", ON_A_GPU, state)
    assert "[None, None]" in said
    assert said.count("WARNED") == 1
    assert why in said
