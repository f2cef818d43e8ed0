"""The data streams of lines, and the template by which Elasticsearch makes their indices.

Names follow Elastic's scheme `logs-DATASET-NAMESPACE`: the data set is `distroml.worker`, the namespace the deployment.
"""

from __future__ import annotations

from typing import Any, Final

from elasticsearch import ApiError, AsyncElasticsearch, NotFoundError

from distroml.logstore.elastic.client import speaking
from distroml.observability import logger

log = logger(__name__)

DATASET: Final = "distroml.worker"
TEMPLATE: Final = "logs-distroml"
VERSION: Final = 1
"""Raised with every change of the template; a server's newer one is left as it is."""

# Above the templates for `logs-*-*` that the server's distribution brings.
_PRIORITY: Final = 300
_KEYWORD: Final = {"type": "keyword", "ignore_above": 1024}
_MAPPINGS: Final[dict[str, Any]] = {
    # What nobody thought of is kept and not indexed: a worker's output must not grow the mapping.
    "dynamic": False,
    # Words are made from the message: they are searched, and need not come back.
    "_source": {"excludes": ["distroml.words"]},
    "properties": {
        "@timestamp": {"type": "date"},
        "ecs": {"properties": {"version": _KEYWORD}},
        "message": {"type": "text"},
        "log": {"properties": {"level": _KEYWORD, "logger": _KEYWORD}},
        "event": {"properties": {"id": _KEYWORD, "sequence": {"type": "long"}, "dataset": _KEYWORD}},
        "service": {"properties": {"name": _KEYWORD}},
        "host": {"properties": {"name": _KEYWORD}},
        "trace": {"properties": {"id": _KEYWORD}},
        "span": {"properties": {"id": _KEYWORD}},
        "distroml": {
            "properties": {
                "job": _KEYWORD,
                "worker": _KEYWORD,
                "stream": _KEYWORD,
                "rank": {"type": "integer"},
                "attempt": {"type": "integer"},
                "incarnation": {"type": "integer"},
                "generation": {"type": "long"},
                # Cut into words before it is sent, by the rule that all back ends share.
                "words": {"type": "text", "analyzer": "whitespace", "norms": False},
            }
        },
    },
}
_SETTINGS: Final[dict[str, Any]] = {"index.codec": "best_compression", "index.auto_expand_replicas": "0-1"}


def stream_of(namespace: str) -> str:
    """The data stream of what a deployment's workers wrote."""
    return f"logs-{DATASET}-{namespace}"


async def ensure_template(client: AsyncElasticsearch, *, version: int = VERSION) -> None:
    """The server has our template, of this release or of a newer one.

    Raises:
        LogStoreDown, LogStoreRefused: as `speaking`.
    """
    async with speaking():
        there = await _installed(client)
        if there >= version:
            return
        try:
            await client.indices.put_index_template(
                name=TEMPLATE,
                # Without an old one another process may put its own meanwhile, perhaps a newer one.
                create=there == 0,
                index_patterns=["logs-distroml.*-*"],
                priority=_PRIORITY,
                version=version,
                data_stream={},
                meta={"managed_by": "distroml"},
                template={"settings": _SETTINGS, "mappings": _MAPPINGS},
            )
        except ApiError:
            if await _installed(client) < version:
                raise
            return
    log.info("index template put", template=TEMPLATE, version=version, replaced=there)


async def _installed(client: AsyncElasticsearch) -> int:
    try:
        found = await client.indices.get_index_template(name=TEMPLATE)
    except NotFoundError:
        return 0
    return int(found["index_templates"][0]["index_template"].get("version", 0))
