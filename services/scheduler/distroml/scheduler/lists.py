"""Lists: from the read model, with the position that they reflect."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.events import Position
from distroml.rpc import errors, time_left_s
from distroml.scheduler.adapters.messages import STATES, job_message, node_message, timestamp
from distroml.scheduler.board import Board, Entry, ListKey
from distroml.scheduler.domain.explain import explain
from distroml.scheduler.domain.plan import Pending

DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1000
MAX_PAGE_BYTES: Final = 3 * 1024 * 1024
"""A page ends here, whatever its size in jobs: a message has at most 4 MiB."""
MAX_WAIT_S: Final = 5.0


class Lists:
    """Pages of jobs, the queue, and the nodes."""

    def __init__(self, board: Board, log_id: str) -> None:
        self._board, self._log_id = board, log_id
        self._messages: dict[str, tuple[Entry, Pending | None, pb.Job, int]] = {}

    async def jobs(self, request: pb.ListJobsRequest) -> pb.ListJobsResponse:
        """One page, newest first."""
        if request.page_size < 0:
            raise errors.InvalidArgument([("page_size", f"is {request.page_size}; use 1 to {MAX_PAGE}")])
        size = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        after = _read_token(request.page_token) if request.page_token else None
        await self._wait(request.min_position)
        states = set(request.states)
        jobs: list[pb.Job] = []
        used, last, more = 0, None, False
        pending = self._board.pending()
        for entry in self._board.page(after):
            job = entry.job
            if (request.project and job.spec.project != request.project) or (
                states and STATES[job.state] not in states
            ):
                continue
            message, size_bytes = self._message(entry, pending.get(job.id))
            used += size_bytes
            if len(jobs) == size or (jobs and used > MAX_PAGE_BYTES):
                more = True
                break
            jobs.append(message)
            last = entry.key
        token = _write_token(last) if more and last is not None else ""
        return pb.ListJobsResponse(jobs=jobs, next_page_token=token, position=str(self._board.position))

    def queue(self) -> pb.GetQueueResponse:
        """Waiting jobs in the order in which they are considered."""
        entries: list[pb.QueueEntry] = []
        waiting = ((one.index, id_, one) for id_, one in self._board.pending().items() if one.index)
        for index, id_, pending in sorted(waiting):
            job = self._board.jobs[id_]
            workers = job.spec.workers
            entries.append(
                pb.QueueEntry(
                    index=index,
                    job=id_,
                    name=job.spec.name,
                    priority=job.spec.priority,
                    workers=pb.WorkerRange(min=workers.min, max=workers.max, per_node=workers.per_node),
                    reason=pending.reason,
                    message=pending.message,
                    submitted_at=timestamp(job.submitted_at_ms),
                )
            )
        return pb.GetQueueResponse(entries=entries, position=str(self._board.position))

    def nodes(self) -> pb.ListNodesResponse:
        """Every node, by name."""
        held = self._board.ledger.held()
        return pb.ListNodesResponse(nodes=[node_message(node, held) for _, node in sorted(self._board.nodes.items())])

    async def _wait(self, text: str) -> None:
        if not text:
            return
        try:
            position = Position.parse(text)
        except ValueError as error:
            raise errors.InvalidArgument([("min_position", str(error))]) from None
        if position.log != self._log_id:
            what = f"belongs to log {position.log!r}, this is {self._log_id!r}"
            raise errors.InvalidArgument([("min_position", what)])
        # A caller whose own deadline is nearer shall still get the answer that says so.
        left = time_left_s()
        if not await self._board.at_least(position, MAX_WAIT_S if left is None else min(0.8 * left, MAX_WAIT_S)):
            text = f"the list is at {self._board.position} and did not reach {position} in time; ask again"
            raise errors.Unavailable("NotYet", text, position=str(self._board.position))

    def _message(self, entry: Entry, pending: Pending | None) -> tuple[pb.Job, int]:
        """The entry as a message with its size in bytes; made again only where the job or its reason changed."""
        known = self._messages.get(entry.job.id)
        if known is not None and known[0] is entry and (known[1] is pending or known[1] == pending):
            return known[2], known[3]
        message = job_message(entry.job, entry.version, str(entry.position), explain(entry.job, pending))
        if len(self._messages) > 2 * MAX_PAGE + len(self._board.jobs):
            self._messages.clear()
        size_bytes = message.ByteSize()
        self._messages[entry.job.id] = (entry, pending, message, size_bytes)
        return message, size_bytes


def _write_token(key: ListKey) -> str:
    return base64.urlsafe_b64encode(f"{key[0]} {key[1]}".encode()).decode()


def _read_token(token: str) -> ListKey:
    try:
        submitted, _, id_ = base64.urlsafe_b64decode(token.encode()).decode().partition(" ")
        return int(submitted), id_
    except (ValueError, binascii.Error, UnicodeError):
        what = "was not made by this service; begin the list again without one"
        raise errors.InvalidArgument([("page_token", what)]) from None
