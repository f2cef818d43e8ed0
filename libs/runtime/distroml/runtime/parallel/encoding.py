"""Stands for the encoder of a pipelined model while text is generated: the whole model encodes anew for each token.

Generation runs an encoder by itself and hands what it said to the model with every token. Under pp no rank can: the
encoder's blocks lie on several. What is handed over instead tells the samples by their numbers, and the model is
called with the samples themselves.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_SAID = "encoder_outputs"


class LateEncoder(nn.Module):
    """Keeps what it is called with, and says which samples those are. Of Hugging Face models."""

    def __init__(self) -> None:
        super().__init__()
        self._given: dict[str, torch.Tensor] = {}

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, inputs_embeds: Any = None, **others: Any
    ) -> Any:
        """The samples' numbers, in the shape of hidden states of width one."""
        told = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, **others, "attention_mask": attention_mask}
        self._given = {name: value for name, value in told.items() if isinstance(value, torch.Tensor)}
        first = next(iter(self._given.values()))
        numbers = torch.arange(first.shape[0], device=first.device, dtype=torch.float64)
        outputs = importlib.import_module("transformers.modeling_outputs")
        return outputs.BaseModelOutput(last_hidden_state=numbers[:, None, None].expand(-1, first.shape[1], 1))

    def whole(self, call: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call of the model, with the samples in place of what this encoder said of them."""
        if call.get(_SAID) is None:
            return call
        # Beams and repeated samples carry their numbers with them.
        numbers = call[_SAID][0][:, 0, 0].long()
        given = {name: value[numbers] for name, value in self._given.items() if call.get(name) is None}
        return {**call, _SAID: None, **given}


@contextmanager
def late_encoder(model: nn.Module) -> Generator[LateEncoder | None]:
    """Within it `model` gives a `LateEncoder` for its encoder; None where it has none."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        yield None
        return
    late = LateEncoder()

    def get_encoder(*_: Any, **__: Any) -> LateEncoder:
        return late

    model.__dict__["get_encoder"] = get_encoder
    try:
        yield late
    finally:
        del model.__dict__["get_encoder"]
