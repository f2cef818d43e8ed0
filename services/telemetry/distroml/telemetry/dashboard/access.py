"""Who may see the dashboard: a browser that showed the data folder's token once."""

from __future__ import annotations

import hashlib
import hmac
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOGIN: Final = "/login"
_LOCAL_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
_WEEK_S: Final = 7 * 24 * 3600

# NiceGUI's pages run inline scripts and compile templates; what matters is that nothing leaves this origin.
_POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' ws: wss:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
}


class Access:
    """ASGI middleware in front of everything, websockets too.

    The cookie holds a keyed hash, never the token. Requests under another host name (DNS rebinding) and websockets
    opened by another origin are refused.
    """

    def __init__(self, app: ASGIApp, *, token: str, deployment: str) -> None:
        self._app, self._token = app, token
        self._session = hmac.new(token.encode(), b"distroml dashboard session", hashlib.sha256).hexdigest()
        # Cookies know no port: two deployments on one machine need two names.
        tag = hashlib.sha256(deployment.encode()).hexdigest()[:8]
        self._cookie = f"distroml_{tag}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if _hostname(host) not in _LOCAL_HOSTS:
            await _refuse(scope, receive, send, 421, "Wrong address", _WRONG_HOST)
        elif scope["type"] == "websocket":
            origin = headers.get("origin", "")
            if self._known(headers) and origin.partition("://")[2] == host:
                await self._app(scope, receive, send)
            else:
                await _refuse(scope, receive, send, 403, "", "")
        elif scope["path"] == LOGIN:
            await self._log_in(scope, receive, send)
        elif self._known(headers):
            await self._app(scope, receive, _with_headers(send))
        else:
            await _refuse(scope, receive, send, 401, "This dashboard wants its key", _HOW)

    def _known(self, headers: Headers) -> bool:
        jar = SimpleCookie()
        try:
            jar.load(headers.get("cookie", ""))
        except CookieError:
            return False
        found = jar.get(self._cookie)
        return found is not None and hmac.compare_digest(found.value.encode(), self._session.encode())

    async def _log_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        given = query.get("token", [""])[0]
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            said = "The key in the address is not this deployment's." if given else "The address holds no key."
            await _refuse(scope, receive, send, 403, "That key does not fit", f"<p>{said}</p>{_HOW}")
            return
        response = RedirectResponse("/", status_code=303, headers=dict(_HEADERS))
        response.set_cookie(self._cookie, self._session, max_age=_WEEK_S, httponly=True, samesite="strict", path="/")
        await response(scope, receive, send)


def _hostname(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(_HEADERS)
        await send(message)

    return sending


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, title: str, body: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 4403})
        return
    page = _PAGE.replace("{title}", title).replace("{body}", body)
    response = HTMLResponse(page, status_code=status, headers={**_HEADERS, "cache-control": "no-store"})
    await response(scope, receive, send)


_HOW: Final = (
    "<p>It shows logs and settings of this machine's training jobs, so it opens only with the data folder's key. "
    "Ask the command line for the address that holds it:</p><pre>distroml up</pre>"
    "<p>It prints a link that ends in <code>/login?token=…</code>; open it in this browser once. The key is the "
    "content of the file <code>token</code> in the data folder (<code>~/.distroml</code>, or "
    "<code>$DISTROML_DATA</code>).</p>"
)
_WRONG_HOST: Final = (
    "<p>This dashboard answers under <code>127.0.0.1</code> and <code>localhost</code> only. From another machine, "
    "use an SSH tunnel and open it under one of these names.</p>"
)
_PAGE: Final = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>DistroML</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root{color-scheme:light dark}
body{margin:0;min-height:100vh;display:grid;place-items:center;font:16px/1.6 system-ui,sans-serif;background:#f5f6f8;
color:#161a22}main{max-width:34rem;margin:1.5rem;padding:2rem 2.25rem;background:#fff;border:1px solid #e2e5ea;
border-radius:14px}h1{font-size:1.35rem;margin:0 0 .75rem;letter-spacing:-.01em}p{margin:.6rem 0;color:#4a5261}
code,pre{font-family:ui-monospace,"DejaVu Sans Mono",monospace;font-size:.9em;overflow-wrap:anywhere}
pre{padding:.7rem .9rem;border-radius:8px;background:#f0f2f5;color:#161a22}
@media(prefers-color-scheme:dark){body{background:#0c0f15;color:#e8ebf1}main{background:#141922;border-color:#262d3a}
p{color:#a3adbd}pre{background:#0c0f15;color:#e8ebf1}}</style></head>
<body><main><h1>{title}</h1>{body}</main></body></html>"""
