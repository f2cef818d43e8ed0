"""Clocks of others: read as far as their machines say them, and told where they are far off."""

from __future__ import annotations

import random
import ssl
import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trustme

from distroml.observability import names
from distroml.observability.metrics import REGISTRY
from distroml.rpc.clockreading import of_http, read, trouble
from distroml.rpc.clocks import Clocks
from distroml.rpc.serverclocks import version_page

NOW_S = 1_700_000_000.0
SAID = {"/ahead": NOW_S + 900, "/even": NOW_S, "/behind": NOW_S - 75}


class Skewed(BaseHTTPRequestHandler):
    """A server whose time depends on what it is asked."""

    def do_GET(self) -> None:
        self.send_response_only(200)
        if self.path in SAID:
            self.send_header("Date", formatdate(SAID[self.path], usegmt=True))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, ssl.SSLContext | None]]:
    context = None
    with ThreadingHTTPServer(("127.0.0.1", 0), Skewed) as serving:
        if request.param == "https":
            authority, its, context = (
                trustme.CA(),
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
                ssl.create_default_context(),
            )
            authority.issue_cert("127.0.0.1").configure_cert(its)
            authority.configure_trust(context)
            serving.socket = its.wrap_socket(serving.socket, server_side=True)
        thread = threading.Thread(target=serving.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"{request.param}://127.0.0.1:{serving.server_address[1]}", context
        serving.shutdown()
        thread.join()


def test_a_server_s_clock_is_read_from_its_answers(server: tuple[str, ssl.SSLContext | None]) -> None:
    url, context = server

    def ask(path: str) -> str | None:
        reading = of_http(url + path, context, lambda: NOW_S)
        return trouble("etcd", reading) if reading is not None else "silent"

    assert ask("/even") is None
    assert (ask("/ahead") or "").startswith("the clock of etcd is 15 min 0 s ahead of this machine's: have both set by")
    assert (ask("/behind") or "").startswith("the clock of etcd is 1 min 14 s behind this machine's")
    assert ask("/says-no-time") == "silent"
    assert of_http("http://127.0.0.1:1/", None) is None
    if context is not None:
        assert of_http(url, ssl.create_default_context()) is None


def test_a_member_of_etcd_is_asked_where_its_api_is() -> None:
    assert version_page("http://10.0.0.1") == "http://10.0.0.1:2379/version"
    assert version_page("https://[::1]:4001/") == "https://[::1]:4001/version"


def test_what_a_slow_answer_leaves_open_is_no_trouble() -> None:
    assert trouble("x", read(NOW_S, NOW_S - 200, NOW_S)) is None
    assert trouble("x", read(NOW_S, NOW_S - 120.5, NOW_S - 59.5)) is None
    assert trouble("x", read(NOW_S, NOW_S - 62, NOW_S - 61)) is not None
    assert trouble("x", read(NOW_S - 61, NOW_S, NOW_S, step_s=1.0)) is None


def test_senders_are_told_of_once_and_what_was_long_under_way_is_no_clock_that_is_behind() -> None:
    now_s, told = NOW_S, []
    clocks = Clocks("agents", told.append, lambda: now_s)

    def metric() -> float | None:
        return REGISTRY.get_sample_value(names.CLOCK_APART, {"where": "agents"})

    clocks.note("node a", NOW_S)
    # It waited while this process stood still, as did the one behind it.
    now_s += 600
    clocks.note("node a", NOW_S)
    assert told == []
    for _ in range(5):
        now_s += 10
        clocks.note("node b", now_s - 900)
        clocks.note("node c", now_s + 2000)
        clocks.note("node a", now_s)
    assert metric() == 2000
    assert len(told) == 1
    assert told[0] is not None
    assert told[0].startswith("the clock of node b is 15 min 0 s behind this machine's")
    clocks.forget("node c")
    assert metric() == -900
    for _ in range(3):
        clocks.note("node b", now_s)
    assert told[1:] == [None]
    clocks.forget("node a")
    clocks.forget("node b")
    clocks.forget("node b")
    assert (told[1:], metric()) == ([None], 0)


def test_of_many_senders_the_furthest_is_told_whoever_speaks() -> None:
    draw = random.Random(7)
    clocks, last = Clocks("crowd", lambda why: None, lambda: NOW_S), dict[str, float]()
    for _ in range(2000):
        whose = f"node {draw.randrange(20)}"
        if draw.random() < 0.2:
            clocks.forget(whose)
            last.pop(whose, None)
        else:
            last[whose] = draw.uniform(-50, 50)
            for _ in range(3):
                clocks.note(whose, NOW_S + last[whose])
        furthest = max(last.values(), key=abs, default=0.0)
        told = REGISTRY.get_sample_value(names.CLOCK_APART, {"where": "crowd"})
        assert told == pytest.approx(furthest, abs=1e-4)
