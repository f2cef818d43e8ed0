"""What Prometheus is told to scrape: every control plane that runs, once, and none that doesn't."""

import fcntl
import json
import os
from pathlib import Path

import pytest

from distroml.cli.plane.datafolder import DataFolder
from distroml.cli.plane.targets import FILE, SHARED, Targets


def test_a_plane_that_begins_while_another_sweeps_keeps_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of the one that was killed goes while its folder cannot be taken."""
    shared = tmp_path / "targets"
    folders = [DataFolder(tmp_path / name) for name in ("one", "killed")]
    targets = [Targets(folder.path, folder.prepare(), {SHARED: str(shared)}) for folder in folders]
    os.close(folders[1].lock())
    targets[1].write({"scheduler": "127.0.0.1:1"})
    unlink, taken = Path.unlink, list[bool]()

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        if path.parent == shared:
            with (folders[1].path / "lock").open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    taken.append(False)
                else:
                    taken.append(True)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlinked)
    targets[0].write({"scheduler": "127.0.0.1:0"})
    assert taken == [False]
    assert [path.name for path in shared.iterdir()] == [f"{folders[0].deployment()}.json"]


def test_planes_tell_where_they_are_and_sweep_up_after_those_that_were_killed(tmp_path: Path) -> None:
    shared = tmp_path / "prometheus" / "targets"
    environ = {SHARED: str(shared)}
    folders = [DataFolder(tmp_path / name) for name in ("one", "two", "killed")]
    targets = [Targets(folder.path, folder.prepare(), environ) for folder in folders]
    one, two, killed = (f"{folder.deployment()}.json" for folder in folders)
    locks = [folder.lock() for folder in folders]
    for number, each in enumerate(targets):
        each.write({"scheduler": f"127.0.0.1:{number}", "relay": f"127.0.0.1:1{number}"})
    (shared / "theirs.json").write_text('[{"targets": ["127.0.0.1:9"]}]')
    (shared / "broken.json").write_text("[")

    def there() -> set[str]:
        return {path.name for path in shared.iterdir()}

    assert there() == {one, two, killed, "theirs.json", "broken.json"}
    told = json.loads((shared / one).read_text())
    assert [(each["targets"], each["labels"]["service"]) for each in told] == [
        (["127.0.0.1:0"], "scheduler"),
        (["127.0.0.1:10"], "relay"),
    ]
    assert (folders[0].path / FILE).read_text() == (shared / one).read_text()

    os.close(locks[2])
    targets[1].forget()
    assert there() == {one, "theirs.json", "broken.json"}
    assert not (folders[1].path / FILE).exists()
    # One that is told of no such folder has its own file only.
    alone = Targets(folders[1].path, folders[1].deployment(), {})
    alone.write({"scheduler": "127.0.0.1:5"})
    assert (folders[1].path / FILE).exists()
    assert there() == {one, "theirs.json", "broken.json"}
    os.close(locks[0])
    targets[1].write({})
    assert there() == {two, "theirs.json", "broken.json"}
