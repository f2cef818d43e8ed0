"""Communication between ranks: back ends, algorithms, and what they put on the wire."""

from distroml.runtime.comm.wire import Kind, WireCount, sent_bytes

__all__ = ["Kind", "WireCount", "sent_bytes"]
