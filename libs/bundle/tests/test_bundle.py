"""Bundles: deterministic, bounded, and safe to unpack."""

import io
import os
import tarfile
import tempfile
from hashlib import sha256
from pathlib import Path

import pytest

from distroml.bundle import BundleError, pack, unpack


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_what_is_packed_comes_out_again(tmp_path: Path) -> None:
    root = tree(tmp_path / "code", {"train.py": "print(1)", "pkg/__init__.py": "", "pkg/a.py": "x = 2"})
    (root / "train.py").chmod(0o755)
    bundle = pack(root, tmp_path / "b.tar.gz")
    unpack(bundle.path, tmp_path / "out", sha256=bundle.sha256)
    found = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == {"train.py", "pkg/__init__.py", "pkg/a.py"}
    assert os.access(tmp_path / "out/train.py", os.X_OK)
    assert (tmp_path / "out/pkg/a.py").read_text() == "x = 2"


def test_the_hash_depends_on_content_only(tmp_path: Path) -> None:
    one = tree(tmp_path / "one", {"a.py": "1", "b/c.py": "2"})
    two = tree(tmp_path / "two", {"b/c.py": "2", "a.py": "1"})
    os.utime(two / "a.py", (1, 1))
    assert pack(one, tmp_path / "1").sha256 == pack(two, tmp_path / "2").sha256
    (two / "a.py").write_text("3")
    assert pack(one, tmp_path / "1").sha256 != pack(two, tmp_path / "2").sha256


def test_ignored_files_and_foreign_links_stay_out(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "code",
        {"a.py": "", "big.bin": "x", ".git/config": "", "m/__pycache__/a.pyc": "", ".distromlignore": "*.bin\n"},
    )
    (root / "passwd").symlink_to("/etc/passwd")
    (root / "alias.py").symlink_to("a.py")
    bundle = pack(root, tmp_path / "b")
    with tarfile.open(bundle.path) as tar:
        assert sorted(tar.getnames()) == [".distromlignore", "a.py", "alias.py"]
    assert bundle.skipped_links == ("passwd",)


def test_a_folder_that_may_not_be_read_is_no_empty_one() -> None:
    # Root may read everything, and nobody else may look into pytest's folders.
    mine = os.geteuid()
    with tempfile.TemporaryDirectory() as scratch:
        code = tree(Path(scratch), {"train.py": "", "secret/data.py": ""})
        code.chmod(0o755)
        (code / "secret").chmod(0)
        try:
            os.seteuid(65534 if mine == 0 else mine)
            with pytest.raises(BundleError, match=r"cannot read .*/secret: Permission denied; name it in"):
                pack(code, code / "b.tar.gz")
        finally:
            os.seteuid(mine)
            (code / "secret").chmod(0o700)


def test_a_folder_past_the_cap_is_refused_with_its_largest_files(tmp_path: Path) -> None:
    root = tree(tmp_path / "code", {"small.py": "1", "weights.bin": "x" * 5000})
    with pytest.raises(BundleError, match=r"more than the cap.*weights\.bin"):
        pack(root, tmp_path / "b", cap_bytes=1000)


def hostile(path: Path, name: str, kind: bytes = tarfile.REGTYPE) -> str:
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.type = kind
        info.linkname = "/etc/passwd"
        info.size = 1 if kind == tarfile.REGTYPE else 0
        tar.addfile(info, io.BytesIO(b"x"))
    return sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("/abs", tarfile.REGTYPE), ("../up", tarfile.REGTYPE), ("a/../../up", tarfile.REGTYPE), ("l", tarfile.SYMTYPE)],
)
def test_a_hostile_archive_is_refused_and_leaves_nothing(tmp_path: Path, name: str, kind: bytes) -> None:
    digest = hostile(tmp_path / "evil", name, kind)
    with pytest.raises(BundleError, match="refused"):
        unpack(tmp_path / "evil", tmp_path / "in/out", sha256=digest)
    assert list((tmp_path / "in").iterdir()) == []


def test_changed_bytes_are_noticed(tmp_path: Path) -> None:
    bundle = pack(tree(tmp_path / "code", {"a.py": "1"}), tmp_path / "b")
    data = bytearray(bundle.path.read_bytes())
    data[len(data) // 2] ^= 1
    bundle.path.write_bytes(data)
    with pytest.raises(BundleError, match="damaged on the way"):
        unpack(bundle.path, tmp_path / "out", sha256=bundle.sha256)


def test_an_archive_that_unpacks_past_the_limit_is_refused(tmp_path: Path) -> None:
    bundle = pack(tree(tmp_path / "code", {"zeros": "0" * 100_000}), tmp_path / "b")
    with pytest.raises(BundleError, match="unpacks to more"):
        unpack(bundle.path, tmp_path / "out", sha256=bundle.sha256, max_bytes=50_000)
