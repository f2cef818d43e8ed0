"""versitygw: another S3 over a folder. It proves that we depend on S3 and not on MinIO."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deploy.stack import health
from deploy.stack.install import go_install
from deploy.stack.minio import ACCESS_KEY, REGION, SECRET_KEY, s3_settings
from deploy.stack.server import Launch


class Versitygw:
    """`Server` for one gateway over one folder."""

    name = "versitygw"
    version = "1.8.0"
    ports = ("client",)

    def install(self, cache: Path) -> Path:
        """Built from source, 2 minutes the first time."""
        package = f"github.com/versity/versitygw/cmd/versitygw@v{self.version}"
        return go_install(cache, self.name, self.version, package)

    def start(self, programs: Path, folder: Path, ports: Mapping[str, int]) -> Launch:
        """One process over `folder/data`."""
        for needed in ("data", "iam"):
            (folder / needed).mkdir(exist_ok=True)
        return Launch(
            command=(
                *(str(programs / "versitygw"), "--port", f"127.0.0.1:{ports['client']}", "--region", REGION),
                *("--iam-dir", str(folder / "iam"), "posix", str(folder / "data")),
            ),
            environment={"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY},
        )

    def ready(self, ports: Mapping[str, int]) -> bool:
        """Whether it answers, if only that it must know who asks."""
        return health.answers_http(ports["client"], "/", statuses=(200, 403))

    def settings(self, ports: Mapping[str, int]) -> Mapping[str, str]:
        """As for MinIO."""
        return s3_settings(ports["client"])
