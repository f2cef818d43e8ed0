"""What the S3 back end makes of answers that no healthy server gives, and of credentials."""

import socket
import time
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate

import pytest

from distroml.objectstore import (
    NoSuchObject,
    ObjectDamaged,
    ObjectStoreDown,
    ObjectStoreFull,
    ObjectStoreRefused,
)
from distroml.objectstore.s3 import S3ObjectStore, open_object_store, read_settings
from libs.objectstore.tests.servers import Answer, answering, greeting

SECRET = "wJalrXUtnFEMI-not-to-be-shown"


@pytest.fixture(autouse=True)
def credentials(monkeypatch, tmp_path):
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_SHARED_CREDENTIALS_FILE", "MINIO_ACCESS_KEY", "MINIO_ALIAS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


@contextmanager
def store(url, **changes):
    settings = replace(read_settings("s3://bucket/p", {"AWS_ENDPOINT_URL_S3": url}), **({"retries": 0} | changes))
    opened = S3ObjectStore(settings)
    try:
        yield opened
    finally:
        opened.close()


def error(code, status, message="so it is", **headers):
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    return Answer(status, body, {"Content-Type": "application/xml"} | headers)


def raised(answer, *, expected=ObjectStoreDown, **changes):
    """The text of what a put raises on an answer."""
    with (
        answering(lambda request: answer) as url,
        store(url, **changes) as opened,
        pytest.raises(expected) as caught,
    ):
        opened.put("key", b"1")
    assert caught.type is expected
    assert SECRET not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken"])
def test_wrong_credentials(code):
    text = raised(error(code, 403), expected=ObjectStoreRefused)
    assert code in text
    assert "AWS_SECRET_ACCESS_KEY" in text
    assert "~/.aws/credentials" in text


@pytest.mark.parametrize(("ahead_s", "said"), [(16 * 60, "16 minutes behind"), (-20 * 60, "20 minutes ahead of")])
def test_clocks_apart_say_how_far_and_which_way(ahead_s, said):
    answer = error("RequestTimeTooSkewed", 403, Date=formatdate(time.time() + ahead_s, usegmt=True))
    assert f"our clock is {said} the server's; set the clocks" in raised(answer, expected=ObjectStoreRefused)


def test_a_region_that_is_another():
    text = raised(error("AuthorizationHeaderMalformed", 400, "expecting 'mars'"), expected=ObjectStoreRefused)
    assert "expecting 'mars'" in text
    assert "AWS_REGION" in text


def test_no_bucket():
    assert "no bucket 'bucket'" in raised(error("NoSuchBucket", 404), expected=ObjectStoreRefused)


@pytest.mark.parametrize(
    "answer",
    [error("XMinioStorageFull", 507), error("QuotaExceeded", 403), error("SlowDown", 507), Answer(507, b"full")],
)
def test_no_room(answer):
    assert "nothing was written" in raised(answer, expected=ObjectStoreFull)


@pytest.mark.parametrize("code", ["BadDigest", "XAmzContentSHA256Mismatch"])
def test_damage_on_the_way(code):
    assert "damaged on its way" in raised(error(code, 400), expected=ObjectDamaged)


@pytest.mark.parametrize("answer", [error("InternalError", 500), Answer(502, b"<html>"), error("SlowDown", 503)])
def test_a_server_in_trouble_is_down(answer):
    raised(answer)


@pytest.mark.parametrize("answer", [Answer(404, b"404 page not found"), Answer(405, b"{}"), Answer(400, b"")])
def test_an_http_server_that_is_no_s3(answer):
    assert "not as S3 does" in raised(answer, expected=ObjectStoreRefused)


def test_a_web_page_where_a_listing_should_be():
    with (
        answering(lambda request: Answer(200, b"<html><p>Sign in</html>", {"Content-Type": "text/html"})) as url,
        store(url) as opened,
        pytest.raises(ObjectStoreRefused, match="no XML, but not as S3 does"),
    ):
        opened.list()


def test_a_server_that_speaks_no_http():
    with (
        greeting(b'INFO {"server_id":"N"}\r\n') as url,
        store(url) as opened,
        pytest.raises(ObjectStoreRefused, match=r"speaks no HTTP \(it said 'INFO"),
    ):
        opened.get("key")


def test_plain_http_where_tls_was_expected():
    with (
        answering(lambda request: Answer()) as url,
        store(url.replace("http", "https")) as opened,
        pytest.raises(ObjectStoreRefused, match=r"no secure connection .* is it http:// in truth"),
    ):
        opened.get("key")


def test_nobody_there_is_down_and_no_refusal():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with store(url) as opened, pytest.raises(ObjectStoreDown, match="Connection refused") as caught:
            opened.get("key")
        assert caught.type is ObjectStoreDown
        # A worker begins its training all the same; a service, which would claim the bucket, does not.
        settings = replace(read_settings("s3://bucket", {"AWS_ENDPOINT_URL_S3": url}), retries=0)
        open_object_store(settings).close()
        with pytest.raises(ObjectStoreDown):
            open_object_store(settings, deployment="d")


def test_a_silent_server_is_down_in_time():
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        begun = time.monotonic()
        with store(url, read_timeout_s=0.3) as opened, pytest.raises(ObjectStoreDown, match="Read timed out"):
            opened.get("key")
        assert time.monotonic() - begun < 10


def test_what_failed_is_sent_again():
    asked = []

    def answer(request):
        asked.append(request.method)
        if len(asked) < 3:
            return error("SlowDown", 503)
        return Answer(headers={"ETag": '"t"', "Last-Modified": "Thu, 26 Nov 2026 06:00:00 GMT"})

    with answering(answer) as url, store(url, retries=2) as opened:
        assert opened.put("key", b"").size == 0
    assert asked == ["PUT", "PUT", "PUT", "HEAD"]


def test_an_absent_object():
    with answering(lambda request: error("NoSuchKey", 404)) as url, store(url) as opened:
        with pytest.raises(NoSuchObject):
            opened.get("key")
        assert opened.head("key") is None
        opened.delete("key")


def test_what_reads_back_otherwise_than_it_was_written_is_damaged():
    # The sum is that of "123456789".
    answer = Answer(body=b"123456780", headers={"ETag": '"t"', "x-amz-checksum-crc32": "y/Q5Jg=="})
    with answering(lambda request: answer) as url, store(url) as opened:
        with pytest.raises(ObjectDamaged, match="CRC-32"):
            opened.get("key")
        blocks = opened.stream("key", block=5)
        assert [next(blocks), next(blocks)] == [b"12345", b"6780"]
        with pytest.raises(ObjectDamaged, match="what was written had cbf43926"):
            next(blocks)


def test_an_object_of_another_size_than_was_written_is_damaged():
    answer = Answer(headers={"ETag": '"t"', "Last-Modified": "Thu, 26 Nov 2026 06:00:00 GMT", "Content-Length": "0"})
    with (
        answering(lambda request: answer) as url,
        store(url) as opened,
        pytest.raises(ObjectDamaged, match="has 0 bytes; 3 were written"),
    ):
        opened.put("key", b"123")


@pytest.mark.parametrize("code", [200, 501])
def test_a_server_without_conditional_puts_is_refused_one(code):
    puts = []

    def answer(request):
        if request.method == "PUT":
            puts.append(request.path)
            if "If-None-Match" in request.headers and code == 501:
                return error("NotImplemented", 501)
        return Answer(headers={"ETag": '"t"', "Last-Modified": "Thu, 26 Nov 2026 06:00:00 GMT"})

    with answering(answer) as url, store(url) as opened:
        for _ in range(2):
            with pytest.raises(ObjectStoreRefused, match="does not heed `If-None-Match"):
                opened.put("key", b"1", if_absent=True)
        assert set(puts) == {"/bucket/p/probe"}
        assert len(puts) == 2
        opened.put("key", b"")


def test_credentials_come_from_the_usual_files(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    seen = []

    def answer(request):
        seen.append(request.headers["Authorization"].partition("Credential=")[2].partition("/")[0])
        return error("NoSuchKey", 404)

    with answering(answer) as url:
        with store(url) as opened, pytest.raises(ObjectStoreRefused, match="there are no S3 credentials: set AWS"):
            opened.head("key")
        (tmp_path / ".mc").mkdir()
        (tmp_path / ".mc" / "config.json").write_text('{"aliases": {"s3": {"accessKey": "mc", "secretKey": "x"}}}')
        with store(url) as opened:
            opened.head("key")
        (tmp_path / ".aws").mkdir()
        file = tmp_path / ".aws" / "credentials"
        for profile in ("default", "other"):
            with file.open("a") as lines:
                lines.write(f"[{profile}]\naws_access_key_id = {profile}-key\naws_secret_access_key = x\n")
        with store(url) as opened:
            opened.head("key")
        monkeypatch.setenv("AWS_PROFILE", "other")
        with store(url) as opened:
            opened.head("key")
        monkeypatch.setenv("MINIO_ACCESS_KEY", "minio")
        monkeypatch.setenv("MINIO_SECRET_KEY", "x")
        with store(url) as opened:
            opened.head("key")
    assert seen == ["mc", "default-key", "other-key", "minio"]


def test_a_malformed_credentials_file_is_told_without_its_content(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(f"aws_secret_access_key = {SECRET}\n")
    with store("http://127.0.0.1:1") as opened, pytest.raises(ObjectStoreRefused, match="malformed") as caught:
        opened.head("key")
    chain = caught.value
    assert SECRET not in repr(chain)
    assert chain.__cause__ is None
