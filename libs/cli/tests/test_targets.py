"""What Prometheus is told to scrape: every control plane that runs, once, and none that doesn't."""

import json
import os
from pathlib import Path

from distroml.cli.plane.datafolder import DataFolder
from distroml.cli.plane.targets import FILE, SHARED, Targets


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
