"""Where etcd is and how to come in; checked when made."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

_DEFAULT_PORT = 2379


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdSettings:
    """Endpoints and credentials of one etcd cluster.

    Attributes:
        endpoints: URLs of its members, `http://host:2379` or, for TLS, `https://host:2379`; all of one kind.
        user: name to authenticate as; empty where etcd has authentication off.
        password: of that user.
        ca: PEM of the authorities that sign the members' certificates; None trusts the usual ones.
        certificate: PEM of our own certificate chain, where the members ask for one.
        key: PEM of its private key.
        timeout_s: how long one call is tried, over all endpoints.
    """

    endpoints: tuple[str, ...]
    user: str = ""
    password: str = field(default="", repr=False)
    ca: bytes | None = field(default=None, repr=False)
    certificate: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    timeout_s: float = 5.0

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise ValueError("no etcd endpoint is given; name at least one, as http://127.0.0.1:2379")
        schemes = {urlsplit(url).scheme for url in self.endpoints}
        if len(schemes) > 1:
            raise ValueError(f"etcd endpoints are all http:// or all https://; got {', '.join(self.endpoints)}")
        for url in self.endpoints:
            target(url)
        if bool(self.user) != bool(self.password):
            raise ValueError("an etcd user and a password belong together; only one of them is given")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a client certificate and its key belong together; only one of them is given")
        if not self.tls and (self.ca or self.certificate):
            raise ValueError(f"certificates are given, but {self.endpoints[0]} is no https:// endpoint")
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s is {self.timeout_s}; it must be greater than 0")

    @property
    def tls(self) -> bool:
        """Whether the endpoints speak TLS."""
        return self.endpoints[0].startswith("https://")


def target(url: str) -> str:
    """`host:port` of an endpoint's URL; raises `ValueError`."""
    parts = urlsplit(url)
    # `parts.port` raises by itself where it is no number.
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.username:
        raise ValueError(f"{url!r} is no etcd endpoint; expected http://HOST:PORT or https://HOST:PORT")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{parts.port or _DEFAULT_PORT}"
