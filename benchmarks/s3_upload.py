"""Uploading a checkpoint of 256 MB to MinIO: the rate of the store's `put` against the `minio` client's own.

Run: python benchmarks/s3_upload.py [--rounds 9] [--quick] [--folder DIR] [--server minio]   (to reach: 0.80)

Both send the same bytes in parts of the same size by as many threads, to one server that is begun here with its data
in DIR. Ours adds what the client does not do: a checksum of each part and of the whole that the server checks and
keeps, and a look at the stored object afterwards. Each round is a pair in alternating order; the ratio is that of a
pair, so what else the machine does weighs on both. Beside it stand the client against itself, which shows how much of
the figure is noise, and the rate at which the object is read back, checked against its sum, by either.
"""

from __future__ import annotations

import argparse
import io
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from minio import Minio

# The servers are the repository's, not the package's.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deploy.stack import registry, running
from distroml.objectstore.s3 import open_object_store, read_settings

BUCKET = "bench"


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def describe(name: str, ratios: list[float]) -> str:
    middle = statistics.median(ratios)
    return f"{name:<44} {middle:5.2f}   ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="3 rounds of 64 MB")
    parser.add_argument("--folder", type=Path, help="where the server keeps its data, on the disk in question")
    parser.add_argument("--server", default="minio", choices=("minio", "versitygw"))
    arguments = parser.parse_args()
    rounds, size = (3, 64_000_000) if arguments.quick else (arguments.rounds, 256_000_000)
    data = secrets.token_bytes(size)

    with (
        tempfile.TemporaryDirectory(dir=arguments.folder) as folder,
        running(registry.server(arguments.server), Path(folder)) as server,
    ):
        environment = dict(server.server.settings(server.ports))
        os.environ.update(environment)
        settings = read_settings(f"s3://{BUCKET}")
        store = open_object_store(settings, deployment="bench")
        client = Minio(
            settings.host,
            environment["AWS_ACCESS_KEY_ID"],
            environment["AWS_SECRET_ACCESS_KEY"],
            secure=False,
            region=settings.region,
        )

        def theirs() -> None:
            client.put_object(
                BUCKET,
                "theirs",
                io.BytesIO(data),
                size,
                part_size=settings.part_bytes,
                num_parallel_uploads=settings.parallel,
            )

        def theirs_back() -> None:
            with client.get_object(BUCKET, "theirs") as answer:
                assert len(answer.read()) == size

        def ours() -> None:
            store.put("ours", data)

        def ours_back() -> None:
            assert len(store.get("ours")) == size

        for work in (theirs, ours, theirs_back, ours_back):
            work()
        up: list[float] = []
        itself: list[float] = []
        back: list[float] = []
        rates: list[float] = []
        for number in range(rounds):
            order = (theirs, ours) if number % 2 else (ours, theirs)
            took = {work: seconds(work) for work in order}
            up.append(took[theirs] / took[ours])
            rates.append(size / took[ours] / 1e6)
            itself.append(seconds(theirs) / took[theirs])
            back.append(seconds(theirs_back) / seconds(ours_back))
        store.close()
    print(
        f"{size / 1e6:.0f} MB, parts of {settings.part_bytes >> 20} MiB, {settings.parallel} threads, {rounds} rounds"
    )
    print(describe("rate of put against the client's own", up))
    print(describe("the client against itself", itself))
    print(describe("rate of get, checked, against the client's", back))
    print(f"{'put, MB/s':<44} {statistics.median(rates):5.0f}")


if __name__ == "__main__":
    main()
