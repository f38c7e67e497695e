"""Any trace and any prediction at all, also such as no network could yield: for Hypothesis."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from overlaynet.addr import Mac
from overlaynet.state import Source
from overlaynet.trace.model import (
    CAUSES,
    CERTAIN,
    DELIVERED,
    DROPPED,
    INCONCLUSIVE,
    LIKELY,
    LOST,
    PROVED,
    REJECTED,
    WRONG_PATH,
    Cause,
    Change,
    Connection,
    Headers,
    Hop,
    Icmp,
    Path,
    Point,
    Prediction,
    Question,
    Tap,
    Tcp,
    Trace,
    Why,
)

texts = st.text(max_size=12)
names = st.one_of(st.sampled_from(["node-1", "node-2", "web-1", "outside", "eth0", "cni0", "flannel.1"]), texts)
ports = st.none() | st.integers(0, 65_535)
numbers = st.none() | st.integers(0, 70_000)
addresses = st.ip_addresses()
macs = st.none() | st.binary(min_size=6, max_size=6).map(Mac.from_bytes)
outcomes = st.sampled_from([DELIVERED, REJECTED, DROPPED, LOST])
sources = st.none() | st.builds(Source, texts, texts)
points = st.builds(Point, names, names)

headers = st.builds(
    Headers,
    macs,
    macs,
    st.none() | addresses,
    st.none() | addresses,
    st.sampled_from(["tcp", "udp", "icmp", "arp", "0x88b5", "47"]),
    src_port=ports,
    dst_port=ports,
    ttl=numbers,
    ip_id=numbers,
    length=numbers,
    df=st.none() | st.booleans(),
    more_fragments=st.booleans(),
    offset=st.sampled_from([0, 0, 1480]),
    tcp=st.none() | st.builds(Tcp, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), texts),
    icmp=st.none() | st.builds(Icmp, st.integers(0, 255), st.integers(0, 255), mtu=numbers),
)
fields = st.sampled_from(
    ["src_mac", "dst_mac", "src", "dst", "src_port", "dst_port", "ttl", "length", "encapsulation", "fragments"]
)
changes = st.builds(Change, fields, st.none() | texts, st.none() | texts, texts)
whys = st.builds(
    Why, st.sampled_from(["route", "fdb", "rule", "link", "?"]), texts, texts, sources, texts, numbers
)
hops = st.builds(
    Hop,
    names,
    names,
    st.sampled_from(["in", "out"]),
    headers,
    st.none() | headers,
    vni=numbers,
    host=st.none() | names,
    netns=st.none() | texts,
    changes=st.lists(changes, max_size=4).map(tuple),
    why=st.lists(whys, max_size=2).map(tuple),
    predicted=st.booleans(),
    seen=st.none() | st.booleans(),
    t_us=st.none() | st.floats(0, 1e9),
    note=texts,
    optional=st.booleans(),
    mtu=numbers,
)
ways = st.lists(hops, max_size=5).map(tuple)
causes = st.builds(
    Cause,
    st.sampled_from(CAUSES),
    st.none() | points,
    texts,
    texts,
    texts,
    sources,
    st.sampled_from([CERTAIN, LIKELY]),
    st.lists(texts, max_size=2).map(tuple),
)
questions = st.builds(
    Question,
    names,
    names,
    addresses,
    addresses,
    st.sampled_from(["tcp", "udp", "icmp"]),
    dst_port=ports,
    size=st.integers(0, 65_507),
)
traces = st.builds(
    Trace,
    texts,
    st.sampled_from([PROVED, LOST, WRONG_PATH, INCONCLUSIVE]),
    questions,
    outcomes,
    forward=ways,
    reply=ways,
    guards=st.lists(hops, max_size=2).map(tuple),
    lost_between=st.none() | st.tuples(points, points),
    cause=st.none() | causes,
    answer=texts,
    inconclusive_because=st.lists(texts, max_size=3).map(tuple),
    tag=st.dictionaries(st.sampled_from(["ip_id", "tcp_isn", "cookie"]), numbers | texts),
    taps=st.lists(st.builds(Tap, points, texts, st.booleans(), st.booleans(), numbers), max_size=3).map(tuple),
    connections=st.lists(st.builds(Connection, names, texts), max_size=2).map(tuple),
    notes=st.lists(texts, max_size=2).map(tuple),
    bundle=st.none() | texts,
)
_paths = st.builds(
    Path,
    outcomes,
    ways,
    cause=st.none() | causes,
    answer=texts,
    arrived_at=st.none() | names,
    choices=st.lists(texts, max_size=2).map(tuple),
    certain=st.booleans(),
)
paths = st.builds(lambda there, back: replace(there, reply=back), _paths, st.none() | _paths)
predictions = st.builds(
    Prediction,
    questions,
    st.lists(paths, max_size=3).map(tuple),
    guards=st.lists(points, max_size=2).map(tuple),
    unread=st.lists(texts, max_size=2).map(tuple),
)
