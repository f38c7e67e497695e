"""The hand-made reader of listings against the generated code, and against bytes that are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.ports import KeyValue, Listing
from overlaynet.store.etcd.listing import parse_listing
from overlaynet.store.etcd.rpc import etcdrpc

pytestmark = pytest.mark.unit

INT64 = st.integers(0, 2**63 - 1)
ITEMS = st.lists(
    st.builds(
        KeyValue, st.text("/abc-.0123456789é", max_size=200), st.binary(max_size=400), INT64, INT64, INT64
    )
)


def encoded(revision: int, cluster_id: int, *parts: list[KeyValue]) -> bytes:
    """What etcd sends, with members that a listing has no use for."""
    answer = etcdrpc.TxnResponse(succeeded=True)
    answer.header.cluster_id, answer.header.revision = cluster_id, revision
    answer.header.member_id, answer.header.raft_term = 2**64 - 1, 3
    for part in parts:
        found = answer.responses.add().response_range
        found.count, found.more = len(part), False
        for item in part:
            kv = found.kvs.add(key=item.key.encode(), value=item.value, version=7, lease=item.lease_id)
            kv.create_revision, kv.mod_revision = item.create_revision, item.mod_revision
    return bytes(answer.SerializeToString())


@given(INT64, st.integers(0, 2**64 - 1), ITEMS, ITEMS)
def test_listing_reads_what_the_generated_code_wrote(revision, cluster_id, some, others):
    data = encoded(revision, cluster_id, some, others)
    assert parse_listing(data) == Listing(revision, cluster_id, (*some, *others))


def test_members_of_a_newer_etcd_are_skipped():
    plain = encoded(5, 9, [KeyValue("/a", b"x", 1, 2, 3)])
    newer = b"\x78\x01" + b"\x79" + bytes(8) + b"\x7d" + bytes(4) + b"\x7a\x03abc"  # field 15, each wire type
    assert parse_listing(newer + plain + newer) == parse_listing(plain)


@given(ITEMS.filter(bool), st.data())
def test_a_cut_answer_is_an_error_or_ends_between_two_parts(items, data):
    whole = encoded(5, 9, items)
    cut = data.draw(st.integers(1, len(whole) - 1))
    try:
        found = parse_listing(whole[:cut])
    except (ValueError, IndexError):
        return
    assert set(found.items) <= set(items)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x0b", id="unknown-wire-type"),
        pytest.param(b"\x0a\x05ab", id="content-too-short"),
        pytest.param(b"\x08" + b"\xff" * 11, id="endless-varint"),
        pytest.param(b"\x08", id="no-value"),
    ],
)
def test_what_is_no_message_is_refused(data):
    with pytest.raises((ValueError, IndexError)):
        parse_listing(data)
