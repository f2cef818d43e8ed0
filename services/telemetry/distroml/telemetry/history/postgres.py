"""History in a schema of a PostgreSQL database, the deployment's own: all replicas of telemetry read it, one projects.

A server that is away makes calls fail soon, with `HistoryAway`, and is found again by itself; that it is of an
unsupported version, refuses our user, or holds tables of a newer release is said in the same way.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import secrets
import socket
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Self, TypeVar

import psycopg
from psycopg import sql
from psycopg_pool import ConnectionPool, PoolTimeout

from distroml.rpc.postgres import PostgresUnfit, check_version, place_of, trouble
from distroml.telemetry.history.anew import AnewByProcess
from distroml.telemetry.history.building import ToPostgres
from distroml.telemetry.history.db import Db
from distroml.telemetry.history.migrate import migrate
from distroml.telemetry.history.port import Anew, BeingRebuilt, HistoryAway
from distroml.telemetry.history.postgresdb import PostgresDb
from distroml.telemetry.history.sql import SqlHistory

R = TypeVar("R")

SCHEMA = "distroml"
# What the server allows a name, 63 bytes, less `SCHEMA` and what a rebuild adds to it.
_DEPLOYMENT_BYTES = 34
# More than the server allows a statement, so that it is the server that ends it.
ANSWER_S = 40.0
_READERS = 4
_CONNECT_S = 3
_GET_S = 5.0
# After a failure the next calls fail at once for this long, or for as long as it took to find out where that is more
# (names that nobody resolves): a page shall not wait for each of its parts.
_REST_S, _MOST_REST_S = 1.0, 15.0
_STATEMENT_MS = 30_000
_LOCK_MS = 10_000
_END_S, _CUT_AGAIN_S = 5.0, 0.2
# A machine that went without a word is noticed within half a minute; the system's own two hours are for others.
_ALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4, "tcp_user_timeout": 30_000}
_LOCK = 0x64_6D_6C_72
"""First number of the lock of a rebuild: `dmlr` as bytes."""
# It tells of every try to connect; that history is away is said once, where it is found out.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)


def schema_of(deployment: str) -> str:
    """The schema of a deployment: another one for each, since several may share a database."""
    name = re.sub(r"[^a-z0-9]+", "_", deployment.lower()).strip("_")
    # No two underscores in a row: what a rebuild calls its schemas is nobody's.
    if name.replace("_", "-") != deployment or len(name) > _DEPLOYMENT_BYTES:
        digest = hashlib.sha256(deployment.encode()).hexdigest()[:8]
        name = f"{name[: _DEPLOYMENT_BYTES - 9].strip('_')}_{digest}".strip("_")
    return f"{SCHEMA}_{name}"


class PostgresHistory(SqlHistory):
    """`History` in the database at `address`, as libpq takes it.

    Args:
        schema: where in the database; `schema_of` says which is a deployment's.

    Attributes:
        answer_s: after so long without an answer the server counts as away.
    """

    name = "postgres"
    locked = " FOR UPDATE"

    def __init__(self, address: str, *, max_events: int, schema: str = SCHEMA) -> None:
        super().__init__(max_events=max_events)
        self._address, self.schema = address, schema
        self._place, self._building = place_of(address), f"{schema}__building"
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="history-write")
        self._read_threads = ThreadPoolExecutor(_READERS, thread_name_prefix="history-read")
        self._opening = threading.Lock()
        self._pool: ConnectionPool[psycopg.Connection[Any]] | None = None
        self._rests_until = 0.0
        self._why = ""
        self.answer_s = ANSWER_S
        self._hung: set[asyncio.Future[Any]] = set()
        self._connections: weakref.WeakSet[psycopg.Connection[Any]] = weakref.WeakSet()
        self._noting = threading.Lock()
        self._silent = f"PostgreSQL at {self._place}: gives no answer; see that the server is not stopped or overloaded"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pools = (self._write_thread, self._read_threads)
        ending = asyncio.gather(*(asyncio.to_thread(threads.shutdown) for threads in pools))
        # A server that was silent is not waited for again.
        await asyncio.wait({ending}, timeout=0 if self._hung else _END_S)
        while not ending.done():
            # A thread whose connection is cut may take another one, to find out why.
            self._cut()
            await asyncio.wait({ending}, timeout=_CUT_AGAIN_S)
        await ending
        if self._pool is not None:
            await asyncio.to_thread(self._pool.close)

    async def lead(self, who: str, ttl_s: float) -> bool:
        """A row with an end by the server's clock: a leader that sleeps past it has lost the lead."""

        def take(db: Db) -> bool:
            rows = db.execute(
                "INSERT INTO leader VALUES (true, %s, now() + make_interval(secs => %s)) ON CONFLICT (one) DO UPDATE "
                "SET who=excluded.who, until=excluded.until WHERE leader.who=excluded.who OR leader.until < now()",
                (who, ttl_s),
            )
            return db.changed(rows) > 0

        return await self._in_thread(self._read_threads, take)

    @asynccontextmanager
    async def anew(self) -> AsyncGenerator[Anew]:
        """In another schema of the same database.

        A lock that ends with its connection keeps others from beginning; should it be lost, each of two has a schema of
        its own, and the swap is one transaction.
        """
        building = f"{self._building}_{secrets.token_hex(4)}"
        loop = asyncio.get_running_loop()
        lock = await self._in_thread(self._read_threads, lambda _: self._begin_anew(building))
        try:
            async with AnewByProcess(
                ToPostgres(self._address, building),
                max_events=self.max_events,
                replace=lambda: self._replace_by(building),
            ) as anew:
                yield anew
        finally:
            letting_go = loop.run_in_executor(self._read_threads, _let_go, lock, building)
            await asyncio.wait({letting_go}, timeout=self.answer_s)

    def _begin_anew(self, building: str) -> psycopg.Connection[Any]:
        """The connection that holds the lock, once the schema is there and what others left is gone."""
        lock = self._connect(autocommit=True)
        try:
            locked = lock.execute("SELECT pg_try_advisory_lock(%s, hashtext(%s))", (_LOCK, self.schema)).fetchone()
            if locked != (True,):
                raise BeingRebuilt("history is being rebuilt already, perhaps by another service; wait for its end")
            left = lock.execute(
                "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, %s)", (self._building,)
            ).fetchall()
            for (name,) in left:
                lock.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))
            migrate(self._connect, building)
            return lock
        except BaseException:
            lock.close()
            raise

    async def _replace_by(self, new: str) -> None:
        """The schemas change names, in one transaction. Readers wait for its end, some milliseconds."""
        now, old = self.schema, f"{self.schema}__replaced"

        def swap(db: Db) -> None:
            db.execute(f"LOCK TABLE {now}.meta, {now}.rollups, {now}.rollup_writers, {now}.leader")
            for table in ("rollups", "rollup_writers", "leader"):
                db.execute(f"DROP TABLE {new}.{table}")
                db.execute(f"ALTER TABLE {now}.{table} SET SCHEMA {new}")
            db.execute(f"ALTER SCHEMA {now} RENAME TO {old}")
            db.execute(f"ALTER SCHEMA {new} RENAME TO {now}")
            db.execute(f"DROP SCHEMA {old} CASCADE")

        await self._write(swap)

    async def _write(self, change: Callable[[Db], R]) -> R:
        return await self._in_thread(self._write_thread, change)

    async def _read(self, query: Callable[[Db], R]) -> R:
        def in_one_state(db: Db) -> R:
            db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            return query(db)

        return await self._in_thread(self._read_threads, in_one_state)

    async def _in_thread(self, threads: ThreadPoolExecutor, work: Callable[[Db], R]) -> R:
        def run() -> R:
            try:
                with self._connection() as connection, connection.transaction():
                    return work(PostgresDb(connection))
            except BaseException:
                if threads is self._write_thread:
                    self._folder.reset()
                raise

        if self._hung:
            raise HistoryAway(self._silent)
        future = asyncio.get_running_loop().run_in_executor(threads, run)
        # Whoever waits may be cancelled, and nobody asks for the outcome then.
        future.add_done_callback(_taken)
        done, _ = await asyncio.wait({future}, timeout=self.answer_s)
        if not done:
            # A server that is stopped keeps its connections: the thread waits on, and what it does may still happen.
            self._hung.add(future)
            future.add_done_callback(self._hung.discard)
            raise HistoryAway(self._silent)
        return future.result()

    @contextmanager
    def _connection(self) -> Generator[psycopg.Connection[Any]]:
        """A connection of the pool, with the tables known to be right; `HistoryAway` where there is none."""
        self._check_rest()
        begun = time.monotonic()
        try:
            with self._opened().connection(timeout=_GET_S) as connection:
                yield connection
        except (psycopg.OperationalError, psycopg.InternalError, psycopg.InterfaceError) as error:
            raise self._away(error, begun) from error
        except psycopg.Error as error:
            # Tables that are gone, or rights that were taken: the pool begins anew, and says what it finds.
            self._drop_pool()
            raise self._away(error, begun) from error

    def _check_rest(self) -> None:
        if time.monotonic() < self._rests_until:
            raise HistoryAway(self._why)

    def _away(self, error: Exception, begun: float) -> HistoryAway:
        why = str(error) if isinstance(error, PostgresUnfit) else trouble(error, self._place)
        if isinstance(error, PoolTimeout):
            # The pool says only that it has none; a connection of our own says why.
            try:
                self._connect().close()
            except psycopg.Error as reason:
                why = trouble(reason, self._place)
        now = time.monotonic()
        self._rests_until, self._why = now + min(max(_REST_S, now - begun), _MOST_REST_S), why
        return HistoryAway(why)

    def _opened(self) -> ConnectionPool[psycopg.Connection[Any]]:
        with self._opening:
            if self._pool is None:
                # Whoever waited here while another tried in vain does not try again.
                self._check_rest()
                begun = time.monotonic()
                try:
                    with self._connect() as connection:
                        check_version(connection)
                    migrate(self._connect, self.schema)
                except (PostgresUnfit, psycopg.Error) as error:
                    raise self._away(error, begun) from error
                self._pool = self._new_pool()
            return self._pool

    def _new_pool(self) -> ConnectionPool[psycopg.Connection[Any]]:
        limits = f"-c statement_timeout={_STATEMENT_MS} -c lock_timeout={_LOCK_MS}"
        session = {
            **_ALIVE,
            "options": f"-c search_path={self.schema} {limits}",
            "connect_timeout": _CONNECT_S,
            "application_name": "distroml-telemetry",
        }
        return ConnectionPool(
            self._address,
            min_size=1,
            max_size=_READERS + 1,
            kwargs=session,
            # A connection that broke while it lay idle is found here, not by the statement.
            check=ConnectionPool.check_connection,
            configure=self._note,
            reconnect_timeout=1.0,
            open=True,
        )

    def _connect(self, **more: Any) -> psycopg.Connection[Any]:
        """A connection of our own."""
        connection = psycopg.connect(self._address, connect_timeout=_CONNECT_S, **_ALIVE, **more)
        self._note(connection)
        return connection

    def _note(self, connection: psycopg.Connection[Any]) -> None:
        with self._noting:
            self._connections.add(connection)

    def _cut(self) -> None:
        """End what threads wait for, which no time limit does while the server is stopped."""
        with self._noting:
            there = tuple(self._connections)
        for connection in there:
            with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)

    def _drop_pool(self) -> None:
        with self._opening:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close(timeout=0)


def _let_go(lock: psycopg.Connection[Any], building: str) -> None:
    """Drop what was not put into history's place, and the lock; a server that is away does so with the next one."""
    with suppress(psycopg.Error), lock:
        lock.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(building)))


def _taken(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
