"""EtcdStore: the calls of `ports.Store` on a real etcd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from overlaynet.errors import LeaseNotFound, StoreUnavailable
from overlaynet.ports import Commit, Compare, Delete, Grant, Listing, Notice, Put
from overlaynet.store.etcd.connection import Connection
from overlaynet.store.etcd.credentials import Credentials
from overlaynet.store.etcd.endpoints import parse_endpoints
from overlaynet.store.etcd.messages import comparison, key_range, key_value, range_op, some, write_op
from overlaynet.store.etcd.rpc import etcdrpc
from overlaynet.store.etcd.watch import EtcdWatch


class EtcdStore:
    """An etcd cluster, API version 3. Nothing is sent before the first call; any thread may call.

    `deadline_s` bounds every call, in seconds. Raises ConfigError for endpoints, certificates or a password
    that cannot be used; every other method raises StoreErrors alone.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        ca: Path | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        username: str | None = None,
        password_file: Path | None = None,
        deadline_s: float = 5.0,
    ) -> None:
        members = parse_endpoints(endpoints)
        credentials = Credentials(ca, cert, key, username, password_file)
        credentials.check(members)
        self._connection = Connection(members, credentials, deadline_s)
        self._watches: list[EtcdWatch] = []

    def read(self, prefixes: Sequence[str]) -> Listing:
        """All keys under the prefixes, in the order of the prefixes, at one revision: one transaction."""
        request = etcdrpc.TxnRequest(success=[range_op(*key_range(prefix)) for prefix in prefixes])
        found: Listing = self._connection.call(
            f"read {some(prefixes)}",
            lambda member, left, meta: member.listing(request, timeout=left, metadata=meta),
        )
        return found

    def watch(self, prefixes: Sequence[str], revision: int, sink: Callable[[Notice], None]) -> EtcdWatch:
        """Call `sink` from a thread of the watch, for every change from `revision` on."""
        watch = EtcdWatch(self._connection, prefixes, revision, sink)
        self._watches = [*(other for other in self._watches if not other.over), watch]
        return watch

    def commit(self, compares: Sequence[Compare], writes: Sequence[Put | Delete]) -> Commit:
        """Write all or nothing. After StoreUnavailable it may have been carried out: read before repeating."""
        request = etcdrpc.TxnRequest(
            compare=[comparison(compare) for compare in compares],
            success=[write_op(write) for write in writes],
            failure=[range_op(compare.key.encode()) for compare in compares],
        )
        answer = self._transact(f"write {some([write.key for write in writes])}", request, repeatable=False)
        if answer.succeeded:
            return Commit(ok=True, revision=answer.header.revision)
        found = {kv.key: key_value(kv) for part in answer.responses for kv in part.response_range.kvs}
        return Commit(ok=False, revision=answer.header.revision, current=tuple(found.values()))

    def _transact(self, asked: str, request: Any, *, repeatable: bool = True) -> Any:
        return self._connection.call(
            asked,
            lambda member, left, meta: member.kv.Txn(request, timeout=left, metadata=meta),
            repeatable=repeatable,
        )

    def grant(self, ttl_s: int) -> Grant:
        """A new lease; etcd may grant more seconds than asked for (two at least, usually)."""
        request = etcdrpc.LeaseGrantRequest(TTL=ttl_s)
        answer = self._connection.call(
            "grant a lease",
            lambda member, left, meta: member.lease.LeaseGrant(request, timeout=left, metadata=meta),
        )
        return Grant(answer.ID, answer.TTL)

    def keep_alive(self, lease_id: int) -> int:
        """etcd renews on a stream only: one request, one answer, and the stream is dropped."""
        request = etcdrpc.LeaseKeepAliveRequest(ID=lease_id)
        answer = self._connection.call(
            f"renew lease {lease_id:x}",
            lambda member, left, meta: _first(
                member.lease.LeaseKeepAlive(iter([request]), timeout=left, metadata=meta)
            ),
        )
        return _living(lease_id, answer.TTL)

    def time_to_live(self, lease_id: int) -> int:
        request = etcdrpc.LeaseTimeToLiveRequest(ID=lease_id)
        answer = self._connection.call(
            f"look up lease {lease_id:x}",
            lambda member, left, meta: member.lease.LeaseTimeToLive(request, timeout=left, metadata=meta),
        )
        return _living(lease_id, answer.TTL)

    def revoke(self, lease_id: int) -> None:
        request = etcdrpc.LeaseRevokeRequest(ID=lease_id)
        try:
            self._connection.call(
                f"revoke lease {lease_id:x}",
                lambda member, left, meta: member.lease.LeaseRevoke(request, timeout=left, metadata=meta),
            )
        except LeaseNotFound:
            return

    def close(self) -> None:
        """End watches and calls, and close the sockets. Harmless when repeated."""
        for watch in self._watches:
            watch.stop()
        for watch in self._watches:
            watch.cancel()
        self._connection.close()


def _first(stream: Any) -> Any:
    try:
        for answer in stream:
            return answer
        raise StoreUnavailable("etcd ended the stream of renewals without an answer")
    finally:
        stream.cancel()


def _living(lease_id: int, ttl_s: int) -> int:
    """etcd answers a lease that has run out with a TTL of 0, or -1."""
    if ttl_s <= 0:
        raise LeaseNotFound("etcd does not know this lease", evidence=f"lease {lease_id:x}")
    return ttl_s
