"""A log in segments, for their tests."""

from distroml.eventstore.segments import SegmentLog
from libs.eventstore.tests.log_parts import LOG, history

COMMITS = history(30)


async def everything(segments, after=0):
    return [one async for one in segments.commits(after=after)]


async def sealed(objects, *cuts):
    """A log with segments that end at these places of `COMMITS`, none of them merged."""
    segments, start = SegmentLog(objects, LOG, merge_bytes=0), 0
    for cut in cuts:
        await segments.seal(COMMITS[start - 1].revision if start else 0, COMMITS[start:cut])
        start = cut
    return segments


def key_of(name):
    return f"log/{LOG}/{name}"
