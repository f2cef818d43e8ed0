"""Commits for the tests of segments, log and relay."""

from distroml.events import Context, Position, Recorded
from distroml.eventstore.relay import OutboxEntry

LOG = "dep-1"
CONTEXT = Context(
    deployment=LOG,
    project="p",
    actor="ann",
    causation_id="cmd",
    correlation_id="req",
    time_ms=1,
    traceparent="00-1-2-01",
)


def entry(revision, *streams, data=b"{}"):
    """A commit of one event per stream given as (name, version)."""
    return OutboxEntry(
        revision,
        tuple(
            Recorded(
                id=f"evt-{revision}-{index}",
                type="test.Counted",
                schema=1,
                public=index % 2 == 1,
                data=data,
                stream=stream,
                version=version,
                position=Position(LOG, revision, index),
                context=CONTEXT,
            )
            for index, (stream, version) in enumerate(streams)
        ),
    )


def history(count, *, start=1, gap=3, data=b"{}"):
    """Commits with gaps between revisions and one to three events, over two streams."""
    versions = {"s/a/1": 0, "s/b.x/2 *>": 0}
    found = []
    for n in range(1, count + 1):
        names = ["s/a/1", "s/b.x/2 *>", "s/a/1"][: 1 + n % 3]
        streams = []
        for name in names:
            versions[name] += 1
            streams.append((name, versions[name]))
        found.append(entry(n * gap, *streams, data=data))
    return [one for one in found if one.revision >= start]


def events_of(entries):
    return [recorded for one in entries for recorded in one.events]
