"""Endpoints, as the operator writes them.

An endpoint is a URL: ``http://192.168.50.2:2379``, ``https://etcd-1.example:2379``, ``unix:///run/etcd.sock``.
TLS is used if and only if the scheme says so. A CA with an http endpoint is refused, not ignored: whoever
configures a CA does not want plain text. A CA alone is enough for TLS; a client certificate is optional.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from overlaynet.errors import ConfigError

DEFAULT_PORT = 2379
"""etcd's client port (IANA: etcd-client)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One member: what the operator wrote, and the same as a gRPC target (gRPC's doc/naming.md)."""

    url: str
    target: str
    tls: bool

    @property
    def address(self) -> str:
        """``HOST:PORT``, an IPv6 address in brackets."""
        return self.target.removeprefix("dns:///")


def parse_endpoints(urls: Sequence[str]) -> tuple[Endpoint, ...]:
    """The members to talk to; raises ConfigError."""
    if not urls:
        raise ConfigError("no etcd endpoint is given", evidence="example: http://192.168.50.2:2379")
    return tuple(_endpoint(url) for url in urls)


def _endpoint(url: str) -> Endpoint:
    try:
        parts = urlsplit(url)
        target = _target(parts)
    except ValueError as error:
        raise ConfigError(
            f"not an etcd endpoint: {url!r}: {error}",
            evidence="an endpoint looks like http://HOST:PORT, https://HOST:PORT or unix:///PATH",
        ) from error
    return Endpoint(url, target, tls=parts.scheme == "https")


def _target(parts: SplitResult) -> str:
    if parts.scheme == "unix":
        if not parts.path.startswith("/") or parts.netloc:
            raise ValueError("the socket's path is not absolute")
        return f"unix:{parts.path}"
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"unknown scheme {parts.scheme!r}")
    if not parts.hostname or parts.path.strip("/"):
        raise ValueError("there must be a host, and nothing behind the port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"dns:///{host}:{parts.port or DEFAULT_PORT}"
