"""Compiled kernels of the codecs and of PowerSGD, or None where there are none: every caller has a path in torch.

`kernels()` loads them once. They are built at installation (`build.py`), never when a job starts. What they offer is
the C interface in `abi.cpp`, typed in `library.py`:

- `encode`, `add`: int8, int4 and sign by blocks; residual, random numbers, code and new residual in one pass over the
  data after a first one that only reads and refuses NaN and infinities. `add` takes many codes in one pass.
- `topk_select`, `topk_settle`, `topk_add`: Top-K.
- `project`, `orthogonalise`, `project_back`, `subtract`, `restore`: PowerSGD over all matrices of a shape where they
  lie in the buffer, `torch.mm` being slow on factors of few columns.
- `first_nonfinite`.

All of them give the same bits on every processor, and those of the codecs the same as the definitions in torch.
"""

from __future__ import annotations

import functools
import logging

import torch

from distroml.runtime.compress.native.build import LIBRARY
from distroml.runtime.compress.native.library import Kernels, Unusable

__all__ = ["Kernels", "Unusable", "kernels", "kernels_for"]

log = logging.getLogger(__name__)


@functools.cache
def kernels() -> Kernels | None:
    """The kernels of this installation; None, after one warning per process, where they cannot be used."""
    try:
        return Kernels(LIBRARY)
    except Unusable as error:
        log.warning(
            "gradient compression works by slower code: %s; install a compiler of C++17 (Debian: apt install g++) and "
            "install distroml again (in a checkout: make setup)",
            error,
        )
        return None


def kernels_for(tensor: torch.Tensor) -> Kernels | None:
    """The kernels, where `tensor` lies in memory that they reach."""
    return kernels() if tensor.device.type == "cpu" else None
