"""Who is not let in, or is no etcd that we know, is told so in words that say what to do."""

import asyncio
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest
import trustme

from deploy.stack import running
from deploy.stack.etcd import Etcd
from distroml.statestore import StateStoreDown, StateStoreFull
from distroml.statestore.etcd import EtcdSettings
from libs.statestore.tests.etcds import OldEtcd, TlsEtcd, store_on, url


async def outcome(*endpoints, **settings):
    """What a first call comes to."""
    store = store_on(*endpoints, timeout_s=1.5, **settings)
    try:
        await store.get("k")
    except StateStoreDown as error:
        return str(error)
    finally:
        await store.close()
    return "well"


def etcdctl(server, *arguments):
    command = [server.programs / "etcdctl", f"--endpoints={url(server)}", *arguments]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def guarded(tmp_path):
    """An etcd with authentication, where `ann` may write below `dep-1/`."""
    with running(Etcd(), tmp_path / "etcd") as server:
        etcdctl(server, "user", "add", "root:secret")
        etcdctl(server, "user", "grant-role", "root", "root")
        etcdctl(server, "user", "add", "ann:hers")
        etcdctl(server, "role", "add", "writer")
        etcdctl(server, "role", "grant-permission", "--prefix", "writer", "readwrite", "dep-1/")
        etcdctl(server, "user", "grant-role", "ann", "writer")
        etcdctl(server, "auth", "enable")
        yield server


async def test_users_and_passwords(guarded):
    where = url(guarded)
    assert await outcome(where, deployment="dep-1", user="ann", password="hers") == "well"
    assert "does not take this user and password" in await outcome(where, user="ann", password="his")
    assert "does not take this user and password" in await outcome(where, user="bob", password="hers")
    assert "wants a user and a password" in await outcome(where)
    refused = await outcome(where, deployment="dep-2", user="ann", password="hers")
    assert "may not touch this deployment's keys" in refused
    assert "hers" not in refused


async def test_a_token_that_a_restart_forgot_is_asked_for_again(guarded):
    store = store_on(url(guarded), deployment="dep-1", user="ann", password="hers")
    watching = store_on(url(guarded), deployment="dep-1", user="ann", password="hers")
    entry = await store.cas("k", b"1", expected=0)
    waiting = asyncio.create_task(anext(watching.watch("k", after=entry.revision)))
    await asyncio.sleep(0.2)
    await asyncio.to_thread(guarded.kill)
    await asyncio.to_thread(guarded.restart)
    assert (await store.cas("k", b"2", expected=entry.revision)).value == b"2"
    (change,) = await asyncio.wait_for(waiting, 10)
    assert change.value == b"2"
    await store.close()
    await watching.close()


async def test_a_watch_where_the_user_may_not_read(guarded):
    store = store_on(url(guarded), deployment="dep-2", user="ann", password="hers")
    with pytest.raises(StateStoreDown, match="grant its role"):
        await anext(store.watch("k", after=0))
    await store.close()


async def test_a_member_of_an_old_version_is_passed_over(etcd, answering):
    store = store_on(await answering(OldEtcd("3.4.23")), url(etcd))
    with pytest.raises(StateStoreDown, match="upgrade it"):
        await store.get("k")
    assert await store.get("k") is None
    await store.close()


async def test_a_user_where_authentication_is_off(etcd):
    assert "its authentication is off" in await outcome(url(etcd), user="ann", password="hers")


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def options(authority, tmp_path):
    """Of an etcd with a certificate of `authority` for a host."""

    def make(host, *, asks=False):
        issued = authority.issue_cert(host)
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{host}.pem")
        issued.private_key_pem.write_to_path(tmp_path / f"{host}.key")
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        certificate = ("--cert-file", str(tmp_path / f"{host}.pem"), "--key-file", str(tmp_path / f"{host}.key"))
        return (
            (*certificate, "--client-cert-auth", "--trusted-ca-file", str(tmp_path / "ca.pem")) if asks else certificate
        )

    return make


async def test_tls(authority, options, tmp_path):
    ca = authority.cert_pem.bytes()
    with running(TlsEtcd(*options("127.0.0.1")), tmp_path / "etcd") as server:
        assert await outcome(url(server, "https"), ca=ca) == "well"
        other = trustme.CA().cert_pem.bytes()
        assert "no authority that we trust" in await outcome(url(server, "https"), ca=other)
        assert "no authority that we trust" in await outcome(url(server, "https"))
        assert "it wants TLS" in await outcome(url(server))
    with running(TlsEtcd(*options("etcd.example.org")), tmp_path / "other") as server:
        assert "for another host" in await outcome(url(server, "https"), ca=ca)


async def test_certificates_of_clients(authority, options, tmp_path):
    ca = authority.cert_pem.bytes()

    def of(signer):
        issued = signer.issue_cert("client@example.org")
        return {"certificate": issued.cert_chain_pems[0].bytes(), "key": issued.private_key_pem.bytes()}

    with running(TlsEtcd(*options("127.0.0.1", asks=True)), tmp_path / "etcd") as server:
        assert await outcome(url(server, "https"), ca=ca, **of(authority)) == "well"
        assert "client certificate" in await outcome(url(server, "https"), ca=ca)
        assert "client certificate" in await outcome(url(server, "https"), ca=ca, **of(trustme.CA()))


async def test_tls_where_there_is_none(etcd):
    assert "it speaks no TLS there" in await outcome(url(etcd, "https"))


@pytest.fixture
async def answering():
    """Serve gRPC with a handler, and get its URL."""
    servers = []

    async def serve(*handlers):
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(handlers)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        return f"http://127.0.0.1:{port}"

    yield serve
    for server in servers:
        await server.stop(0)


@pytest.mark.parametrize("version", ["3.4.23", "2.3.8"])
async def test_an_old_etcd_is_refused_by_name(answering, version):
    refused = await outcome(await answering(OldEtcd(version)))
    assert f"is etcd {version}, and at least 3.5 is needed: upgrade it" in refused


async def test_a_server_without_a_version(answering):
    assert "does not say which version" in await outcome(await answering(OldEtcd("")))


async def test_another_server_of_grpc(answering):
    assert "answers gRPC but is no etcd" in await outcome(await answering())


async def test_a_web_server():
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as web:
        BaseHTTPRequestHandler.log_message = lambda *_: None
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        assert "what answers there is no etcd" in await outcome(f"http://127.0.0.1:{web.server_port}")
        web.shutdown()
        thread.join()


async def test_an_unknown_host():
    assert "host name is unknown" in await outcome("http://no-such-host.invalid:2379")


async def test_a_quota_that_is_reached(tmp_path):
    with running(Etcd(options=("--quota-backend-bytes", "3000000")), tmp_path / "etcd") as server:
        store = store_on(url(server))

        async def fill():
            # etcd looks at its size now and then.
            for n in range(100):
                await store.cas(f"k/{n}", b"x" * 1_000_000, expected=0)

        with pytest.raises(StateStoreFull, match="nothing was written"):
            await fill()
        written = len((await store.list("k/")).entries)
        assert 0 < written < 100
        await store.close()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"endpoints": ()}, "name at least one"),
        ({"endpoints": ("127.0.0.1:2379",)}, "no etcd endpoint"),
        ({"endpoints": ("http://h/path",)}, "no etcd endpoint"),
        ({"endpoints": ("http://h:x",)}, "Port"),
        ({"endpoints": ("http://a", "https://b")}, "all http:// or all https://"),
        ({"endpoints": ("http://a",), "user": "ann"}, "belong together"),
        ({"endpoints": ("https://a",), "key": b""}, "belong together"),
        ({"endpoints": ("http://a",), "ca": b"pem"}, "no https:// endpoint"),
        ({"endpoints": ("http://a",), "timeout_s": 0}, "greater than 0"),
    ],
)
def test_settings_that_cannot_be(settings, why):
    with pytest.raises(ValueError, match=why):
        EtcdSettings(**settings)


def test_a_password_is_not_shown():
    assert "secret" not in repr(EtcdSettings(endpoints=("http://a",), user="ann", password="secret"))


class SilentEtcd(grpc.GenericRpcHandler):
    """Takes every question, and answers none."""

    def service(self, details):
        async def wait(request, context):
            await asyncio.Event().wait()

        return grpc.unary_unary_rpc_method_handler(wait)


async def test_many_calls_to_a_silent_server_each_end_in_their_own_time(answering):
    store = store_on(await answering(SilentEtcd()), timeout_s=1.0)
    # One after the other they would take a minute.
    async with asyncio.timeout(20):
        outcomes = await asyncio.gather(*(store.get("k") for _ in range(60)), return_exceptions=True)
    assert {type(one) for one in outcomes} == {StateStoreDown}
    await store.close()
