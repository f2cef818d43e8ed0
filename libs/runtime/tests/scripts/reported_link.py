"""A link of a set rate for the controller: what probes and exchanges took is told by a formula, and not by a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from distroml.runtime.parallel.asking import Asked
from distroml.runtime.parallel.buffers import Measured, Took
from distroml.runtime.parallel.compressed import CompressedExchange

SLOW_S_PER_BYTE, FAST_S_PER_BYTE = 1e-3, 1e-12


@dataclass
class _Told:
    """An answer whose probe took what the rate says."""

    asked: Asked
    s_per_byte: Callable[[], float]

    @property
    def probed_bytes(self) -> int:
        return self.asked.probed_bytes

    def wait(self) -> tuple[list[float], float]:
        values, _ = self.asked.wait()
        return values, self.asked.probed_bytes * self.s_per_byte()


@contextmanager
def reported(s_per_byte: Mapping[int, float]) -> Iterator[None]:
    """Within it, exchanges say of every link that it takes so many seconds per byte from each step on; 0 is a start."""
    ask, measured = CompressedExchange.ask, CompressedExchange.measured

    def rate(exchange: CompressedExchange) -> float:
        return s_per_byte[max(step for step in s_per_byte if step <= exchange.step)]

    def asked(self: CompressedExchange, values: Sequence[float], *, probe_bytes: int = 0) -> Any:
        return _Told(ask(self, values, probe_bytes=probe_bytes), lambda: rate(self))

    def seen(self: CompressedExchange) -> list[Measured]:
        spent = [(one, one.sent_bytes * rate(self)) for one in measured(self)]
        return [replace(one, took=Took(wire_s=took_s, waited_s=took_s)) for one, took_s in spent]

    CompressedExchange.ask, CompressedExchange.measured = asked, seen
    try:
        yield
    finally:
        CompressedExchange.ask, CompressedExchange.measured = ask, measured
