"""The schemes: plain sums, codes with error feedback, random-K and PowerSGD."""

from distroml.runtime.compress.schemes.float16 import Float16
from distroml.runtime.compress.schemes.kept import succeeded
from distroml.runtime.compress.schemes.plain import Coded, Dense
from distroml.runtime.compress.schemes.powersgd import PowerSGD
from distroml.runtime.compress.schemes.randomk import RandomK

__all__ = ["Coded", "Dense", "Float16", "PowerSGD", "RandomK", "succeeded"]
