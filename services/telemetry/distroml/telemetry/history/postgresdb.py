"""What the statements of history need of a database, over a connection to PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import psycopg
from psycopg import sql

from distroml.telemetry.history.db import Rows


class PostgresDb:
    """`Db` over a connection of psycopg."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def execute(self, sql: str, values: Sequence[object] = ()) -> Rows:
        """See the port."""
        return cast("Rows", self._connection.execute(cast("Any", sql), values))

    def executemany(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """See the port."""
        if rows:
            with self._connection.cursor() as cursor:
                cursor.executemany(cast("Any", sql), rows)

    def append(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """See the port."""
        if not rows:
            return
        into = sql.SQL("COPY {} ({}) FROM STDIN").format(
            sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        with self._connection.cursor() as cursor, cursor.copy(into) as copy:
            for row in rows:
                copy.write_row(row)

    def changed(self, rows: Rows) -> int:
        """See the port."""
        return cast("psycopg.Cursor[Any]", rows).rowcount
