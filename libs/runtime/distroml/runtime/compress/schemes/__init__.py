"""The schemes: plain sums, codes with error feedback, random-K and PowerSGD."""

from distroml.runtime.compress.schemes.halves import BFloat16, Float16, Float32
from distroml.runtime.compress.schemes.kept import succeeded
from distroml.runtime.compress.schemes.plain import Coded, Dense
from distroml.runtime.compress.schemes.powersgd import PowerSGD
from distroml.runtime.compress.schemes.randomk import RandomK

__all__ = ["BFloat16", "Coded", "Dense", "Float16", "Float32", "PowerSGD", "RandomK", "succeeded"]
