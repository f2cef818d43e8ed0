"""The port for searching what workers wrote.

Lines are ordered by (time, place in their file, id); a page begins after a cursor and says where the next one does.
Lines that come while somebody pages are on a later page, or in the next search, never twice on the pages of one.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Final, Protocol, cast

from distroml.logstore.levels import at_least
from distroml.logstore.words import Phrases, phrases

MAX_LIMIT: Final = 1000
MAX_TEXT_CHARS: Final = 1024
MAX_RANKS: Final = 64


class LogStoreError(Exception):
    """Root of what a log store raises.

    LogStoreError
    ├── WrongQuery            the query means nothing; says which part and what would
    └── LogStoreDown          the back end did not answer
        └── LogStoreRefused   it answers and will not serve us until somebody changes something
    """


class WrongQuery(LogStoreError):
    """The query means nothing."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{name}: {what}" for name, what in problems))
        self.problems = problems


class LogStoreDown(LogStoreError):
    """The back end cannot be reached or failed in the middle."""


class LogStoreRefused(LogStoreDown):
    """The back end will not serve us as we are: version, credentials, protocol. Trying again does not help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of one process of a worker."""

    job: str
    worker: str
    incarnation: int
    stream: str
    offset: int
    """Where it begins in the file of its stream."""
    rank: int
    generation: int
    attempt: int = 0
    at_ms: int
    text: str
    level: str = ""
    trace_id: str = ""
    span_id: str = ""

    @property
    def id(self) -> str:
        """The same whenever the line is sent again."""
        return f"{self.job}/{self.worker}/{self.incarnation}/{self.stream}/{self.offset}"


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last line of a page."""

    at_ms: int
    offset: int
    id: str

    def encode(self) -> str:
        """As a caller keeps it, who must not look inside."""
        return base64.urlsafe_b64encode(json.dumps([self.at_ms, self.offset, self.id]).encode()).decode()

    @classmethod
    def decode(cls, text: str) -> Cursor:
        """Raises `WrongQuery` for what no page gave out."""
        try:
            found: object = json.loads(base64.urlsafe_b64decode(text.encode()))
        except ValueError:
            found = None
        if isinstance(found, list):
            match cast("list[object]", found):
                case [int(at_ms), int(offset), str(id_)]:
                    return cls(at_ms, offset, id_)
                case _:
                    pass
        raise WrongQuery([("cursor", "it is none that a search gave out; begin without one")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which lines of a job; what is not said selects all. Raises `WrongQuery` where it is made."""

    job: str
    text: str = ""
    """See `distroml.logstore.words`."""
    ranks: tuple[int, ...] = ()
    since_ms: int = 0
    """Not before."""
    until_ms: int = 0
    """Before; 0 for no end."""
    level: str = ""
    """This one and graver ones; lines that name no level are left out where it is given."""
    newest_first: bool = False
    limit: int = 100
    cursor: str = ""
    phrases: Phrases = field(init=False)
    levels: tuple[str, ...] = field(init=False)
    after: Cursor | None = field(init=False)

    def __post_init__(self) -> None:
        wrong: list[tuple[str, str]] = []
        wanted = phrases(self.text[:MAX_TEXT_CHARS])
        if len(self.text) > MAX_TEXT_CHARS:
            wrong.append(("text", f"at most {MAX_TEXT_CHARS} characters"))
        elif self.text.strip() and not wanted:
            wrong.append(("text", f"{self.text!r} has no letter and no digit to search by"))
        if len(self.ranks) > MAX_RANKS or any(rank < 0 for rank in self.ranks):
            wrong.append(("ranks", f"at most {MAX_RANKS} ranks, each 0 or more"))
        if self.since_ms < 0 or self.until_ms < 0:
            wrong.append(("since_ms", "times are milliseconds since 1970, 0 or more"))
        if not 1 <= self.limit <= MAX_LIMIT:
            wrong.append(("limit", f"1 to {MAX_LIMIT}, not {self.limit}"))
        levels: tuple[str, ...] = ()
        try:
            levels = at_least(self.level)
        except ValueError as error:
            wrong.append(("level", str(error)))
        after = None
        try:
            after = Cursor.decode(self.cursor) if self.cursor else None
        except WrongQuery as error:
            wrong += error.problems
        if wrong:
            raise WrongQuery(wrong)
        for name, value in (("phrases", wanted), ("levels", levels), ("after", after)):
            object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True)
class Page:
    """Some lines in the order that was asked for; `cursor` begins the next page, empty after the last."""

    lines: tuple[Line, ...]
    cursor: str = ""


def page_of(lines: list[Line], limit: int) -> Page:
    """A page of at most `limit` of the lines; one more than that says that there is another page."""
    if len(lines) <= limit:
        return Page(tuple(lines))
    last = lines[limit - 1]
    return Page(tuple(lines[:limit]), Cursor(last.at_ms, last.offset, last.id).encode())


class LogSearch(Protocol):
    """Searches the kept lines of any job."""

    async def search(self, query: Query) -> Page:
        """One page; an unknown job has no lines.

        Raises:
            LogStoreDown: try again later.
            LogStoreRefused: somebody must change something first; the text says what.
        """
        ...
