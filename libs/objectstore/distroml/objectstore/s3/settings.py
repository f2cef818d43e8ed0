"""Where a bucket is and how it is used: from a location `s3://BUCKET/PREFIX` and the environment that S3 clients share.

The location may name what differs from the environment: `s3://bucket/prefix?endpoint=http://127.0.0.1:9000&region=eu`.
Credentials are never part of it, for locations are shown.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

MIN_PART_BYTES: Final = 5 << 20
"""What S3 asks of every part but the last."""
MAX_PARTS: Final = 10_000
"""What S3 allows."""

_DEFAULT_REGION = "us-east-1"
_OPTIONS = ("endpoint", "region")
# Asking the machine for its role takes seconds where it has none: done only where somebody says that it has.
_ROLE = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """One bucket, or the part of it below a prefix, and how it is spoken to."""

    bucket: str
    prefix: str = ""
    """Empty, or ends in `/`."""
    host: str
    """host:port of the endpoint."""
    secure: bool = True
    region: str = _DEFAULT_REGION
    ca_file: str | None = None
    """Certificates of authorities that are trusted instead of the usual ones."""
    ask_for_role: bool = False
    """Whether the machine may be asked for credentials that nobody else has."""
    part_bytes: int = 16 << 20
    """Objects larger than this are uploaded in parts of this size, larger ones where they would be too many."""
    parallel: int = 4
    """Parts of all puts together that are in memory and on their way at once."""
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 60.0
    """How long the server may be silent."""
    retries: int = 5
    """How often a request is sent again, with pauses from 0.3 s on that double; about 10 s in all."""

    def __post_init__(self) -> None:
        """Raise `ValueError` naming what is wrong."""
        if self.part_bytes < MIN_PART_BYTES:
            raise ValueError(f"part_bytes is {self.part_bytes}; S3 takes parts of {MIN_PART_BYTES} bytes or more")
        if self.parallel < 1:
            raise ValueError(f"parallel is {self.parallel}; it is 1 or more")

    @property
    def endpoint(self) -> str:
        """The server's URL."""
        return f"{'https' if self.secure else 'http'}://{self.host}"

    @property
    def place(self) -> str:
        """Bucket, prefix and server, for messages."""
        return f"s3://{self.bucket}/{self.prefix} at {self.endpoint}"


def read_settings(location: str, environ: Mapping[str, str] = os.environ) -> S3Settings:
    """The settings for a location.

    Read are `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_DEFAULT_REGION`, `AWS_CA_BUNDLE` and
    `SSL_CERT_FILE`.

    Raises:
        ValueError: the location or the endpoint is malformed; says how one looks.
    """
    parts = urlsplit(location)
    if parts.username is not None or parts.password is not None:
        # Not with the location itself: it holds a secret.
        raise ValueError("an s3:// location must not hold credentials: they come from the environment or ~/.aws")
    options = parse_qs(parts.query, keep_blank_values=True)
    if parts.scheme != "s3" or not parts.netloc or parts.fragment or not set(options) <= set(_OPTIONS):
        raise ValueError(
            f"{location!r} is no location of objects; expected s3://BUCKET/PREFIX, with ?endpoint=URL&region=NAME "
            "where the environment does not say them"
        )
    given = {name: values[-1] for name, values in options.items()}
    region = given.get("region") or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or _DEFAULT_REGION
    endpoint = given.get("endpoint") or environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
    server = urlsplit(endpoint or f"https://s3.{region}.amazonaws.com")
    if server.scheme not in ("http", "https") or not server.hostname or server.path.strip("/") or server.query:
        raise ValueError(f"{endpoint!r} is no S3 endpoint; expected http://HOST:PORT or https://HOST:PORT")
    prefix = unquote(parts.path).strip("/")
    return S3Settings(
        bucket=parts.netloc,
        prefix=f"{prefix}/" if prefix else "",
        host=server.netloc,
        secure=server.scheme == "https",
        region=region,
        ca_file=environ.get("AWS_CA_BUNDLE") or environ.get("SSL_CERT_FILE") or None,
        ask_for_role=any(environ.get(name) for name in _ROLE),
    )
