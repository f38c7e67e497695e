"""grpc and etcd3, imported in one place, and their errors turned into ours.

Two things need care at import. gRPC's C core writes to stderr when a server vanishes, which for us is news
that reaches people as an error with evidence, not as noise between lines of output: it is silenced unless
GRPC_VERBOSITY says otherwise. And the generated code of etcd3 0.12 needs protobuf 3.20, which warns about
itself (building descriptors by hand; utcfromtimestamp from Python 3.12 on): these two warnings, by name and
only during this import, are not passed on.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from overlaynet.errors import Compacted, LeaseNotFound, StoreError, StoreRefused, StoreUnavailable

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Call to deprecated create function", DeprecationWarning)
    warnings.filterwarnings("ignore", r"datetime\.datetime\.utcfromtimestamp", DeprecationWarning)
    from etcd3 import etcdrpc

__all__ = ["etcdrpc", "grpc", "grpc_error", "never_sent", "refused", "tls_failed", "token_refused", "translate"]

_TRANSIENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
"""Codes that say nothing about our request. INTERNAL and UNKNOWN are what a stream cut in the middle gives."""

_STALE_TOKEN = ("invalid auth token", "user name is empty", "revision of auth store is old")
"""etcd's words for a token it no longer takes (etcd's api/v3rpc/rpctypes/error.go): a member that restarted
has forgotten its tokens, and any change of users or roles ends all of them."""


def grpc_error(code: Any, details: str) -> StoreError:
    """The error for a gRPC status, without saying yet what was asked of whom."""
    if code in _TRANSIENT:
        return StoreUnavailable(details)
    if code is grpc.StatusCode.NOT_FOUND and "lease" in details:
        return LeaseNotFound(details)
    if code is grpc.StatusCode.OUT_OF_RANGE and "compacted" in details:
        return Compacted(details)
    return StoreRefused(details)


def translate(error: Any, asked: str, endpoint: str, who: str) -> StoreError:
    """A `grpc.RpcError` of a call to `endpoint` as ours; `asked` says what the call was for, `who` as whom."""
    code, details = error.code(), error.details() or ""
    kind = type(grpc_error(code, details))
    if kind is StoreRefused:
        return refused(asked, details or code.name, endpoint, who, f"gRPC {code.name}")
    return kind(
        f"etcd {_ANSWERS[kind]} {asked}: {details or code.name}",
        evidence=f"{endpoint}: gRPC {code.name}",
        next=[f"etcdctl --endpoints {endpoint} endpoint health"] if kind is StoreUnavailable else [],
    )


_ANSWERS: Mapping[type[StoreError], str] = {
    StoreUnavailable: "did not answer when asked to",
    LeaseNotFound: "does not know the lease it was asked to",
    Compacted: "no longer has the history it was asked to",
}


def refused(asked: str, reason: str, endpoint: str, who: str, evidence: str = "") -> StoreRefused:
    """etcd said no, for this reason, to what was asked of this member by this user."""
    return StoreRefused(
        f"etcd refused to {asked} as {who}: {reason.removeprefix('etcdserver: ')}",
        evidence=": ".join(filter(None, (endpoint, evidence))),
        next=_after_refusal(endpoint, reason, who),
    )


def _after_refusal(endpoint: str, reason: str, who: str) -> Sequence[str]:
    if "space exceeded" in reason:
        return [f"etcdctl --endpoints {endpoint} alarm list", f"etcdctl --endpoints {endpoint} endpoint status"]
    if "authentication failed" in reason:
        return ["check etcd.username, and that etcd.password_file holds its password of now"]
    if any(word in reason for word in _STALE_TOKEN):
        return ["set etcd.cert and etcd.key, or etcd.username and etcd.password_file"]
    if "permission" in reason:
        name = who.removeprefix("user ") if who.startswith("user ") else "USER"
        return [
            f"etcdctl --endpoints {endpoint} user get {name} --detail",
            "as an operator: sudo OVERLAYNET_ETCD_CERT=FILE OVERLAYNET_ETCD_KEY=FILE overlaynet ...",
        ]
    return []


def token_refused(error: Any) -> bool:
    """Whether a new token may help."""
    details = error.details() or ""
    return error.code() is grpc.StatusCode.UNAUTHENTICATED or any(word in details for word in _STALE_TOKEN)


def tls_failed(error: Any) -> bool:
    """Whether it was TLS that failed. The words are those of gRPC's src/core/tsi and of its handshaker; etcd's
    refusal of a client certificate reads "Unwrap failed"."""
    details = (error.details() or "").lower()
    return error.code() is grpc.StatusCode.UNAVAILABLE and any(
        word in details for word in ("handshake", "unwrap failed", "certificate", "tsi_")
    )


def never_sent(error: Any) -> bool:
    """Whether the call surely did not reach a server, so that repeating even a write is safe."""
    details = error.details() or ""
    return error.code() is grpc.StatusCode.UNAVAILABLE and details.startswith("failed to connect")
