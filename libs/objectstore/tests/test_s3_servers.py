"""The S3 back end against real servers, also with trouble on the way to them."""

from __future__ import annotations

import io
import secrets
import signal
import subprocess
import sys
import threading
import tracemalloc
from dataclasses import replace
from datetime import timedelta

import minio.time
import pytest

from deploy.stack import registry, running
from distroml.objectstore import (
    NoSuchObject,
    ObjectDamaged,
    ObjectExists,
    ObjectStoreDown,
    ObjectStoreRefused,
)
from distroml.objectstore.conformance import ObjectStoreConformance
from distroml.objectstore.location import survey_location
from distroml.objectstore.s3 import checksum, open_object_store, read_settings
from distroml.objectstore.s3.settings import MIN_PART_BYTES
from libs.objectstore.tests.servers import Answer, between

BIG = 3 * MIN_PART_BYTES + 12_345


@pytest.fixture(scope="module", params=["minio", "versitygw"])
def server(request, tmp_path_factory):
    with running(registry.server(request.param), tmp_path_factory.mktemp(request.param)) as it:
        yield it


@pytest.fixture(autouse=True)
def usual_settings(server, monkeypatch):
    for name, value in server.server.settings(server.ports).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket():
    return f"b-{secrets.token_hex(6)}"


@pytest.fixture
def opened():
    """Opens stores with parts as small as S3 allows; closed afterwards."""
    stores = []

    def open_one(bucket, *, url=None, deployment="d", **changes):
        settings = replace(read_settings(f"s3://{bucket}/some/where"), part_bytes=MIN_PART_BYTES, **changes)
        if url is not None:
            settings = replace(settings, host=url.removeprefix("http://"))
        stores.append(open_object_store(settings, deployment=deployment))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def store(opened, bucket):
    return opened(bucket)


class TestConformance(ObjectStoreConformance):
    @pytest.fixture
    def store(self, opened, bucket):
        return opened(bucket)


def random_bytes(size):
    return secrets.token_bytes(1 << 16) * (size >> 16) + secrets.token_bytes(size & 0xFFFF)


@pytest.mark.parametrize("kind", ["bytes", "view", "file", "path", "slow"])
def test_a_large_object_goes_in_parts_and_comes_back_whole(store, tmp_path, kind):
    class Slow(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 1_000_003))

    data = random_bytes(BIG)
    (tmp_path / "file").write_bytes(data)
    sources = {
        "bytes": data,
        "view": memoryview(data),
        "file": io.BytesIO(data),
        "path": tmp_path / "file",
        "slow": Slow(data),
    }
    info = store.put("k", sources[kind])
    assert info.size == BIG
    assert store.head("k") == info
    assert store.get("k") == data
    assert b"".join(store.stream("k", block=700_001)) == data
    assert store.get("k", offset=MIN_PART_BYTES - 5, length=10) == data[MIN_PART_BYTES - 5 : MIN_PART_BYTES + 5]
    assert store.get("k", offset=BIG - 3) == data[-3:]


@pytest.mark.parametrize("size", [0, MIN_PART_BYTES, MIN_PART_BYTES + 1, 2 * MIN_PART_BYTES])
def test_the_server_keeps_the_sum_of_the_whole(store, size):
    data = random_bytes(size)
    store.put("k", io.BytesIO(data))
    kept = checksum.stored(store._client.head(store._name("k")))
    assert kept == checksum.checksum(data)


def test_of_many_large_conditional_puts_one_wins(store):
    outcomes, start = [], threading.Barrier(3)

    def put(n):
        start.wait()
        try:
            outcomes.append((n, store.put("k", bytes([n]) * BIG, if_absent=True)))
        except ObjectExists:
            outcomes.append((n, None))

    threads = [threading.Thread(target=put, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ((winner, info),) = [(n, info) for n, info in outcomes if info is not None]
    assert len(outcomes) == 3
    assert info.size == BIG
    assert store.get("k") == bytes([winner]) * BIG


def test_memory_is_bounded_whatever_the_size(opened, bucket):
    store = opened(bucket, parallel=2)

    class Endless:
        left = 16 * MIN_PART_BYTES

        def read(self, size):
            size = min(size, self.left)
            self.left -= size
            return bytes(size)

    tracemalloc.start()
    try:
        store.put("k", Endless())
        _, put_peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        assert sum(map(len, store.stream("k"))) == 16 * MIN_PART_BYTES
        _, stream_peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Two on their way, one that waits for room, one that is being read.
    assert put_peak < 4.5 * MIN_PART_BYTES
    assert stream_peak < MIN_PART_BYTES


def test_a_source_that_fails_leaves_nothing(store):
    class Failing:
        left = 3

        def read(self, size):
            self.left -= 1
            if not self.left:
                raise RuntimeError("the source is gone")
            return bytes(size)

    with pytest.raises(RuntimeError, match="the source is gone"):
        store.put("k", Failing())
    assert store.head("k") is None
    assert unfinished(store) == []


def unfinished(store):
    return store._client._list_multipart_uploads(store._settings.bucket).uploads


def test_a_killed_put_leaves_nothing_under_the_key(store, bucket, tmp_path):
    program = """
import os, signal, sys
from distroml.objectstore.location import open_location

class Killing:
    left = 4
    def read(self, size):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        return bytes(size)

open_location(sys.argv[1]).put("k", Killing())
"""
    done = subprocess.run([sys.executable, "-c", program, f"s3://{bucket}/some/where"], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert store.head("k") is None
    assert store.list() == []
    store.put("k", b"again", if_absent=True)


def test_what_was_put_outlives_the_server(opened, bucket, server):
    store = opened(bucket)
    data = random_bytes(BIG)
    store.put("large", data)
    store.put("small", b"1")
    server.kill()
    server.restart()
    assert store.get("large") == data
    assert store.get("small") == b"1"


# ---- Trouble between the store and the server.


def once(which, act):
    """Trouble for the first request that `which` is true of; the others go through."""
    done = threading.Event()

    def trouble(request, forward):
        if which(request) and not done.is_set():
            done.set()
            return act(request, forward)
        return forward(request)

    trouble.done = done
    return trouble


def of_key(request):
    return "/objects/k" in request.path


def lose_the_answer(request, forward):
    forward(request)
    return Answer(None)


@pytest.mark.parametrize("size", [3, BIG])
@pytest.mark.parametrize("if_absent", [False, True])
def test_a_put_whose_answer_is_lost_is_the_same_put(opened, bucket, server, size, if_absent):
    def last(request):
        final = "uploadId" in request.path if size == BIG else "partNumber" not in request.path
        return of_key(request) and request.method == ("POST" if size == BIG else "PUT") and final

    trouble = once(last, lose_the_answer)
    data = random_bytes(size)
    with between(server.port, trouble) as url:
        store = opened(bucket, url=url)
        assert store.put("k", data, if_absent=if_absent).size == size
        assert trouble.done.is_set()
        assert store.get("k") == data
        assert unfinished(store) == []


def test_a_part_that_is_refused_is_sent_again(opened, bucket, server):
    trouble = once(lambda request: "partNumber=2" in request.path, lambda request, forward: Answer(503))
    data = random_bytes(BIG)
    with between(server.port, trouble) as url:
        store = opened(bucket, url=url)
        store.put("k", data)
        assert trouble.done.is_set()
        assert store.get("k") == data


@pytest.mark.parametrize("size", [1000, BIG])
def test_a_byte_that_turns_on_its_way_up_is_noticed(opened, bucket, server, size):
    def turn(request, forward):
        request.body = bytes([request.body[0] ^ 1]) + request.body[1:]
        return forward(request)

    trouble = once(lambda request: of_key(request) and request.method == "PUT", turn)
    with between(server.port, trouble) as url:
        store = opened(bucket, url=url)
        with pytest.raises(ObjectDamaged, match="damaged on its way"):
            store.put("k", random_bytes(size))
        assert trouble.done.is_set()
        assert store.head("k") is None
        assert unfinished(store) == []


@pytest.mark.parametrize("size", [1000, BIG])
def test_a_byte_that_turns_on_its_way_down_is_noticed(opened, bucket, server, size):
    def turn(request, forward):
        answer = forward(request)
        answer.body = answer.body[:-1] + bytes([answer.body[-1] ^ 1])
        return answer

    trouble = once(lambda request: of_key(request) and request.method == "GET", turn)
    with between(server.port, trouble) as url:
        store = opened(bucket, url=url)
        data = random_bytes(size)
        store.put("k", data)
        with pytest.raises(ObjectDamaged, match="CRC-32"):
            store.get("k")
        assert store.get("k") == data


def cut(request, forward):
    answer = forward(request)
    answer.sent = len(answer.body) // 2
    return answer


def test_a_read_that_breaks_goes_on(opened, bucket, server):
    data = random_bytes(BIG)
    for read in (lambda store: store.get("k"), lambda store: b"".join(store.stream("k"))):
        trouble = once(lambda request: of_key(request) and request.method == "GET", cut)
        with between(server.port, trouble) as url:
            store = opened(bucket, url=url)
            store.put("k", data)
            assert read(store) == data
            assert trouble.done.is_set()


def test_a_stream_that_breaks_never_mixes_two_objects(opened, bucket, server):
    trouble = once(lambda request: of_key(request) and request.method == "GET", cut)
    with between(server.port, trouble) as url:
        store = opened(bucket, url=url)
        store.put("k", random_bytes(BIG))
        blocks = store.stream("k", block=1 << 20)
        next(blocks)
        opened(bucket).put("k", random_bytes(BIG))
        with pytest.raises(ObjectStoreDown, match="was replaced while it was read"):
            list(blocks)


# ---- Who may.


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_told(opened, bucket, monkeypatch, name):
    opened(bucket)
    monkeypatch.setenv(name, "somebody-else")
    for deployment in ("d", None):
        with pytest.raises(ObjectStoreRefused, match="AWS_SECRET_ACCESS_KEY") as caught:
            opened(bucket, deployment=deployment)
        assert "somebody-else" not in str(caught.value)


def test_clocks_far_apart_are_told(opened, bucket, monkeypatch):
    opened(bucket)
    utcnow = minio.time.utcnow
    monkeypatch.setattr(minio.time, "utcnow", lambda: utcnow() + timedelta(minutes=16))
    with pytest.raises(ObjectStoreRefused, match="set the clocks"):
        opened(bucket)


def test_a_bucket_has_one_deployment(opened, bucket):
    first = opened(bucket, deployment="first")
    opened(bucket, deployment="first").put("k", b"1")
    with pytest.raises(ObjectStoreRefused, match="belongs to the deployment first, this one is second"):
        opened(bucket, deployment="second")
    survey_location(f"s3://{bucket}/some/where", "first")
    with pytest.raises(ObjectStoreRefused, match="belongs to the deployment first"):
        survey_location(f"s3://{bucket}/some/where", "second")
    # Another prefix is another place, and a worker has no deployment to compare.
    survey_location(f"s3://{bucket}/else/where", "second")
    opened(bucket, deployment=None)
    assert [info.key for info in first.list()] == ["k"]


def test_services_that_start_together_share_a_new_bucket(opened, bucket):
    failures, start = [], threading.Barrier(4)

    def claim():
        start.wait()
        try:
            opened(bucket)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_bucket_that_is_not_there_is_told_to_a_worker(opened, bucket):
    with pytest.raises(ObjectStoreRefused, match=f"no bucket '{bucket}'"):
        opened(bucket, deployment=None)


def test_a_key_too_long_for_the_prefix_is_refused(store):
    key = "/".join(["k" * 100] * 10)
    with pytest.raises(ValueError, match="longer than the 1024 bytes that S3 allows"):
        store.put(key, b"")
    with pytest.raises(NoSuchObject):
        store.get(key[:900].rstrip("/"))
