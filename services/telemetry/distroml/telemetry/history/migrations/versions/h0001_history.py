"""The first tables: jobs, their events, plans and slot time, roll-ups, and who projects."""

from __future__ import annotations

from alembic import op

revision = "h0001"
down_revision = None

_STATEMENTS = (
    "CREATE TABLE meta (key text PRIMARY KEY, value text NOT NULL)",
    "INSERT INTO meta VALUES ('cursor', '')",
    "CREATE TABLE versions (stream text PRIMARY KEY, version bigint NOT NULL)",
    """CREATE TABLE jobs (
      job text PRIMARY KEY, project text NOT NULL, name text NOT NULL, state text NOT NULL,
      submitted_ms bigint NOT NULL, finished_ms bigint NOT NULL, revision bigint NOT NULL, attempt integer NOT NULL,
      slots integer NOT NULL, slots_since_ms bigint NOT NULL, view bytea NOT NULL
    )""",
    "CREATE INDEX jobs_by_age ON jobs (submitted_ms DESC, job)",
    "CREATE INDEX jobs_by_state ON jobs (state, submitted_ms DESC, job)",
    "CREATE INDEX jobs_by_revision ON jobs (revision)",
    "CREATE INDEX jobs_that_hold ON jobs (job) WHERE slots > 0",
    """CREATE TABLE events (
      job text NOT NULL, revision bigint NOT NULL, idx integer NOT NULL, type text NOT NULL,
      schema integer NOT NULL, stream text NOT NULL, version bigint NOT NULL, at_ms bigint NOT NULL,
      actor text NOT NULL, generation bigint NOT NULL, data bytea NOT NULL, PRIMARY KEY (job, revision, idx)
    )""",
    """CREATE TABLE plans (
      job text PRIMARY KEY, generation bigint NOT NULL, type text NOT NULL, schema integer NOT NULL,
      data bytea NOT NULL
    )""",
    """CREATE TABLE slot_times (
      job text NOT NULL, project text NOT NULL, day integer NOT NULL, attempt integer NOT NULL,
      slots integer NOT NULL, since_ms bigint NOT NULL, until_ms bigint NOT NULL, PRIMARY KEY (job, since_ms)
    )""",
    "CREATE INDEX slot_times_by_day ON slot_times (day, project)",
    """CREATE TABLE rollups (
      job text NOT NULL, metric text NOT NULL, width_ms bigint NOT NULL, start_ms bigint NOT NULL, n bigint NOT NULL,
      total double precision NOT NULL, low double precision NOT NULL, high double precision NOT NULL,
      last double precision NOT NULL, last_ms bigint NOT NULL, step bigint NOT NULL, generation bigint NOT NULL,
      PRIMARY KEY (job, metric, width_ms, start_ms)
    )""",
    "CREATE INDEX rollups_by_age ON rollups (width_ms, start_ms)",
    "CREATE TABLE rollup_writers (writer text PRIMARY KEY, sequence bigint NOT NULL, at_ms bigint NOT NULL)",
    "CREATE TABLE leader (one boolean PRIMARY KEY CHECK (one), who text NOT NULL, until timestamptz NOT NULL)",
)


def upgrade() -> None:
    """Make them in the schema that the search path names."""
    for statement in _STATEMENTS:
        op.execute(statement)
