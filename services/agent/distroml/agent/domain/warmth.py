"""Whether a worker may be forked from a warm process, and from which.

A forked worker has the interpreter, the user and the libraries of its template. Libraries read some variables while
they are imported or loaded; where those differ the fork would not behave like a fresh process, so it is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_PREFIXES = (
    "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "BLIS_", "NUMEXPR_", "VECLIB_", "TBB_", "DNNL_", "ONEDNN_",
    "TORCH", "PYTORCH_", "ATEN_", "CUBLAS", "CUDNN_", "TRITON_", "XLA_", "NPY_", "NUMPY_", "PYTHON", "MALLOC_",
    "LD_", "GLIBC_", "LC_", "DISTROML_IMPORT_",
)  # fmt: skip
_NAMES = frozenset({"LANG", "TZ", "VIRTUAL_ENV", "CUDA_HOME", "CUDA_MODULE_LOADING", "HOME"})
# torchrun's names share the prefix but are read when a process group is made.
_LATE = ("TORCHELASTIC_", "TORCH_NCCL_", "TORCH_GLOO_", "TORCH_DISTRIBUTED_DEBUG")


@dataclass(frozen=True, slots=True, order=True)
class TemplateKey:
    """What a template and its workers have in common."""

    python: str
    user: int
    environment: tuple[tuple[str, str], ...]


def import_environment(env: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The variables of `env` that are read while libraries are imported, sorted."""
    return tuple(sorted((name, value) for name, value in env.items() if _at_import(name)))


def key_of(python: str, user: int, env: Mapping[str, str]) -> TemplateKey:
    """The template that a worker with this interpreter, user and environment can be forked from."""
    return TemplateKey(python, user, import_environment(env))


def why_cold(wanted: TemplateKey, present: Iterable[TemplateKey]) -> str:
    """Why none of the `present` templates serves `wanted`, naming what differs from the nearest; empty if one does."""
    keys = list(present)
    if wanted in keys:
        return ""
    if not keys:
        return "there is no warm process"
    differences = min((_differences(wanted, key) for key in keys), key=len)
    return "no warm process with " + ", ".join(differences)


def _differences(wanted: TemplateKey, key: TemplateKey) -> list[str]:
    found: list[str] = []
    if wanted.python != key.python:
        found.append(f"interpreter {wanted.python}")
    if wanted.user != key.user:
        found.append(f"user {wanted.user}")
    want, have = dict(wanted.environment), dict(key.environment)
    for name in sorted(want.keys() | have.keys()):
        if want.get(name) != have.get(name):
            found.append(f"{name}={want[name]}" if name in want else f"no {name}")
    return found


def _at_import(name: str) -> bool:
    return (name.startswith(_PREFIXES) or name in _NAMES) and not name.startswith(_LATE)
