"""The messages between the agent and a worker, over the agent's unix socket.

Msgpack by msgspec: a training process needs neither gRPC nor protobuf. The first message of a connection is the
worker's `Hello`; whichever side reconnects says again where it stands. Unknown message kinds end the connection
with a clear error, since both ends come from one installation.
"""

from __future__ import annotations

import msgspec

PROTOCOL = 1
MAX_FRAME_BYTES = 8 * 1024 * 1024
VERDICTS = ("AsPredicted", "Slower", "Faster", "MoreMemory", "LessMemory", "NotPredicted")
"""How a plan's measurement stands to its prediction. Where time and memory both contradict it, memory is named."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Root of all messages; the tag is the class name."""
