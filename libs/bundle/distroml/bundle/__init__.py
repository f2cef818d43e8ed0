"""A job's code as one content-addressed archive."""

from distroml.bundle.errors import BundleError
from distroml.bundle.packing import DEFAULT_CAP_BYTES, IGNORE_FILE, Bundle, pack
from distroml.bundle.unpacking import unpack

__all__ = ["DEFAULT_CAP_BYTES", "IGNORE_FILE", "Bundle", "BundleError", "pack", "unpack"]
