"""Where Elasticsearch is and how one logs in, as the environment says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

ENDPOINTS: Final = "DISTROML_ELASTICSEARCH"


@dataclass(frozen=True, kw_only=True)
class ElasticSettings:
    """`DISTROML_ELASTICSEARCH` and what begins with it; lines of other deployments are in other data streams."""

    urls: tuple[str, ...]
    """Nodes of one cluster, one after the other with commas."""
    user: str = ""
    password: str = field(default="", repr=False)
    api_key: str = field(default="", repr=False)
    """Instead of user and password."""
    ca: str = ""
    """File with the certificates by which the server's is checked; the system's where it is empty."""
    namespace: str = "default"
    """The last part of the data streams' names: the deployment."""

    @classmethod
    def read(cls, environ: Mapping[str, str], deployment: str) -> ElasticSettings | None:
        """The settings, or None where there is no Elasticsearch.

        Raises:
            ValueError: names every variable that is wrong, and what to do.
        """
        urls = tuple(url.strip().rstrip("/") for url in environ.get(ENDPOINTS, "").split(",") if url.strip())
        if not urls:
            return None
        problems = [problem for url in urls if (problem := _wrong_url(url))]
        user, password, key = (environ.get(f"{ENDPOINTS}_{name}", "") for name in ("USER", "PASSWORD", "API_KEY"))
        if bool(user) != bool(password):
            problems.append(f"{ENDPOINTS}_USER and {ENDPOINTS}_PASSWORD go together: one of them is missing")
        if user and key:
            problems.append(f"{ENDPOINTS}_API_KEY stands instead of {ENDPOINTS}_USER: give one of them")
        if problems:
            raise ValueError("; ".join(problems))
        return cls(
            urls=urls, user=user, password=password, api_key=key, ca=environ.get(f"{ENDPOINTS}_CA", ""),
            namespace=namespace_of(deployment),
        )  # fmt: skip


def namespace_of(deployment: str) -> str:
    """The deployment's id as Elasticsearch allows it at the end of a data stream's name: there, `-` separates."""
    return re.sub(r"[^a-z0-9_.]", "_", deployment.lower())[:100] or "default"


def _wrong_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        return f"{ENDPOINTS}: {error}; expected https://HOST:9200"
    if parts.username or parts.password:
        return f"{ENDPOINTS}: a password in an address ends up in logs; set {ENDPOINTS}_USER and {ENDPOINTS}_PASSWORD"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return f"{ENDPOINTS}: {url!r} is no address; expected https://HOST:9200"
    return ""
