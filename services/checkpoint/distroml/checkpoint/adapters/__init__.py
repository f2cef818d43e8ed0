"""Codecs, fences and leases."""
