"""The connection to Elasticsearch: every trouble becomes an error of the port that says what to do about it."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import aiohttp
from elastic_transport import ConnectionTimeout, SerializationError, TlsError, TransportError
from elasticsearch import (
    ApiError,
    AsyncElasticsearch,
    AuthenticationException,
    AuthorizationException,
    UnsupportedProductError,
)

from distroml.logstore.port import LogStoreDown, LogStoreRefused
from distroml.logstore.settings import ENDPOINTS, ElasticSettings

MAJOR: Final = 9
"""The client speaks this version's form of the API, which servers before it refuse."""

REQUEST_TIMEOUT_S: Final = 30.0
_BUSY: Final = frozenset({408, 429, 502, 503, 504})


def connect(settings: ElasticSettings, *, timeout_s: float = REQUEST_TIMEOUT_S) -> AsyncElasticsearch:
    """A client of all nodes that are named; it connects on first use. Close it afterwards.

    Raises:
        LogStoreRefused: the file of certificates cannot be read.
    """
    # It tells of every request and every failure; callers tell of what lasts.
    logging.getLogger("elastic_transport").setLevel(logging.CRITICAL)
    # Another node at once where there is one; the callers' back-off does the rest.
    retries = len(settings.urls) - 1
    options: dict[str, Any] = {"request_timeout": timeout_s, "max_retries": retries, "retry_on_timeout": False}
    if settings.api_key:
        options["api_key"] = settings.api_key
    elif settings.user:
        options["basic_auth"] = (settings.user, settings.password)
    try:
        if any(url.startswith("https:") for url in settings.urls):
            # The client's own context takes a certificate of any host where a node is named by its IP address.
            options["ssl_context"] = ssl.create_default_context(cafile=settings.ca or None)
        return AsyncElasticsearch(list(settings.urls), **options)
    except (OSError, ValueError) as error:
        raise LogStoreRefused(f"Elasticsearch cannot be spoken to as {ENDPOINTS} says: {error}") from error


async def check_server(client: AsyncElasticsearch) -> str:
    """The server's version, one that can be used.

    Raises:
        LogStoreDown, LogStoreRefused: see `speaking`.
    """
    async with speaking():
        # Asked for any form of answer: servers of other versions then say who they are, instead of what they miss.
        answer = await client.perform_request("GET", "/", headers={"accept": "*/*"})
    number, distribution = _who(cast("object", answer.body))
    if not number:
        raise LogStoreRefused(f"what answers at {ENDPOINTS} is no Elasticsearch: {str(answer.body)[:120]!r}")
    if distribution or number.partition(".")[0] != str(MAJOR):
        raise LogStoreRefused(_unsupported(number, distribution))
    return number


async def clock_s(client: AsyncElasticsearch) -> int:
    """What time it is on the node that answers, Unix seconds, whole ones; its user needs the privilege `monitor`.

    Raises:
        LogStoreDown, LogStoreRefused: see `speaking`.
    """
    async with speaking():
        # Its answers have no header `Date`.
        answer = await client.cat.health(format="json", h="epoch")
    match answer.body:
        case [{"epoch": str(text)}] if text.isascii() and text.isdigit():
            return int(text)
        case other:
            raise LogStoreRefused(f"Elasticsearch does not say what time it is: {str(other)[:120]!r}")


@asynccontextmanager
async def speaking() -> AsyncGenerator[None]:
    """Errors of the client inside become errors of the port.

    Raises:
        LogStoreDown: no answer, or the server is busy.
        LogStoreRefused: another version or product, wrong credentials or certificates, or another protocol.
    """
    try:
        yield
    except UnsupportedProductError as error:
        number, distribution = _who(cast("object", error.body))
        if number:
            raise LogStoreRefused(_unsupported(number, distribution or "unknown")) from error
        raise LogStoreRefused(
            f"what answers at {ENDPOINTS} is no Elasticsearch: it says {str(error.body)[:120]!r}; check the port"
        ) from error
    except AuthenticationException as error:
        raise LogStoreRefused(
            f"Elasticsearch refuses the credentials (401): check {ENDPOINTS}_USER and {ENDPOINTS}_PASSWORD, "
            f"or {ENDPOINTS}_API_KEY"
        ) from error
    except AuthorizationException as error:
        raise LogStoreRefused(
            f"Elasticsearch does not let these credentials do it (403: {_reason(error)}): they need the index "
            "privileges auto_configure, create_doc, read and, for retention, manage on logs-distroml.*, "
            "and the cluster privilege manage_index_templates"
        ) from error
    except ApiError as error:
        kind = LogStoreDown if error.status_code in _BUSY else LogStoreRefused
        reason = _reason(error)
        raise kind(f"Elasticsearch answered {error.status_code}: {reason}{advice(reason)}") from error
    except TransportError as error:
        raise _not_reached(error) from error


def advice(reason: str) -> str:
    """What to do about a reason of the server's, where it does not say so itself."""
    full = "disk usage exceeded" in reason or "No space left on device" in reason
    return "; make room on its disks, and it takes lines again by itself" if full else ""


def _not_reached(error: TransportError) -> LogStoreDown:
    causes = {type(cause) for cause in _causes(error)}
    if isinstance(error, TlsError) or any(issubclass(c, aiohttp.ClientConnectorCertificateError) for c in causes):
        return LogStoreRefused(f"the certificate of Elasticsearch is refused ({error}): check {ENDPOINTS}_CA")
    if isinstance(error, ConnectionTimeout | asyncio.TimeoutError):
        return LogStoreDown(f"Elasticsearch does not answer in time: {error}")
    spoke_otherwise = any(issubclass(c, aiohttp.ClientResponseError | aiohttp.http.HttpProcessingError) for c in causes)
    if isinstance(error, SerializationError) or spoke_otherwise:
        return LogStoreRefused(f"what answers at {ENDPOINTS} speaks another protocol; check the port ({error})")
    return LogStoreDown(f"Elasticsearch is not reached: {error.errors[0] if error.errors else error.message}")


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is not None and one not in found:
            found.append(one)
            left += [one.__cause__, one.__context__]
            if isinstance(one, TransportError):
                left += one.errors
    return found


def _who(body: object) -> tuple[str, str]:
    """Version and distribution as the root says them; the latter is empty for Elasticsearch."""
    said = _object(_object(body).get("version"))
    return str(said.get("number", "")), str(said.get("distribution", ""))


def _unsupported(number: str, distribution: str) -> str:
    what = f"{distribution} {number}" if distribution else f"Elasticsearch {number}"
    return f"{what} is not supported: DistroML needs Elasticsearch {MAJOR}"


def _reason(error: ApiError) -> str:
    said = _object(_object(cast("object", error.body)).get("error"))
    return f"{said.get('type', '')}: {said.get('reason', '')}"[:300] if said else str(error.message)[:300]


def _object(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}
