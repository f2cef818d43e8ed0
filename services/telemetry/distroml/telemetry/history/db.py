"""What the statements of history need of a database: SQLite's and PostgreSQL's connections in one form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

Row = tuple[Any, ...]


class Rows(Protocol):
    """An answer."""

    def fetchone(self) -> Row | None:
        """The next row."""
        ...

    def fetchall(self) -> list[Row]:
        """All rows that are left."""
        ...

    def __iter__(self) -> Iterator[Row]: ...


class Db(Protocol):
    """A connection inside a transaction. Placeholders are `%s`; a `%` of its own is written `%%`."""

    def execute(self, sql: str, values: Sequence[object] = ()) -> Rows:
        """Run one statement."""
        ...

    def executemany(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """Run one statement for each row."""
        ...

    def append(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add new rows to a table, as fast as the database can."""
        ...

    def changed(self, rows: Rows) -> int:
        """How many rows a statement changed."""
        ...


def marks(values: Sequence[object]) -> str:
    """As many placeholders as values."""
    return ", ".join(["%s"] * len(values))
