"""A PostgreSQL server as our processes meet it: what is wrong with one, in words, and never its password.

Addresses are what libpq takes: `postgresql://user@host:port/database`, with the password there, in PGPASSWORD, or in a
password file (https://www.postgresql.org/docs/current/libpq-connect.html).

So is TLS: `?sslmode=verify-full&sslrootcert=FILE` encrypts, and checks that the server is the one that is named, by the
authority in the file; with `sslcert` and `sslkey` we show a certificate of our own. The same can be said by PGSSLMODE,
PGSSLROOTCERT, PGSSLCERT and PGSSLKEY. Without any of it libpq encrypts where the server offers that, and checks nothing
(https://www.postgresql.org/docs/current/libpq-ssl.html).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from distroml.rpc.clockreading import Now, Reading, read

if TYPE_CHECKING:
    import psycopg

POSTGRES = "DISTROML_POSTGRES"
OLDEST = 13
"""The oldest major version that is taken; tests run against 15."""
CONNECT_S = 5
_INVALID_PASSWORD, _INVALID_AUTHORIZATION = "28P01", "28000"
_NO_DATABASE, _TOO_MANY, _STARTING, _NO_RIGHT = "3D000", "53300", "57P03", "42501"
# libpq has no codes for what happens before a server says who it is: these are its words.
_OTHER_PROTOCOL = ("received invalid response to", "expected authentication request from server")
_NO_TLS = "server does not support SSL"
_TLS_WANTED = "no encryption"
_TLS = ("SSL error", "certificate", "SSL SYSCALL error", "tlsv1 alert", "sslv3 alert")


class PostgresUnfit(Exception):
    """The server cannot be used: why, and what to do."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server said of itself."""

    place: str
    version: str
    clock: Reading


def place_of(address: str) -> str:
    """`host:port/database` of an address, without user and password; raises `PostgresUnfit` for what is none."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        parts = conninfo_to_dict(address)
    except psycopg.ProgrammingError:
        # The text itself may hold the password.
        raise PostgresUnfit(f"{POSTGRES} is no address of a PostgreSQL server; give {_FORM}") from None
    if not address.startswith(("postgresql://", "postgres://")):
        raise PostgresUnfit(f"{POSTGRES} is no address of a PostgreSQL server; give {_FORM}")
    return f"{parts.get('host') or 'localhost'}:{parts.get('port') or 5432}/{parts.get('dbname') or ''}"


_FORM = "postgresql://USER@HOST:PORT/DATABASE, with the password there, in PGPASSWORD or in a password file"


def check_version(connection: psycopg.Connection[tuple[object, ...]]) -> str:
    """The server's version as text; raises `PostgresUnfit` where it is too old."""
    number = connection.info.server_version
    text = f"{number // 10_000}.{number % 10_000}"
    if number < OLDEST * 10_000:
        raise PostgresUnfit(f"PostgreSQL {text} is too old: {OLDEST} or newer is needed; upgrade the server")
    return text


def survey(address: str, now: Now = time.time) -> Facts:
    """Connect once and look; raises `PostgresUnfit`."""
    import psycopg

    place = place_of(address)
    try:
        with psycopg.connect(address, connect_timeout=CONNECT_S) as connection:
            version = check_version(connection)
            before_s = now()
            row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
            after_s = now()
    except psycopg.Error as error:
        raise PostgresUnfit(trouble(error, place)) from None
    assert row is not None, "a SELECT of one value has one row"
    return Facts(place, version, read(cast("float", row[0]), before_s, after_s))


def trouble(error: BaseException, place: str) -> str:
    """What a client's error means for whoever runs the service, and what to do."""
    said = " ".join(str(error).split())
    state = getattr(error, "sqlstate", None) or ""
    if any(words in said for words in _OTHER_PROTOCOL):
        why = f"what answers there is no PostgreSQL server; check host and port in {POSTGRES}"
    elif _NO_TLS in said:
        why = f"it speaks no TLS, and sslmode asks for it; turn ssl on there, or take sslmode out of {POSTGRES}"
    elif _TLS_WANTED in said:
        why = f"it takes encrypted connections only; put ?sslmode=verify-full&sslrootcert=FILE into {POSTGRES}"
    elif any(words in said for words in _TLS):
        why = (
            f"no secure connection ({said}); sslrootcert names the file with the authority of its certificate, sslcert"
            f" and sslkey our own one, and the host in {POSTGRES} is the one in its certificate"
        )
    elif state in (_INVALID_PASSWORD, _INVALID_AUTHORIZATION) or "password" in said:
        why = (
            f"the server refuses our user or password; put the right one into {POSTGRES}, PGPASSWORD or a password file"
        )
    elif state == _NO_DATABASE or ("database" in said and "does not exist" in said):
        why = f"the server has no such database; make it (createdb), or name another one in {POSTGRES}"
    elif state == _NO_RIGHT:
        why = f"our user may not do that: {said}; give it CREATE on the database"
    elif state in (_TOO_MANY, _STARTING):
        why = f"{said}; it is tried again"
    else:
        why = f"{said or type(error).__name__}; see that the server runs there and can be reached, it is tried again"
    return f"PostgreSQL at {place}: {why}"
