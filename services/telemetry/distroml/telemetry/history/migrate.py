"""The tables of a schema brought to this release, forward only, by one process at a time.

Alembic runs the steps in `migrations/versions` in one transaction, under a lock that the server ends with the
connection. A schema that a newer release made is refused as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from distroml.rpc.postgres import PostgresUnfit

_LOCK = 0x64_69_73_74_72_6F_6D_6C
"""One number for all of ours: `distroml` as bytes."""


def migrate(connect: Callable[[], psycopg.Connection[Any]], schema: str) -> None:
    """Make the schema, or bring it to this release, over a connection without a search path: it may not exist yet.

    Raises:
        PostgresUnfit: a newer release made it.
        psycopg.Error: the server cannot be had.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}

    engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        found = connection.execute(
            text("SELECT 1 FROM information_schema.schemata WHERE schema_name = :name"), {"name": schema}
        )
        if found.first() is None:
            connection.execute(text(f'CREATE SCHEMA "{schema}"'))
        connection.execute(text(f'SET LOCAL search_path TO "{schema}"'))
        at = MigrationContext.configure(connection, opts={"version_table_schema": schema}).get_current_revision()
        if at is not None and at not in known:
            raise PostgresUnfit(
                f"the tables in schema {schema} were made by a newer release (step {at}); upgrade this service, or "
                "give it another database"
            )
        config.attributes.update(connection=connection, schema=schema)
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise PostgresUnfit(f"the tables in schema {schema} cannot be brought to this release: {error}") from error
