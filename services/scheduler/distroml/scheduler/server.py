"""JobService: message -> command -> commit -> message. No rule lives here."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, Final

from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.api.scheduler.v1.jobs_pb2_grpc import JobServiceServicer
from distroml.events import Recorded
from distroml.objectstore import ObjectStore
from distroml.scheduler.board import Board
from distroml.scheduler.bundles import get_bundle, put_bundle
from distroml.scheduler.domain.explain import explain
from distroml.scheduler.find import Finder
from distroml.scheduler.follow import Follower, streams_of
from distroml.scheduler.lists import Lists
from distroml.scheduler.logs import Logs
from distroml.scheduler.mutations import Mutations
from distroml.scheduler.past import Past
from distroml.scheduler.signals import Pulse
from distroml.scheduler.streams import Streams
from distroml.scheduler.words import in_words

HISTORY_LINES: Final = 12
_HISTORY_EVENTS: Final = 200


class JobServer(JobServiceServicer):
    """See the contract, `proto/distroml/api/scheduler/v1/jobs.proto`."""

    def __init__(
        self,
        streams: Streams,
        board: Board,
        pulse: Pulse,
        objects: ObjectStore,
        logs: Logs,
        past: Past,
        *,
        max_unfinished: int,
        bundle_cap_bytes: int,
    ) -> None:
        self._streams, self._board, self._objects, self._logs = streams, board, objects, logs
        self._finder = Finder(streams, board, past)
        self._mutations = Mutations(streams, board, self._finder, objects, max_unfinished=max_unfinished)
        self._lists = Lists(board, streams.store.log_id)
        self._follower = Follower(streams, board, self._finder, pulse)
        self._bundle_cap_bytes = bundle_cap_bytes

    # ---- changes

    async def SubmitJob(self, request: pb.SubmitJobRequest, context: Any) -> pb.Job:
        """Take a job in."""
        return await self._mutations.submit(request)

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.Job:
        """End a job."""
        return await self._mutations.cancel(request)

    async def PauseJob(self, request: pb.PauseJobRequest, context: Any) -> pb.Job:
        """Let a job save and give its slots back."""
        return await self._mutations.pause(request)

    async def ResumeJob(self, request: pb.ResumeJobRequest, context: Any) -> pb.Job:
        """Queue a paused job again."""
        return await self._mutations.resume(request)

    async def ResizeJob(self, request: pb.ResizeJobRequest, context: Any) -> pb.Job:
        """Change how many workers a job has."""
        return await self._mutations.resize(request)

    async def SetPriority(self, request: pb.SetPriorityRequest, context: Any) -> pb.Job:
        """Move a job in the queue."""
        return await self._mutations.set_priority(request)

    async def CordonNode(self, request: pb.CordonNodeRequest, context: Any) -> pb.Node:
        """Close a node to new gangs."""
        return await self._mutations.cordon(request)

    async def UncordonNode(self, request: pb.UncordonNodeRequest, context: Any) -> pb.Node:
        """Open a node again."""
        return await self._mutations.uncordon(request)

    # ---- one job

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.Job:
        """The committed state of a job."""
        return self._finder.message(await self._finder.job(request.job))

    async def ExplainJob(self, request: pb.ExplainJobRequest, context: Any) -> pb.ExplainJobResponse:
        """Why a job is in its state, and what to do."""
        found = await self._finder.job(request.job)
        await self._board.refresh()
        pending = self._board.pending().get(found.state.id)
        explanation = explain(found.state, pending)
        ledger = self._board.ledger
        return pb.ExplainJobResponse(
            job=self._finder.message(found),
            reason=explanation.reason,
            message=explanation.message,
            next_steps=explanation.next_steps,
            queue_index=pending.index if pending else 0,
            free_slots=sum(map(len, ledger.free().values())),
            total_slots=sum(map(len, ledger.capacity().values())),
            history=await self._history(found.state.id),
        )

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncIterator[pb.WatchJobResponse]:
        """The job now, then after each change."""
        async for response in self._follower.job(request):
            yield response

    async def ListEvents(self, request: pb.ListEventsRequest, context: Any) -> AsyncIterator[pb.ListEventsResponse]:
        """Events of all services about a job, or of everything."""
        async for response in self._follower.events(request):
            yield response

    async def StreamLogs(self, request: pb.StreamLogsRequest, context: Any) -> AsyncIterator[pb.StreamLogsResponse]:
        """Lines of a job's workers."""
        found = await self._finder.job(request.job)
        async for response in self._logs.stream(request, found.state.id):
            yield response

    # ---- lists

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        """A page of jobs."""
        return await self._lists.jobs(request)

    async def ListNodes(self, request: pb.ListNodesRequest, context: Any) -> pb.ListNodesResponse:
        """Every node."""
        return self._lists.nodes()

    async def GetQueue(self, request: pb.GetQueueRequest, context: Any) -> pb.GetQueueResponse:
        """The queue in its order."""
        return self._lists.queue()

    # ---- bundles

    async def PutBundle(
        self, request_iterator: AsyncIterable[pb.PutBundleRequest], context: Any
    ) -> pb.PutBundleResponse:
        """Store code under its hash."""
        return await put_bundle(self._objects, request_iterator, cap_bytes=self._bundle_cap_bytes)

    async def GetBundle(self, request: pb.GetBundleRequest, context: Any) -> AsyncIterator[pb.GetBundleResponse]:
        """Stored code."""
        async for response in get_bundle(self._objects, request.sha256):
            yield response

    async def _history(self, job: str) -> list[str]:
        """The last events about the job that mean something to its owner."""
        store, recent = self._streams.store, list[Recorded]()
        for stream in streams_of(job):
            after = max(0, await store.version(stream) - _HISTORY_EVENTS)
            recent += await store.read_stream(stream, after=after, limit=_HISTORY_EVENTS)
        recent.sort(key=lambda one: one.position)
        return [line for one in recent if (line := in_words(one)) is not None][-HISTORY_LINES:]
