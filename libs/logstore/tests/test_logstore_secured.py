"""A real Elasticsearch behind TLS and credentials, as a deployment has it.

The one that the stack lays out has no users. Before it stands what checks them as the server's own security does: a
certificate of an authority of our own, and a password or an API key with every request.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import web

from deploy.stack.running import Running
from distroml.logstore import LogStoreRefused, Query
from distroml.logstore.conformance import block, line
from distroml.logstore.elastic import ElasticLogSearch, Shipper, Upkeep, check_server, connect
from distroml.logstore.elastic.template import stream_of
from distroml.logstore.settings import ENDPOINTS, ElasticSettings

# The server may begin within them: a minute on a busy machine.
pytestmark = pytest.mark.timeout(240)
BASIC = "Basic " + base64.b64encode(b"distroml:opensesame").decode()
API_KEY = "ApiKey bm9ib2R5OmtleQ=="
_PASSED = ("Content-Type", "X-Elastic-Product")


@dataclass
class Secured:
    """Where it is, and whom to trust."""

    url: str
    ca: Path
    asked: int = 0

    def settings(self, **more: str) -> ElasticSettings:
        """As the environment names it."""
        named = {f"{ENDPOINTS}_{name.upper()}": value for name, value in more.items()}
        found = ElasticSettings.read({ENDPOINTS: self.url, f"{ENDPOINTS}_CA": str(self.ca), **named}, "Secured")
        assert found is not None
        return found


@pytest.fixture
async def secured(server: Running, tmp_path: Path) -> AsyncIterator[Secured]:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    found = Secured("", tmp_path / "ca.pem")

    async def handle(request: web.Request) -> web.Response:
        found.asked += 1
        if request.headers.get("Authorization") not in (BASIC, API_KEY):
            refused = {"error": {"type": "security_exception", "reason": "unable to authenticate"}, "status": 401}
            return web.json_response(refused, status=401, headers={"X-Elastic-Product": "Elasticsearch"})
        headers = {name: request.headers[name] for name in ("Content-Type", "Accept") if name in request.headers}
        async with session.request(
            request.method,
            f"http://127.0.0.1:{server.port}{request.raw_path}",
            data=await request.read(),
            headers=headers,
        ) as answer:
            passed = {name: answer.headers[name] for name in _PASSED if name in answer.headers}
            return web.Response(status=answer.status, body=await answer.read(), headers=passed)

    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    async with aiohttp.ClientSession() as session:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        found.url = f"https://localhost:{runner.addresses[0][1]}"
        yield found
        await runner.cleanup()


async def refusal(settings: ElasticSettings) -> str:
    async with connect(settings) as client:
        with pytest.raises(LogStoreRefused) as refused:
            await check_server(client)
    return str(refused.value)


@asynccontextmanager
async def shipping(
    settings: ElasticSettings, told: list[str | None]
) -> AsyncIterator[tuple[Shipper, ElasticLogSearch]]:
    async with connect(settings) as client:
        shipper = Shipper(
            client,
            settings.namespace,
            host="node-a",
            max_bytes=1 << 20,
            count=lambda outcome, lines: None,
            tell=told.append,
        )
        task = asyncio.create_task(shipper.run())
        yield shipper, ElasticLogSearch(client, settings.namespace)
        task.cancel()
        await asyncio.wait([task])


async def test_lines_are_shipped_searched_and_removed_over_tls_as_a_user(server: Running, secured: Secured) -> None:
    told: list[str | None] = []
    by_password = secured.settings(user="distroml", password="opensesame")
    async with shipping(by_password, told) as (shipper, _):
        shipper.add(block(line("job-a", "by a password")))
        assert await shipper.flush(60)
    async with shipping(secured.settings(api_key=API_KEY.split()[1]), told) as (shipper, search):
        shipper.add(block(line("job-a", "by a key", at=1)))
        assert await shipper.flush(60)
        async with connect(by_password) as client:
            await client.indices.refresh(index=stream_of(by_password.namespace))
            upkeep = Upkeep(client, by_password.namespace, retention_s=10**9, holder="telemetry")
            assert await upkeep.round(10**12) is not None
        page = await search.search(Query(job="job-a"))
        assert [one.text for one in page.lines] == ["by a password", "by a key"]
    assert set(told) == {None}
    assert secured.asked > 0


async def test_wrong_credentials_and_certificates_are_each_named(secured: Secured, tmp_path: Path) -> None:
    assert "refuses the credentials (401)" in await refusal(secured.settings())
    wrong = await refusal(secured.settings(user="distroml", password="guess"))
    assert "refuses the credentials (401)" in wrong
    assert "guess" not in wrong
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    assert f"{ENDPOINTS}_CA" in await refusal(secured.settings(ca=str(other), user="distroml", password="opensesame"))
    # Trusted, and of another host.
    secured.url = secured.url.replace("localhost", "127.0.0.1")
    assert f"{ENDPOINTS}_CA" in await refusal(secured.settings(user="distroml", password="opensesame"))
