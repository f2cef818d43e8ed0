"""Ranks whose compression would not be one are told so when they meet."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from distroml.runtime.elastic import Collectives
from distroml.runtime.parallel.compression import Compression, CompressionDiffers, agree_on

CPU = torch.device("cpu")
BARE = "torch without compiled kernels, on AVX2"


def beside(other: str, heard: list[Any]) -> Collectives:
    """Of two ranks, of which the other one forms products by `other` wherever this one says how it does."""

    def gather(own: tuple[Compression, str]) -> list[tuple[Compression, str]]:
        heard.append(own)
        return [own, (own[0], other if own[1] else "")]

    return cast("Collectives", SimpleNamespace(gather=gather))


@pytest.mark.parametrize("scheme", ["powersgd:4", "auto"])
def test_ranks_that_form_products_in_different_ways_are_refused(scheme: str) -> None:
    """What they restore of the same factors would differ in the last bits, and never come together again."""
    with pytest.raises(CompressionDiffers, match=rf"rank 1: {BARE}\); .* install a compiler"):
        agree_on(Compression(scheme), beside(BARE, []), CPU)


def test_what_products_have_no_part_in_is_not_asked_for() -> None:
    heard: list[Any] = []
    agree_on(Compression("int8"), beside(BARE, heard), CPU)
    assert heard == [(Compression("int8"), "")]


@pytest.mark.parametrize("scheme", ["powersgd:4", "auto"])
def test_ranks_that_exchange_nothing_may_form_products_in_any_way(scheme: str) -> None:
    heard: list[Any] = []
    agree_on(Compression(scheme), beside(BARE, heard))
    assert heard == [(Compression(scheme), "")]
