"""Finding a job by what a user calls it, and reading its committed state."""

from __future__ import annotations

from dataclasses import dataclass

from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.events import is_name
from distroml.rpc import caller, errors
from distroml.scheduler.adapters.messages import job_message
from distroml.scheduler.board import Board
from distroml.scheduler.domain import reasons
from distroml.scheduler.domain.explain import explain
from distroml.scheduler.domain.job import Job
from distroml.scheduler.past import Past
from distroml.scheduler.streams import Streams


@dataclass(frozen=True, slots=True)
class Found:
    """A job's committed state; `position` is one that it reflects."""

    state: Job
    version: int
    position: str


class Finder:
    """Reads jobs from the store, never from memory: what was committed before the call is seen."""

    def __init__(self, streams: Streams, board: Board, past: Past) -> None:
        self._streams, self._board, self._past = streams, board, past

    async def job(self, name: str) -> Found:
        """A job by its id, its resource name, or a name that only one job of the caller's project has.

        Names of jobs on the board come before those that only history knows.

        Raises:
            NotFound, FailedPrecondition: no such job, or several of that name.
            InvalidArgument: it is no name at all.
        """
        project, id_ = _parse(name)
        found = await self._read(id_)
        if found is None and not project:
            await self._board.refresh()
            own = caller().project
            candidates = self._board.named(id_, own) or await self._past.named(id_, own)
            if len(candidates) > 1:
                text = f"{len(candidates)} jobs are named {id_!r}, such as {', '.join(candidates[:5])}; give an id"
                raise errors.FailedPrecondition("AmbiguousName", text, name=id_)
            found = await self._read(candidates[0]) if candidates else None
        if found is None or (project and found.state.spec.project != project):
            text = f"there is no job {name!r}; `distroml jobs` lists those there are"
            raise errors.NotFound(reasons.NO_SUCH_JOB, text, job=name)
        return found

    def message(self, found: Found) -> pb.Job:
        """The job as a message, with the reason of its state."""
        pending = self._board.pending().get(found.state.id)
        return job_message(found.state, found.version, found.position, explain(found.state, pending))

    async def _read(self, id_: str) -> Found | None:
        position = await self._streams.position()
        draft = await self._streams.job(id_)
        return Found(draft.state, draft.version, str(position)) if draft.version else None


def _parse(name: str) -> tuple[str, str]:
    """Project (or empty) and id of `projects/{project}/jobs/{id}`, an id, or a name."""
    project, id_ = "", name
    if name.startswith("projects/"):
        _, project, jobs, id_ = (*name.split("/"), "", "", "")[:4]
        if jobs != "jobs" or name.count("/") != 3 or not is_name(project):
            id_ = ""
    if not is_name(id_):
        what = f"{name[:100]!r} names no job: give an id, a job's name, or projects/PROJECT/jobs/ID"
        raise errors.InvalidArgument([("job", what)])
    return project, id_
