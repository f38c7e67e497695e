"""One gRPC channel for each etcd member, and the one in use.

A channel connects by itself when first used, so making a Connection costs about a millisecond and touches no
network. When a member does not answer, the next call goes to the next one. gRPC could be given all members
as one target, but then a certificate would have to match a name made of all their addresses, names could
not be mixed with addresses, and a member that is frozen, not dead, would be kept.

A read that finds nobody listening is repeated at the next member within its deadline. A write is repeated
only if it surely was not sent: etcd may have carried out one whose answer was lost.

With a password, etcd hands out a token. A member forgets tokens when it restarts and when users change, so
a refused token is dropped and the call repeated once with a new one. A token holds the index of the log entry
that made it, and a member waits until it has come that far (etcd's auth/simple_token.go); one that was restored
from a backup may not for months. So a token is dropped, too, when there is no answer in time. The password's
file is read at each login: after a rotation etcd takes no old token, and the new password is there.

A channel keeps the certificates it was made with. When a member does not answer, the files are looked at, and
if they are others by now, all channels are made anew; streams that run go on with theirs.

There are no locks: what is shared is replaced whole, and the worst that two threads can do to each other is
to log in twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from overlaynet.errors import ConfigError, StoreError, StoreRefused, StoreUnavailable
from overlaynet.store.etcd.credentials import Certificates, Credentials
from overlaynet.store.etcd.endpoints import Endpoint
from overlaynet.store.etcd.listing import parse_listing
from overlaynet.store.etcd.rpc import etcdrpc, grpc, never_sent, tls_failed, token_refused, translate

log = logging.getLogger("overlaynet.etcd")

KEEPALIVE_S = 8
"""A silent stream is pinged this often. etcd hangs up on whoever pings more often than every 5 s
(etcd's embed/config.go, DefaultGRPCKeepAliveMinTime)."""

KEEPALIVE_ANSWER_S = 5
"""A member that has not answered a ping for this long is given up."""

CONNECT_S = 3
"""How long one attempt to connect may take."""

MAX_RECONNECT_S = 2
"""The longest pause between two attempts of gRPC's own to connect."""

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),  # a listing is one message, however many keys it has
    ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_ANSWER_S * 1000),
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_ANSWER_S * 1000),  # a minute else, whatever the line above says
    ("grpc.http2.max_pings_without_data", 0),  # a watch is silent for hours; keep pinging
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", CONNECT_S * 1000),
    ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_S * 1000),
    ("grpc.enable_http_proxy", 0),  # etcd is on the underlay, never behind a web proxy
    ("grpc.use_local_subchannel_pool", 1),  # closing one store must not touch another's sockets
)

Metadata = tuple[tuple[str, str], ...]
Attempt = Callable[["Member", float, Metadata], Any]
"""One try of a call: the member to ask, seconds it may take, and gRPC metadata to send along."""


@dataclass(frozen=True, slots=True)
class Member:
    """An etcd member and the stubs of its services. `listing` is a transaction of reads whose answer comes
    as a Listing."""

    endpoint: Endpoint
    channel: Any
    kv: Any
    listing: Any
    lease: Any
    watch: Any
    auth: Any

    @property
    def url(self) -> str:
        return self.endpoint.url


def _member(endpoint: Endpoint, certificates: Certificates) -> Member:
    channel = _channel(endpoint, certificates)
    return Member(
        endpoint=endpoint,
        channel=channel,
        kv=etcdrpc.KVStub(channel),
        listing=channel.unary_unary(
            "/etcdserverpb.KV/Txn",
            request_serializer=etcdrpc.TxnRequest.SerializeToString,
            response_deserializer=parse_listing,
        ),
        lease=etcdrpc.LeaseStub(channel),
        watch=etcdrpc.WatchStub(channel),
        auth=etcdrpc.AuthStub(channel),
    )


def _channel(endpoint: Endpoint, certificates: Certificates) -> Any:
    if not endpoint.tls:
        return grpc.insecure_channel(endpoint.target, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(certificates.ca, certificates.key, certificates.cert)
    return grpc.secure_channel(endpoint.target, credentials, options=_OPTIONS)


class Connection:
    """Calls to whichever member answers. Any thread may use it; `close` ends every call."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        credentials: Credentials,
        deadline_s: float,
    ) -> None:
        self._credentials = credentials
        self._certificates = credentials.certificates()
        self._members = tuple(_member(endpoint, self._certificates) for endpoint in endpoints)
        self._at = 0
        self._token: str | None = None
        self._deadline_s = deadline_s
        self._closed = False

    @property
    def member(self) -> Member:
        """The member in use."""
        return self._members[self._at]

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def has_password(self) -> bool:
        return self._credentials.username is not None

    @property
    def who(self) -> str:
        """As whom we ask."""
        return self._credentials.who

    def leave(self, member: Member) -> None:
        """This member did not answer: use the next one, unless somebody has moved on already."""
        if self.member is member:
            self._at = (self._at + 1) % len(self._members)
        self._renew_certificates()

    def _renew_certificates(self) -> None:
        """Files that cannot be used, perhaps because they are being replaced, are left for the next time."""
        try:
            found = self._credentials.certificates()
            if found == self._certificates or self._closed:
                return
            self._credentials.check([member.endpoint for member in self._members])
        except ConfigError as error:
            log.warning("certificates cannot be used error=%s evidence=%s", error, error.evidence)
            return
        self._certificates = found
        self._members = tuple(_member(member.endpoint, found) for member in self._members)
        log.info("certificates are read again, they have changed")

    def forget_token(self) -> None:
        """Log in again before the next call."""
        self._token = None

    def call(self, asked: str, attempt: Attempt, *, repeatable: bool = True) -> Any:
        """What `attempt` answers, at this member or another, within the deadline. Raises StoreError.

        `asked` completes "etcd refused to"; `repeatable`: whether doing it twice does no harm.
        """
        ends = time.monotonic() + self._deadline_s
        for tries_left in reversed(range(len(self._members))):
            member = self.member
            try:
                return self._try(member, attempt, ends)
            except grpc.RpcError as error:
                problem = translate(error, asked, member.url, self.who)
                if problem.transient:
                    self.leave(member)
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    self.forget_token()
                elsewhere = error.code() is grpc.StatusCode.UNAVAILABLE and (repeatable or never_sent(error))
                if not (elsewhere and tries_left) or self._closed:
                    raise self._explained(problem, asked, member, error) from error
            except ValueError as error:
                raise self._after_close(error) from error
        raise AssertionError("a connection has at least one member")

    def _try(self, member: Member, attempt: Attempt, ends: float) -> Any:
        try:
            return attempt(member, _left(ends), self.metadata(member, _left(ends)))
        except grpc.RpcError as error:
            if not (token_refused(error) or self._never_asked_for_a_password(error)):
                raise
        self.forget_token()
        return attempt(member, _left(ends), self.metadata(member, _left(ends)))

    def _never_asked_for_a_password(self, error: Any) -> bool:
        """Whether authentication may have been turned on only now: then we are who our certificate says."""
        return self.has_password and not self._token and error.code() is grpc.StatusCode.PERMISSION_DENIED

    def _explained(self, problem: StoreError, asked: str, member: Member, error: Any) -> StoreError:
        if member.endpoint.tls and tls_failed(error) and not self._closed:
            return self._credentials.refusal(member.endpoint, asked, error.details())
        return problem

    def metadata(self, member: Member, timeout_s: float) -> Metadata:
        """What every call carries: fail at once where there is no leader; and the token.

        Raises grpc.RpcError if logging in fails, StoreRefused if there is no password to do it with.
        """
        leader = (("hasleader", "true"),)
        if not self.has_password:
            return leader
        if self._token is None:
            self._token = self._log_in(member, timeout_s)
        return (*leader, ("token", self._token)) if self._token else leader

    def _log_in(self, member: Member, timeout_s: float) -> str:
        """A new token; an empty one if the cluster asks nobody for a password."""
        try:
            password = self._credentials.password()
        except ConfigError as error:
            raise StoreRefused(error.message, evidence=error.evidence, next=error.next) from None
        request = etcdrpc.AuthenticateRequest(name=self._credentials.username, password=password)
        try:
            return str(member.auth.Authenticate(request, timeout=timeout_s).token)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION and "not enabled" in error.details():
                return ""
            raise

    def _after_close(self, error: ValueError) -> StoreError:
        """gRPC raises ValueError for a call on a closed channel."""
        if not self._closed:
            raise error
        return StoreUnavailable("the connection to etcd was closed", evidence=str(error))

    def close(self) -> None:
        """End every call and stream. Harmless when repeated."""
        self._closed = True
        for member in self._members:
            member.channel.close()


def _left(ends: float) -> float:
    """Seconds until `ends`; at 0 gRPC answers DEADLINE_EXCEEDED without asking."""
    return max(0.0, ends - time.monotonic())
