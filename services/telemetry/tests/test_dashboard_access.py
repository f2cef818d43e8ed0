"""Who gets into the dashboard: by the key only, from this machine's pages only; and that it comes back."""

from __future__ import annotations

import urllib.error
import urllib.request

from playwright.sync_api import Browser, BrowserContext, expect
from watching import opened
from world import Threaded
from worldlog import now_ms


def status(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_without_the_key_a_page_says_how_to_get_in(fed: Threaded) -> None:
    url = fed.world.dashboard.url
    for path in ("/", "/jobs/job-live", "/distroml.css", "/_nicegui_ws/socket.io/?EIO=4&transport=polling"):
        code, text = status(url + path)
        assert code == 401
        assert "distroml up" in text
        assert "job-live" not in text


def test_a_wrong_key_is_refused_and_sets_no_cookie(fed: Threaded, browser: Browser) -> None:
    context = browser.new_context()
    answer = context.request.get(f"{fed.world.dashboard.url}/login?token=wrong")
    assert answer.status == 403
    assert "does not fit" in answer.text()
    assert context.cookies() == []
    context.close()


def test_the_cookie_is_not_the_token_and_out_of_reach_of_scripts(fed: Threaded, browser: Browser) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(fed.world.dashboard.login_url)
    assert "token" not in page.url
    (cookie,) = context.cookies()
    assert cookie.get("httpOnly")
    assert cookie.get("sameSite") == "Strict"
    assert "a-token-for-tests" not in str(cookie)
    assert page.evaluate("document.cookie") == ""
    context.close()


def test_another_host_name_and_another_origin_are_refused(fed: Threaded, browser: Browser) -> None:
    code, _ = status(fed.world.dashboard.url, Host="evil.example")
    assert code == 421
    context = browser.new_context()
    page = context.new_page()
    page.goto(fed.world.dashboard.login_url)
    port = fed.world.dashboard.port
    page.goto("about:blank")
    outcome = page.evaluate(
        "url => new Promise(done => { const s = new WebSocket(url); s.onopen = () => done('open'); "
        "s.onclose = () => done('closed'); })",
        f"ws://127.0.0.1:{port}/_nicegui_ws/socket.io/?EIO=4&transport=websocket",
    )
    assert outcome == "closed"
    context.close()


def test_a_web_server_that_ended_is_started_again_under_the_same_address(fed: Threaded, wide: BrowserContext) -> None:
    page = opened(wide, fed.world.dashboard.url).page
    expect(page.locator("tr[data-id=job-live]")).to_be_visible()

    async def end() -> None:
        assert fed.world.dashboard.server is not None
        fed.world.dashboard.server.should_exit = True

    fed.do(end())
    expect(page.locator(".live.off")).to_be_visible(timeout=15_000)
    expect(page.locator(".live.on")).to_be_visible(timeout=30_000)
    name = f"job-after-{now_ms()}"
    fed.do(fed.world.log.submit(name))
    expect(page.locator(f"tr[data-id={name}]")).to_be_visible()
