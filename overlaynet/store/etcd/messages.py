"""Our values as etcd's messages, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from overlaynet.ports import Compare, Delete, KeyValue, Put
from overlaynet.store.etcd.rpc import etcdrpc

_SHOWN = 3
"""As many keys of a request does an error name."""


def text(key: bytes) -> str:
    """A key as text. Ours and flannel's are ASCII; a byte of anybody else's that is not UTF-8 is escaped."""
    return key.decode(errors="backslashreplace")


def some(keys: Sequence[str]) -> str:
    """Keys or prefixes as they stand in a sentence."""
    shown = ", ".join(keys[:_SHOWN])
    return shown if len(keys) <= _SHOWN else f"{shown} and {len(keys) - _SHOWN} more"


def key_range(prefix: str) -> tuple[bytes, bytes]:
    """First key, and the key behind the last one. What does not end in "/" is one key, whose end is empty."""
    start = prefix.encode()
    return start, (start[:-1] + b"0" if prefix.endswith("/") else b"")  # "0" follows "/" in ASCII


def key_value(kv: Any) -> KeyValue:
    return KeyValue(text(kv.key), kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def range_op(start: bytes, end: bytes = b"") -> Any:
    return etcdrpc.RequestOp(request_range=etcdrpc.RangeRequest(key=start, range_end=end))


def newest_op(start: bytes, end: bytes) -> Any:
    """Asks for the one key of a range that was written last."""
    latest = etcdrpc.RangeRequest(
        key=start,
        range_end=end,
        limit=1,
        sort_order=etcdrpc.RangeRequest.DESCEND,
        sort_target=etcdrpc.RangeRequest.MOD,
    )
    return etcdrpc.RequestOp(request_range=latest)


def write_op(write: Put | Delete) -> Any:
    key = write.key.encode()
    if isinstance(write, Delete):
        return etcdrpc.RequestOp(request_delete_range=etcdrpc.DeleteRangeRequest(key=key))
    put = etcdrpc.PutRequest(key=key, value=write.value, lease=write.lease_id)
    return etcdrpc.RequestOp(request_put=put)


def comparison(compare: Compare) -> Any:
    """An absent key has mod revision 0 in etcd, too."""
    return etcdrpc.Compare(
        result=etcdrpc.Compare.EQUAL,
        target=etcdrpc.Compare.MOD,
        key=compare.key.encode(),
        mod_revision=compare.mod_revision,
    )
