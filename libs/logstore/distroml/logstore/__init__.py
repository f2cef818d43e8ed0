"""Lines that workers wrote, to be searched: one port, two back ends."""

from distroml.logstore.blocks import MAX_BLOCK_LINES, Block
from distroml.logstore.ids import ids_of
from distroml.logstore.levels import LEVELS, at_least, level_of
from distroml.logstore.port import (
    Line,
    LogSearch,
    LogStoreDown,
    LogStoreError,
    LogStoreRefused,
    Page,
    Query,
    WrongQuery,
)

__all__ = [
    "LEVELS",
    "MAX_BLOCK_LINES",
    "Block",
    "Line",
    "LogSearch",
    "LogStoreDown",
    "LogStoreError",
    "LogStoreRefused",
    "Page",
    "Query",
    "WrongQuery",
    "at_least",
    "ids_of",
    "level_of",
]
