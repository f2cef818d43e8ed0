"""What a state keeps of gradients is told later, never lost: at once, or by another scheme, or as another part."""

from __future__ import annotations

from dataclasses import replace

import torch

from distroml.runtime.compress.codecs import NonFinite, first_nonfinite
from distroml.runtime.compress.layout import Layout, Piece
from distroml.runtime.compress.scheme import Scheme, State, Turn


def deliver(flat: torch.Tensor, state: State, turn: Turn) -> None:
    """Add all that was kept to `flat`, this rank's raw gradients; nothing is kept any more."""
    fold_owned(state, flat, turn.unit)
    if state.residual is not None:
        flat.add_(state.residual, alpha=turn.unit)
        state.residual.zero_()


def gather_up(flat: torch.Tensor, state: State, turn: Turn) -> torch.Tensor:
    """All that this rank has to tell, normalised: the residual with this step's gradients added to it.

    Raises `NonFinite`, as codecs do, before anything is changed.
    """
    if not turn.finite and flat.numel() and (bad := first_nonfinite(flat)) is not None:
        raise NonFinite(bad)
    residual = residual_of(flat, state)
    fold_owned(state, residual, 1.0)
    return residual.add_(flat, alpha=1.0 / turn.unit)


def residual_of(flat: torch.Tensor, state: State) -> torch.Tensor:
    """The state's residual, begun where there is none."""
    if state.residual is None:
        state.residual = torch.zeros_like(flat)
    return state.residual


def owned_of(flat: torch.Tensor, state: State, part: slice) -> torch.Tensor | None:
    """What was kept of the sums that this rank owns, of `part` of the buffer; what was of another becomes residual."""
    if state.owned is not None and state.owned_from == part.start and state.owned.numel() == part.stop - part.start:
        return state.owned
    fold_owned(state, residual_of(flat, state), 1.0)
    if part.start < part.stop:
        state.owned, state.owned_from = torch.zeros_like(flat[part]), part.start
    return state.owned


def fold_owned(state: State, into: torch.Tensor, scale: float) -> None:
    """Add `scale` times what was kept of owned sums to its place `into` a buffer; it is not kept any more."""
    if state.owned is not None:
        into[state.owned_from : state.owned_from + state.owned.numel()].add_(state.owned, alpha=scale)
    state.owned, state.owned_from = None, 0


def clear_padding(flat: torch.Tensor, layout: Layout, state: State) -> None:
    """Padding is zero again, in the sum and in what is kept: a code of signs has no zero, and norms would count it."""
    end = 0
    for piece in (*sorted(layout.pieces, key=lambda piece: piece.offset), Piece("", layout.numel, ())):
        if piece.offset > end:
            flat[end : piece.offset].zero_()
            if state.residual is not None:
                state.residual[end : piece.offset].zero_()
            if state.owned is not None and piece.offset > state.owned_from:
                state.owned[max(0, end - state.owned_from) : piece.offset - state.owned_from].zero_()
        end = max(end, piece.offset + piece.numel)


def succeeded(scheme: Scheme, layout: Layout, world_size: int, device: torch.device, before: State) -> State:
    """The state with which `scheme` goes on after another one: what that kept of gradients, nothing else of it."""
    state = scheme.prepare(layout, world_size, device)
    residual = state.residual if before.residual is None else before.residual
    return replace(state, residual=residual, owned=before.owned, owned_from=before.owned_from)
