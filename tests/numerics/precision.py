"""Float64 all the way: models that compute a norm or a softmax in float32 whatever they are given don't, within it.

A difference of one bit in float64 now and then rounds to the next float32: 1e-8 where 1e-16 was. Within this mode both
the reference and the parallel run keep what they compute in float64, and can be compared to 1e-10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_SINGLE = (torch.float32, torch.float)


def _doubled(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _SINGLE else value


class Float64(TorchFunctionMode):
    """Asking for float32 gives float64."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """See torch."""
        del types
        if func is torch.Tensor.float:
            return args[0].double()
        doubled = {key: _doubled(value) for key, value in (kwargs or {}).items()}
        return func(*(_doubled(value) for value in args), **doubled)
