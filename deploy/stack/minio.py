"""MinIO: S3 over a folder, the object store of the stack."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deploy.stack import health
from deploy.stack.install import go_install
from deploy.stack.server import Launch

# What guards a server on loopback whose data is a developer's own; a real deployment brings its own.
ACCESS_KEY = "distroml-local"
SECRET_KEY = "distroml-local-secret"
REGION = "us-east-1"


class Minio:
    """`Server` for one MinIO with one folder of data."""

    name = "minio"
    version = "2026-02-12"
    ports = ("client", "console")

    def install(self, cache: Path) -> Path:
        """Built from source, 5 minutes the first time."""
        return go_install(cache, self.name, self.version, "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c")

    def start(self, programs: Path, folder: Path, ports: Mapping[str, int]) -> Launch:
        """One process over `folder/data`."""
        return Launch(
            command=(
                *(str(programs / "minio"), "server", "--quiet", str(folder / "data")),
                *("--address", f"127.0.0.1:{ports['client']}", "--console-address", f"127.0.0.1:{ports['console']}"),
            ),
            environment={
                "MINIO_ROOT_USER": ACCESS_KEY,
                "MINIO_ROOT_PASSWORD": SECRET_KEY,
                "MINIO_REGION": REGION,
                "MINIO_UPDATE": "off",
                "MINIO_CALLHOME_ENABLE": "off",
            },
        )

    def ready(self, ports: Mapping[str, int]) -> bool:
        """Whether it can write."""
        return health.answers_http(ports["client"], "/minio/health/cluster")

    def settings(self, ports: Mapping[str, int]) -> Mapping[str, str]:
        """Where our services find their objects, and the credentials by the names every S3 client knows."""
        return s3_settings(ports["client"])


def s3_settings(port: int) -> Mapping[str, str]:
    """Environment of a service whose objects are in an S3 on loopback."""
    return {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": REGION,
        "DISTROML_OBJECTS": "s3://distroml",
    }
