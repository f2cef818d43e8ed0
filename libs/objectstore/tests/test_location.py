"""One text says where objects are."""

import socket
import subprocess
import sys

import pytest

from distroml.objectstore import ObjectStoreDown
from distroml.objectstore.location import check_location, open_location, survey_location


def test_a_folder_is_opened(tmp_path):
    store = open_location((tmp_path / "with space").as_uri())
    store.put("k", b"1")
    assert open_location((tmp_path / "with space").as_uri()).get("k") == b"1"
    assert (tmp_path / "with space" / "objects").is_dir()


@pytest.mark.parametrize("location", ["", "/folder", "file://host/folder", "gs://bucket", "s3://"])
@pytest.mark.parametrize("use", [check_location, open_location, lambda text: survey_location(text, None)])
def test_another_place_is_refused(location, use):
    with pytest.raises(ValueError, match="s3://BUCKET/PREFIX"):
        use(location)


def test_looking_makes_no_folder(tmp_path):
    check_location((tmp_path / "x").as_uri())
    survey_location((tmp_path / "x").as_uri(), None)
    assert not (tmp_path / "x").exists()


@pytest.mark.timeout(60)
def test_a_silent_server_is_given_up_in_time_where_somebody_waits(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"s3://bucket?endpoint=http://127.0.0.1:{silent.getsockname()[1]}"
        store = open_location(where, silence_s=0.2)
        with pytest.raises(ObjectStoreDown, match="no answer"):
            store.get("k")
        store.close()


def test_without_the_client_one_is_told_which_package_to_install():
    program = """
import sys
sys.modules["minio"] = None
from distroml.objectstore import ObjectStoreRefused
from distroml.objectstore.location import open_location
try:
    open_location("s3://bucket")
except ObjectStoreRefused as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip install 'distroml[stack]'" in done.stdout, done.stderr
