"""A browser page under test: what it asks for, what it complains about, and whether it fits its window."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request


@dataclass
class Watched:
    """A browser page, and everything it asked for and complained about."""

    page: Page
    hosts: set[str] = field(default_factory=set[str])
    complaints: list[str] = field(default_factory=list[str])

    def asked(self, request: Request) -> None:
        url = urlsplit(request.url)
        if url.scheme not in ("data", "blob"):
            self.hosts.add(url.hostname or request.url)

    def said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)


def opened(context: BrowserContext, url: str) -> Watched:
    watched = Watched(context.new_page())
    page = watched.page
    page.set_default_timeout(10_000)
    page.on("request", watched.asked)
    page.on("websocket", lambda socket: watched.hosts.add(urlsplit(socket.url).hostname or socket.url))
    page.on("console", watched.said)
    page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    page.goto(url)
    return watched


def clean(watched: Watched) -> None:
    assert watched.hosts == {"127.0.0.1"}, "a request left this machine"
    assert watched.complaints == []


def fits(page: Page) -> None:
    wide, seen = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= seen, f"the page is {wide} px wide in a window of {seen}"
