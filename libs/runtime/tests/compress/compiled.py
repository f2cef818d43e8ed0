"""Run by `test_gpu.py` in a process of its own: Triton compiles what is launched, for GPUs that are not there."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from distroml.runtime.compress.codecs import BF16, INT4, INT8, SIGN, TopK
from distroml.runtime.compress.gpu.launching import Kernels

TYPES = {torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8"}
KINDS = ("int8", "int4", "sign", "bf16")
CODECS = {codec.name: codec for codec in (INT8, INT4, SIGN, BF16, TopK(0.3))}
# What rounds otherwise than the definition: fused, approximate, or with denormal numbers as zero.
INEXACT = re.compile(r".*(?:\bfma\b|\bdiv\.full|\.approx|\.ftz).*")


def compiled(capability: int, kernel: Any, arguments: tuple[object, ...], known: dict[str, object]) -> str:
    """The kernel's PTX, after the assembler took it, with what a launch lets the compiler know of its arguments."""
    constants, signature, aligned = dict(known), dict[str, str](), list[str]()
    for name, value in zip(kernel.arg_names, arguments, strict=False):
        match value:
            case torch.Tensor():
                signature[name], at = TYPES[value.dtype], value.data_ptr()
            case float():
                signature[name], at = "fp32", 1
            case int() if value != 1 or name == "seed":
                signature[name], at = "i32", 1 if name == "seed" else value
            case _:
                constants[name], at = value, 1
        if at % 16 == 0:
            aligned.append(name)
    source = ASTSource(
        kernel,
        {name: signature.get(name, "constexpr") for name in kernel.arg_names},
        constants,
        {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    found = triton.compile(source, GPUTarget("cuda", capability, 32), {"enable_fp_fusion": False})
    assert found.asm["cubin"]
    return found.asm["ptx"]


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(("capability", "numel", "feedback"), [(90, 4096, True), (80, 1, False)])
def test_what_is_launched_compiles_and_rounds_as_the_definition(
    name: str, capability: int, numel: int, feedback: bool
) -> None:
    seen = set[str]()

    def launch(kernel: Any, programs: int, *arguments: object, **known: object) -> None:
        assert programs > 0
        assert not INEXACT.findall(compiled(capability, kernel, arguments, known))
        seen.add(kernel.__name__)

    kernels, count = Kernels(launch), 2 if feedback else 1
    x, residual = torch.zeros(numel), torch.zeros(numel) if feedback else None
    codes = torch.zeros(count, CODECS[name].size(numel), dtype=torch.uint8)
    if name in KINDS:
        kernels.encode(name, x, residual, 2.0, 1, codes[0])
        kernels.add(name, codes, x)
        assert len(seen) == 3
    else:
        k = CODECS[name].kept(numel)
        indices, values = torch.zeros(k, dtype=torch.int32), torch.zeros(k)
        kernels.topk_select(x, residual, 2.0, 1, codes[0], indices, values)
        kernels.topk_settle(x, torch.zeros(numel), 2.0, indices, values, values)
        assert len(seen) == 6


def test_the_rule_finds_what_rounds_otherwise() -> None:
    assert INEXACT.findall("\tfma.rn.f32 \t%f1, %f2, %f3, %f4;")
    assert INEXACT.findall("\tcvt.rmi.ftz.f32.f32 \t%f1, %f2;")
    assert not INEXACT.findall("\tdiv.rn.f32 \t%f1, %f2, %f3;\n\tadd.rn.f32 \t%f1, %f2, %f3;")
