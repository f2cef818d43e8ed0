"""The shell around deciders: load, decide, commit, and again where somebody else was faster.

One command on one stream is `handle`. A decision over several streams (a scheduling cycle: the placements of
some jobs, and the ledger) is `transact` with a function that loads drafts and decides on them.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from distroml.events import Context, Position, Recorded, Rejection
from distroml.eventstore.draft import AnyDraft, Draft, Repository
from distroml.eventstore.port import (
    CommandKnown,
    CommandRecord,
    Commit,
    EventStore,
    Guard,
    Part,
    WrongExpectedVersion,
)

S = TypeVar("S")
C = TypeVar("C")
E = TypeVar("E")

ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class CommandKey:
    """The id of a command and what it said, so that a repeat is told from another command under the same id."""

    id: str
    content: bytes

    @property
    def content_hash(self) -> bytes:
        """SHA-256 of the content."""
        return hashlib.sha256(self.content).digest()


@dataclass(frozen=True, slots=True)
class Unit:
    """What one decision wants committed together, and the answer to its command."""

    drafts: tuple[AnyDraft, ...] = ()
    parts: tuple[Part, ...] = ()
    guards: tuple[Guard, ...] = ()
    answer: bytes = b""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a decision.

    Attributes:
        position: of its newest event; None where it wrote none, or for a repeated command.
        events: as recorded; empty for a repeated command.
        answer: the one given now, or the one recorded when the command was first accepted.
        repeated: whether the command had been accepted before.
    """

    position: Position | None
    events: tuple[Recorded, ...]
    answer: bytes
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Handled(Generic[S, E]):
    """What became of a command on one stream; `state` is None for a repeated command."""

    outcome: Outcome
    state: S | None
    events: tuple[E, ...]


async def transact(
    store: EventStore,
    decide: Callable[[], Awaitable[Unit]],
    *,
    context: Context,
    command: CommandKey | None = None,
    attempts: int = ATTEMPTS,
) -> Outcome:
    """Decide and commit, deciding anew while a stream moves on under the decision.

    Args:
        store: where the drafts come from.
        decide: loads drafts and decides; called once per attempt, without other effects.
        context: of the commit.
        command: its id and content; a repeat is answered as the first time.
        attempts: at most so many.

    Raises:
        Rejection: the domain refused, or `CommandIdReused`: the command's id was accepted with other content.
        WrongExpectedVersion: the streams moved on at every attempt.
        Fenced, CommitRefused, StoreFull, StoreDown: as the store's `commit`.
    """
    for attempt in range(1, attempts + 1):
        try:
            unit = await decide()
        except Rejection:
            # A command that was accepted may well be refused by the state it led to: then its answer stands.
            known = await store.command(command.id) if command else None
            if command is None or known is None:
                raise
            return _repeated(known, command)
        commit = _commit(unit, context, command)
        if not (commit.parts or commit.command or any(append.events for append in commit.appends)):
            return Outcome(None, (), unit.answer)
        try:
            committed = await store.commit(commit)
        except CommandKnown as known:
            if command is None:
                raise
            return _repeated(known.record, command)
        except WrongExpectedVersion:
            if attempt == attempts:
                raise
            continue
        position = committed.events[-1].position if committed.events else None
        return Outcome(position, committed.events, unit.answer)
    raise ValueError(f"attempts must be at least 1, not {attempts}")


async def handle(
    repository: Repository[S, C, E],
    stream: str,
    command: C,
    *,
    context: Context,
    key: CommandKey | None = None,
    answer: Callable[[S, tuple[E, ...]], bytes] = lambda state, events: b"",
    parts: Callable[[S, tuple[E, ...]], Iterable[Part]] = lambda state, events: (),
    guards: Iterable[Guard] = (),
    attempts: int = ATTEMPTS,
) -> Handled[S, E]:
    """Decide `command` on one stream and commit what follows; a command without news commits only its record.

    Args:
        repository: of the stream's kind.
        stream: its name.
        command: for the decider.
        context: of the commit.
        key: the command's id and content, where it has one.
        answer: of the state after and the new events; recorded with the commit.
        parts: further keys to write, such as `fences/<job>`.
        guards: that the commit holds to, such as the fence of a lease.
        attempts: at most so many.

    Raises:
        Rejection, WrongExpectedVersion, Fenced, CommitRefused, StoreFull, StoreDown: as `transact`.
    """
    drafts: list[Draft[S, C, E]] = []

    async def decide() -> Unit:
        # Parts that do not match the stream's version would lose every race: from the second attempt on, check.
        draft = await repository.load(stream)
        if drafts and draft.version != await repository.store.version(stream):
            draft = await repository.load(stream, refold=True)
        drafts.append(draft)
        draft = draft.decide(command)
        drafts[-1] = draft
        return Unit(
            (draft,),
            tuple(parts(draft.state, draft.events)),
            tuple(guards),
            answer(draft.state, draft.events),
        )

    outcome = await transact(repository.store, decide, context=context, command=key, attempts=attempts)
    if outcome.repeated:
        return Handled(outcome, None, ())
    return Handled(outcome, drafts[-1].state, drafts[-1].events)


def _commit(unit: Unit, context: Context, command: CommandKey | None) -> Commit:
    # Derived ids repeat when a lost answer makes a writer try again, so that the log's readers can tell.
    nonce = command.id if command else secrets.token_hex(8)
    writes = [draft.write(lambda stream, version: _event_id(nonce, stream, version)) for draft in unit.drafts]
    record = CommandRecord(command.id, command.content_hash, unit.answer) if command else None
    return Commit(
        context=context,
        appends=tuple(write.append for write in writes),
        parts=(*(part for write in writes for part in write.parts), *unit.parts),
        guards=unit.guards,
        command=record,
    )


def _event_id(nonce: str, stream: str, version: int) -> str:
    digest = hashlib.blake2b(f"{nonce}\n{stream}\n{version}".encode(), digest_size=12)
    return f"evt-{digest.hexdigest()}"


def _repeated(known: CommandRecord, command: CommandKey) -> Outcome:
    if known.content_hash != command.content_hash:
        raise Rejection(
            "CommandIdReused",
            f"command {command.id} was accepted before with other content; send a new command under a new id",
            command=command.id,
        )
    return Outcome(None, (), known.answer, repeated=True)
