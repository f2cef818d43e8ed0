"""What the S3 back end works out by itself: names, sums, settings."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distroml.objectstore.keys import check_key
from distroml.objectstore.s3 import checksum, read_settings
from distroml.objectstore.s3.names import beginning_of, can_begin_keys, key_of, name_of

# What keys are made of, thick with what escaping must get right.
parts = st.text(st.sampled_from('ab !"0 1é/-.\u00ff\U0001f600'), min_size=1, max_size=8)


def is_key(text):
    try:
        check_key(text)
    except ValueError:
        return False
    return True


keys = parts.filter(is_key)


@given(st.lists(keys, unique=True))
def test_names_sort_as_their_keys_do(some):
    assert [key_of(name) for name in sorted(map(name_of, some), key=str.encode)] == sorted(some)


@given(keys, keys)
def test_no_name_is_a_folder_of_another(one, other):
    assert not name_of(other).startswith(name_of(one) + "/")


@given(keys, parts)
def test_a_prefix_is_one_of_names_too(key, prefix):
    assert name_of(key).startswith(beginning_of(prefix)) == key.startswith(prefix)


@given(keys, parts)
def test_what_cannot_begin_a_key_begins_none(key, prefix):
    if key.startswith(prefix):
        assert can_begin_keys(prefix)


@pytest.mark.parametrize("name", ["a", "a/b", "a!2!", "a b!", "a!!"])
def test_a_strangers_name_is_no_key(name):
    assert key_of(name) is None


@given(st.lists(st.binary(max_size=300), min_size=1))
def test_the_sum_of_parts_is_the_sum_of_the_whole(pieces):
    total = 0
    for piece in pieces:
        total = checksum.combined(total, checksum.checksum(piece), len(piece))
    assert total == zlib.crc32(b"".join(pieces))


def test_a_sum_is_read_as_it_is_written():
    assert checksum.stored({checksum.HEADER: checksum.written(0x01020304)}) == 0x01020304
    # Known answer: CRC-32 of "123456789" is cbf43926.
    assert checksum.written(checksum.checksum(b"123456789")) == "y/Q5Jg=="


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {checksum.HEADER: "y/Q5Jg==-3"},
        {checksum.HEADER: "y/Q5Jg==", checksum.KIND: "COMPOSITE"},
    ],
)
def test_a_sum_of_sums_is_not_taken_for_the_wholes(headers):
    assert checksum.stored(headers) is None


def test_a_location_and_the_environment_say_where():
    environ = {
        "AWS_ENDPOINT_URL": "https://everything:1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9000/",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "SSL_CERT_FILE": "/ca.pem",
    }
    found = read_settings("s3://bucket/some/pre%20fix/", environ)
    assert (found.bucket, found.prefix, found.endpoint) == ("bucket", "some/pre fix/", "http://127.0.0.1:9000")
    assert (found.region, found.ca_file, found.ask_for_role) == ("eu-west-1", "/ca.pem", False)


def test_the_location_overrules_the_environment():
    environ = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9000", "AWS_REGION": "eu-west-1"}
    found = read_settings("s3://bucket?endpoint=https://s3.example.test&region=mars", environ)
    assert (found.prefix, found.endpoint, found.region) == ("", "https://s3.example.test", "mars")


def test_without_an_endpoint_it_is_amazons():
    assert read_settings("s3://bucket", {"AWS_REGION": "eu-west-1"}).endpoint == "https://s3.eu-west-1.amazonaws.com"


def test_a_role_is_asked_for_where_there_is_one():
    assert read_settings("s3://bucket", {"AWS_WEB_IDENTITY_TOKEN_FILE": "/t"}).ask_for_role


@pytest.mark.parametrize(
    "location", ["s3://", "s3:///prefix", "gs://bucket", "s3://bucket?part=1", "s3://bucket#x", "bucket"]
)
def test_a_malformed_location_says_how_one_looks(location):
    with pytest.raises(ValueError, match="s3://BUCKET/PREFIX"):
        read_settings(location, {})


def test_credentials_in_a_location_are_refused_unseen():
    with pytest.raises(ValueError, match="must not hold credentials") as refused:
        read_settings("s3://me:hunter2@bucket", {})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "ftp://host", "http://host/path", "http://"])
def test_a_malformed_endpoint_says_how_one_looks(endpoint):
    with pytest.raises(ValueError, match="no S3 endpoint; expected http://HOST:PORT"):
        read_settings("s3://bucket", {"AWS_ENDPOINT_URL_S3": endpoint})


def test_sizes_that_s3_would_refuse_are_refused_at_once():
    fine = read_settings("s3://bucket", {})
    fields = {name: getattr(fine, name) for name in ("bucket", "host")}
    with pytest.raises(ValueError, match="parts of 5242880 bytes or more"):
        type(fine)(**fields, part_bytes=1 << 20)
    with pytest.raises(ValueError, match="parallel is 0"):
        type(fine)(**fields, parallel=0)
