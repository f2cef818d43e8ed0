"""Kernels of the codecs for GPUs, written in Triton, or None where it is missing: every caller has a path in torch.

`kernels()` loads them once; before, Triton is not imported, which takes a while. They give the bits that definitions in
torch say, and are held to it on each GPU before a codec relies on them (`codecs/fast.py`). PowerSGD has none: on a GPU
its products are cuBLAS's batched ones.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distroml.runtime.compress.gpu.launching import Kernels

__all__ = ["kernels"]

log = logging.getLogger(__name__)


@functools.cache
def kernels() -> Kernels | None:
    """The kernels, not yet compiled; None, after one warning per process, where Triton cannot be imported."""
    try:
        from distroml.runtime.compress.gpu.launching import Kernels
    except ImportError as error:
        log.warning(
            "gradient compression works by slower code: Triton cannot be imported (%s); install it as torch's builds "
            "for GPUs do (pip install triton)",
            error,
        )
        return None
    return Kernels()
