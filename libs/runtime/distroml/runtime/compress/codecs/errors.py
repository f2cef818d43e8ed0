"""What codecs refuse.

CodecError (a ValueError)
    NonFinite      a vector holds a NaN or an infinity
    DamagedCode    received bytes are no code for this vector
"""

from __future__ import annotations


class CodecError(ValueError):
    """A codec cannot work on what it was given; nothing was changed."""


class NonFinite(CodecError):
    """`vector[index]` is a NaN or an infinity. Residuals are as they were: the caller may skip the step."""

    def __init__(self, index: int) -> None:
        super().__init__(
            f"element {index} of the gradient is not finite, and compression would keep it in the residual for good; "
            "skip this step, or look for what made it (too high a learning rate, overflow in half precision)"
        )
        self.index = index


class DamagedCode(CodecError):
    """Received bytes do not fit the vector: the ranks disagree about the scheme, or memory was overwritten."""
