"""What all tests share."""

from hypothesis import settings

# A busy machine is no defect of the code: hypothesis' own deadline of 200 ms per example is off, pytest's holds.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
