"""What we show etcd: certificates and a password, from files that are read where they are used.

Files change while we run: certificates are renewed, passwords are rotated. So they are read when a connection
or a login is made, not once at the start; only whether they can be used at all is found out then, before
anything is touched.

A key or password that others on this machine can read is no secret, and one that others can write is theirs.
Such files are refused, as ssh refuses them. A group may read (0640): that is how a key is given to a service.

TLS fails with few words. gRPC says "Unwrap failed" whatever etcd has against our certificate, and etcd's alert
(RFC 8446, section 6.2) says "bad certificate" for most of it. So a failure is explained afterwards by two
handshakes of our own: one with etcd, and one in memory, in which our certificate is judged by our CA.
"""

from __future__ import annotations

import os
import socket
import ssl
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from overlaynet.errors import CertificateRefused, ConfigError
from overlaynet.store.etcd.endpoints import Endpoint

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
OTHERS_READ = stat.S_IROTH
EXPLAIN_S = 2.0
"""How long etcd may take to say why it refuses a certificate."""


class Certificates(NamedTuple):
    """Contents of PEM files. Without a CA, gRPC's own list of authorities is used."""

    ca: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = None


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where they are; never what they are, so that this may be printed."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    username: str | None = None
    password_file: Path | None = None

    def check(self, endpoints: Sequence[Endpoint]) -> None:
        """Raises ConfigError if they cannot be used, or do not go with the endpoints."""
        if (self.cert is None) != (self.key is None):
            raise ConfigError(
                "an etcd client certificate and its key belong together", evidence="one is not set"
            )
        plain = [endpoint.url for endpoint in endpoints if not endpoint.tls]
        if plain and (self.ca or self.cert):
            raise ConfigError(
                "certificates are configured for etcd, but an endpoint does not use TLS",
                evidence=", ".join(plain),
                next=["write the endpoint as https://HOST:PORT"],
            )
        self.certificates()
        if self.ca or self.cert:
            self._context()
        if self.username is not None:
            self.password()

    def certificates(self) -> Certificates:
        """The files' contents as they are now. Raises ConfigError."""
        return Certificates(
            _read(self.ca, "etcd.ca"), _read(self.cert, "etcd.cert"), _secret(self.key, "etcd.key")
        )

    def password(self) -> str:
        """The file's first line, as it is now. Raises ConfigError."""
        content = _secret(self.password_file, "etcd.password_file") or b""
        try:
            password = content.decode().partition("\n")[0].rstrip("\r")
        except UnicodeDecodeError:
            raise ConfigError(
                "the etcd password is not UTF-8", evidence=f"etcd.password_file: {self.password_file}"
            ) from None
        if not password:
            raise ConfigError(
                "the etcd password is empty", evidence=f"etcd.password_file: {self.password_file}"
            )
        return password

    @property
    def who(self) -> str:
        """As whom we ask."""
        if self.username is not None:
            return f"user {self.username}"
        return f"the user named in {self.cert}" if self.cert else "nobody"

    def _context(self) -> ssl.SSLContext:
        """For a handshake with etcd. Raises ConfigError if the files are not what they should be."""
        context = ssl.create_default_context(cafile=None)
        try:
            if self.ca:
                context = ssl.create_default_context(cafile=str(self.ca))
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(f"etcd.ca holds no certificate: {self.ca}", evidence=str(error)) from None
        self._load_pair(context)
        return context

    def _load_pair(self, context: ssl.SSLContext) -> None:
        if self.cert is None or self.key is None:
            return
        try:
            context.load_cert_chain(self.cert, self.key, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(
                "the etcd client certificate and its key cannot be used together",
                evidence=f"etcd.cert {self.cert}, etcd.key {self.key}: {error}",
                next=[f"openssl x509 -in {self.cert} -noout -pubkey", f"openssl pkey -in {self.key} -pubout"],
            ) from None

    # --- why TLS failed ---------------------------------------------------------------------------

    def refusal(self, endpoint: Endpoint, asked: str, details: str) -> CertificateRefused:
        """Why a call over TLS failed that gRPC has these words for. Takes EXPLAIN_S seconds at most."""
        theirs = self._handshake(endpoint)
        if isinstance(theirs, ssl.SSLCertVerificationError):
            return CertificateRefused(
                f"etcd's certificate is not valid by etcd.ca: {theirs.verify_message}",
                evidence=f"{endpoint.url} when asked to {asked}; etcd.ca is {self.ca}",
                next=[f"openssl s_client -connect {endpoint.address} -CAfile {self.ca} </dev/null"],
            )
        word = (theirs.reason if theirs else None) or details
        ours = self._own_judgement() if self.cert else "there is none: etcd.cert and etcd.key are not set"
        return CertificateRefused(
            f"etcd refuses our certificate: {ours or word}",
            evidence=f"{endpoint.url} when asked to {asked}: {word}; etcd.cert is {self.cert}",
            next=[
                f"openssl x509 -in {self.cert} -noout -subject -issuer -dates",
                f"openssl verify -CAfile {self.ca} {self.cert}",
            ]
            if self.cert
            else [],
        )

    def _own_judgement(self) -> str | None:
        """What our CA says against our certificate: a handshake in memory, in which it serves both sides."""
        if self.ca is None or self.cert is None:
            return None
        try:
            judge, shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            shown.check_hostname, shown.verify_mode = False, ssl.CERT_NONE
            judge.verify_mode = ssl.CERT_REQUIRED
            judge.load_verify_locations(str(self.ca))
            for side in (judge, shown):
                self._load_pair(side)
            _shake_hands(judge, shown)
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        except (OSError, ConfigError):
            return None
        return None

    def _handshake(self, endpoint: Endpoint) -> ssl.SSLError | None:
        """What a handshake with this member ends in; None if it succeeds, or nobody is there.

        In TLS 1.3 the client is done before the server has judged it, so the verdict comes with the first read.
        """
        host, _, port = endpoint.address.rpartition(":")
        host = host.strip("[]")
        try:
            with (
                socket.create_connection((host, int(port)), timeout=EXPLAIN_S) as plain,
                self._context().wrap_socket(plain, server_hostname=host) as connection,
            ):
                connection.read(1)
        except ssl.SSLError as error:
            return error
        except (OSError, ConfigError):
            return None
        return None


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """Both sides in turn until neither wants more. Raises SSLError for what either finds wrong."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for side in sides * 3:
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue


def _no_password() -> str:
    """Else OpenSSL asks for it on the terminal."""
    raise ValueError("the key is encrypted; etcd.key must hold it in the clear, in a file of mode 0600")


def _read(path: Path | None, setting: str) -> bytes | None:
    return None if path is None else _content(path, setting, OTHERS_WRITE, "0644")


def _secret(path: Path | None, setting: str) -> bytes | None:
    return None if path is None else _content(path, setting, OTHERS_WRITE | OTHERS_READ, "0600")


def _content(path: Path, setting: str, forbidden: int, better: str) -> bytes:
    """Raises ConfigError; for its mode before anything is read."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & forbidden:
                raise ConfigError(
                    f"{setting}: others on this machine can {_doing(mode & forbidden)} {path}",
                    evidence=f"its mode is {mode:04o}, and may not hold any of {forbidden:04o}",
                    next=[f"chmod {better} {path}"],
                )
            return file.read()
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}", next=[f"ls -l {path}"]) from None


def _doing(bits: int) -> str:
    return "read" if not bits & OTHERS_WRITE else "write"
