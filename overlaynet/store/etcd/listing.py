"""A listing read straight from etcd's bytes.

protobuf 3.20 decodes in Python, with several objects and dictionaries for each message: listing 5 000 keys
costs it four times what etcd and gRPC need for it. A listing is the one answer that comes in thousands, and
it needs a few messages of the simplest kind, so these are taken apart here; all other calls use the
generated code.

The encoding (protobuf.dev/programming-guides/encoding): a message is a row of fields; each begins with a
varint of number and wire type, then a varint (type 0), eight bytes (1), a length and as many bytes (2) or
four bytes (5). A varint has seven bits a byte, lowest first, and the high bit set where more follow. The
field numbers are those of etcd's api/etcdserverpb/rpc.proto and api/mvccpb/kv.proto. What is not known here
is skipped, as a newer etcd may send more.
"""

from __future__ import annotations

from collections.abc import Iterator

from overlaynet.ports import KeyValue, Listing
from overlaynet.store.etcd.messages import text

Field = tuple[int, int, bytes]
"""Number, value (of a varint, else 0) and content (of what has a length, else nothing)."""

TXN_HEADER, TXN_RESPONSES = 1, 3
HEADER_CLUSTER_ID, HEADER_REVISION = 1, 3
RESPONSE_RANGE, RANGE_KVS = 1, 2
KV_KEY, KV_CREATE_REVISION, KV_MOD_REVISION, KV_VALUE, KV_LEASE = 1, 2, 3, 5, 6


def parse_listing(data: bytes) -> Listing:
    """The TxnResponse to a transaction of range requests alone. Raises ValueError or IndexError for anything
    else, which gRPC reports as a broken answer (INTERNAL)."""
    revision = cluster_id = 0
    items: list[KeyValue] = []
    for number, _, content in _fields(data):
        if number == TXN_HEADER:
            header = {n: value for n, value, _ in _fields(content)}
            revision, cluster_id = header.get(HEADER_REVISION, 0), header.get(HEADER_CLUSTER_ID, 0)
        elif number == TXN_RESPONSES:
            items += _items(content)
    return Listing(revision, cluster_id, tuple(items))


def _items(response: bytes) -> Iterator[KeyValue]:
    for number, _, found in _fields(response):
        if number == RESPONSE_RANGE:
            yield from (_key_value(content) for n, _, content in _fields(found) if n == RANGE_KVS)


def _key_value(data: bytes) -> KeyValue:
    """What is zero or empty is not sent."""
    key = value = b""
    create_revision = mod_revision = lease = 0
    for number, integer, content in _fields(data):
        if number == KV_KEY:
            key = content
        elif number == KV_VALUE:
            value = content
        elif number == KV_MOD_REVISION:
            mod_revision = integer
        elif number == KV_CREATE_REVISION:
            create_revision = integer
        elif number == KV_LEASE:
            lease = integer
    return KeyValue(text(key), value, create_revision, mod_revision, lease)


def _fields(data: bytes) -> Iterator[Field]:
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value, b""
        elif kind == 2:
            length, at = _varint(data, at)
            at += length
            if at > end:
                raise ValueError(f"field {number} ends behind its message")
            yield number, 0, data[at - length : at]
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"field {number} has the unknown wire type {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of at most 64 bits, and where the next field starts. Most have one byte."""
    value = data[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    for shift in range(7, 70, 7):
        octet = data[at]
        at += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value, at
    raise ValueError("a varint has more than ten bytes")
