"""Keys and values: what flannel and people may write, and what we write."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network
from types import MappingProxyType

import pytest
from helpers.model import workload
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.addr import IPAddress, IPNetwork, Mac
from overlaynet.core.keys import Keys
from overlaynet.errors import ValueInvalid
from overlaynet.model import (
    HOST_GW,
    VXLAN,
    Backend,
    Claim,
    Lease,
    NetworkConfig,
    NodeRecord,
    Pool,
    Port,
    Record,
    Settings,
    Stored,
    Unreadable,
    Vtep,
    Workload,
)
from overlaynet.ports import KeyValue
from overlaynet.store import codec

pytestmark = pytest.mark.unit

KEYS = Keys()
MAC = "02:42:0a:f4:01:00"
LEASE_KEY = KEYS.subnets + "10.244.1.0-24"
VXLAN_VALUE = (
    b'{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"02:42:0a:f4:01:00"}}'
)


def decoded(key: str, value: bytes) -> Record:
    return codec.decode(KeyValue(key, value), KEYS).value


def lease_of(value: bytes, key: str = LEASE_KEY) -> Lease:
    lease = decoded(key, value)
    assert isinstance(lease, Lease), lease
    return lease


def lease(**members: object) -> Lease:
    usual: dict[str, object] = {
        "subnets": (IPv4Network("10.244.1.0/24"),),
        "public_ips": (IPv4Address("192.0.2.7"),),
    }
    return Lease(**(usual | members))  # type: ignore[arg-type]


# --- leases: bytes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "want"),
    [
        pytest.param(lease(), b'{"PublicIP":"192.0.2.7","PublicIPv6":null}', id="no-backend"),
        pytest.param(
            lease(backend_type=VXLAN, vteps=(Vtep(4, 1, Mac(MAC)),)),
            VXLAN_VALUE,
            id="vxlan",
        ),
        pytest.param(
            lease(backend_type=HOST_GW, node_id="id", node_name="node-1"),
            b'{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"host-gw",'
            b'"NodeID":"id","NodeName":"node-1"}',
            id="ours-come-last",
        ),
        pytest.param(
            lease(
                public_ips=(IPv4Address("192.0.2.7"), IPv6Address("2001:db8::1")),
                backend_type=VXLAN,
                vteps=(Vtep(4, 1, Mac(MAC)), Vtep(6, 1, Mac("02:00:00:00:00:06"))),
            ),
            b'{"PublicIP":"192.0.2.7","PublicIPv6":"2001:db8::1","BackendType":"vxlan",'
            b'"BackendData":{"VNI":1,"VtepMAC":"02:42:0a:f4:01:00"},'
            b'"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:06"}}',
            id="dual-stack",
        ),
        pytest.param(lease(public_ips=()), b'{"PublicIP":"0.0.0.0","PublicIPv6":null}', id="no-address"),
    ],
)
def test_lease_is_written_byte_for_byte_as_flannel_does(value: Lease, want: bytes) -> None:
    assert codec.encode_lease(value) == want


# --- leases: tolerant reading ---------------------------------------------------------------------

BARE = b'{"PublicIP":"192.0.2.7","PublicIPv6":null}'


@pytest.mark.parametrize(
    ("value", "want"),
    [
        pytest.param(VXLAN_VALUE, lease(backend_type=VXLAN, vteps=(Vtep(4, 1, Mac(MAC)),)), id="vxlan"),
        pytest.param(
            VXLAN_VALUE.lower(), lease(backend_type=VXLAN, vteps=(Vtep(4, 1, Mac(MAC)),)), id="lower-case"
        ),
        pytest.param(BARE, lease(), id="type-absent-ipv6-null"),
        pytest.param(b'{"PublicIP":"192.0.2.7","Host":{"a":[1]}}', lease(), id="unknown-member-ignored"),
        pytest.param(b'{"publicip":"192.0.2.1","PublicIP":"192.0.2.7"}', lease(), id="last-of-equals-wins"),
        pytest.param(b"{}", lease(public_ips=()), id="reservation-by-hand"),
        pytest.param(b'{"PublicIP":"0.0.0.0"}', lease(public_ips=()), id="flannels-no-address"),
        pytest.param(
            b'{"PublicIP":"192.0.2.7","BackendType":"extension","BackendData":"any text"}',
            lease(backend_type="extension"),
            id="other-backends-data-is-theirs",
        ),
        pytest.param(
            b'{"PublicIP":"192.0.2.7","BackendType":"vxlan","BackendData":{"VtepMAC":"02-42-0A-F4-01-00"}}',
            lease(backend_type=VXLAN, vteps=(Vtep(4, 1, Mac(MAC)),)),
            id="vni-absent",
        ),
        pytest.param(
            b'{"PublicIP":"192.0.2.7","NodeID":"i","NodeName":"n"}',
            lease(node_id="i", node_name="n"),
            id="ours",
        ),
    ],
)
def test_lease_is_read_as_flannel_reads_it(value: bytes, want: Lease) -> None:
    assert lease_of(value) == want


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(b"", "not JSON", id="empty"),
        pytest.param(b"\xff\xfe", "not JSON", id="no-text"),
        pytest.param(b"[1]", "not a JSON object", id="list"),
        pytest.param(b"[" * 100_000, "not JSON", id="very-deep"),
        pytest.param(b'{"PublicIP":"192.0.2.300"}', "PublicIP", id="no-address"),
        pytest.param(b'{"PublicIP":"2001:db8::1"}', "PublicIP", id="other-family"),
        pytest.param(b'{"PublicIP":7}', "PublicIP", id="number"),
        pytest.param(b'{"BackendType":"vxlan","BackendData":{}}', "BackendData.VtepMAC", id="no-mac"),
        pytest.param(
            b'{"BackendType":"vxlan","BackendData":{"VtepMAC":"ff:ff:ff:ff:ff:ff"}}', "VtepMAC", id="broadcast"
        ),
        pytest.param(
            b'{"BackendType":"vxlan","BackendData":{"VNI":true,"VtepMAC":"02:42:0a:f4:01:00"}}',
            "VNI",
            id="bool-vni",
        ),
    ],
)
def test_lease_that_cannot_be_understood_says_why(value: bytes, reason: str) -> None:
    bad = decoded(LEASE_KEY, value)
    assert isinstance(bad, Unreadable)
    assert reason in bad.reason


@pytest.mark.parametrize(
    ("tail", "want"),
    [
        pytest.param("10.3.7.0-24", ("10.3.7.0/24",), id="v4"),
        pytest.param("10.3.7.0-24&fc00:0:0:1::-64", ("10.3.7.0/24", "fc00:0:0:1::/64"), id="dual-stack"),
        pytest.param("10.3.7.0-31", ("10.3.7.0/31",), id="longest"),
        pytest.param("10.3.7.1-32", None, id="v4-too-long"),
        pytest.param("zz10.3.7.0-24", None, id="anchored-in-front"),
        pytest.param("10.3.7.0-24x", None, id="anchored-behind"),
        pytest.param("10.3.7.0-24\n", None, id="newline"),
        pytest.param("sub/10.3.7.0-24", None, id="deeper"),
        pytest.param("10.3.7.5-24", None, id="host-bits"),
        pytest.param("10.3.7.0-24&FC00::-64", None, id="upper-case"),
        pytest.param("10.3.7.0-24&fc00::-128", None, id="v6-too-long"),
        pytest.param("fc00::-64", None, id="v6-alone"),
        pytest.param("10.3.7.0-24&10.4.0.0-24", None, id="v4-twice"),
        pytest.param("", None, id="empty"),
    ],
)
def test_lease_key_names_its_subnets(tail: str, want: tuple[str, ...] | None) -> None:
    found = decoded(KEYS.subnets + tail, BARE)
    if want is None:
        assert isinstance(found, Unreadable)
    else:
        assert isinstance(found, Lease)
        assert tuple(map(str, found.subnets)) == want
        assert KEYS.lease(found.subnets) == KEYS.subnets + tail


# --- keys -----------------------------------------------------------------------------------------


def test_what_etcd_says_of_a_key_is_kept() -> None:
    stored = codec.decode(KeyValue(LEASE_KEY, BARE, create_revision=3, mod_revision=7, lease_id=9), KEYS)
    assert stored == Stored(LEASE_KEY, lease(), create_revision=3, mod_revision=7, lease_id=9)


def test_other_prefixes_are_followed() -> None:
    keys = Keys(flannel="/my/net", overlay="/mine")
    assert codec.decode(KeyValue("/my/net/subnets/10.244.1.0-24", BARE), keys).value == lease()
    assert isinstance(codec.decode(KeyValue(LEASE_KEY, BARE), keys).value, Unreadable)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        pytest.param("/elsewhere", b"{}", "not a key", id="foreign"),
        pytest.param(
            KEYS.node("node-1"), b'{"name":"node-2","node_id":"i","public_ips":[]}', "node-1", id="other-name"
        ),
        pytest.param(
            KEYS.node("node-1"), b'{"name":"node-1","public_ips":[]}', "node_id", id="node-without-id"
        ),
        pytest.param(
            KEYS.node("n"), b'{"name":"n","node_id":"i","public_ips":[5]}', "public_ips", id="number-for-ip"
        ),
        pytest.param(
            KEYS.node("n"),
            b'{"name":"n","node_id":"i","public_ips":[],"labels":{"a":1}}',
            "labels",
            id="bad-label",
        ),
        pytest.param(
            KEYS.address("nowhere"), b'{"node_id":"i","node_name":"n"}', "address", id="claim-of-no-address"
        ),
        pytest.param(KEYS.vtep("xx"), b'{"node_id":"i","node_name":"n"}', "MAC", id="claim-of-no-mac"),
        pytest.param(KEYS.workloads + "node-1/web-1", b"{}", "NAMESPACE", id="workload-key-too-short"),
        pytest.param(KEYS.settings, b'{"NodeTTL":15}', "NodeTTL", id="duration-without-unit"),
        pytest.param(KEYS.network_config, b'{"Network":"10.0.0.0/8"}', "Backend.Type", id="no-backend"),
    ],
)
def test_key_that_cannot_be_understood_says_why(key: str, value: bytes, reason: str) -> None:
    bad = decoded(key, value)
    assert isinstance(bad, Unreadable)
    assert reason in bad.reason


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "want"),
    [
        pytest.param(b"{}", Settings(), id="defaults"),
        pytest.param(
            b'{"leasettl":"1h30m","NODETTL":"5s"}', Settings(lease_ttl_s=5400, node_ttl_s=5), id="any-case"
        ),
        pytest.param(b'{"StopGrace":"0s"}', Settings(stop_grace_s=0), id="no-grace"),
        pytest.param(
            b'{"ServiceNetwork":"10.112.0.0/16"}',
            Settings(service_network=IPv4Network("10.112.0.0/16")),
            id="service-network",
        ),
    ],
)
def test_settings_are_read_with_defaults(value: bytes, want: Settings) -> None:
    assert codec.parse_settings(value) == want


@pytest.mark.parametrize("text", ["", "h", "1.5h", "15", "-5s", "5s1h", "1s", "99999999999h"])
def test_duration_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueInvalid, match="NodeTTL"):
        codec.parse_settings(b'{"NodeTTL":"%s"}' % text.encode())


# --- properties -----------------------------------------------------------------------------------

names = st.from_regex(r"[a-z]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
labels = st.dictionaries(texts, texts, max_size=3).map(MappingProxyType)
macs = st.binary(min_size=6, max_size=6).map(Mac.from_bytes)
vtep_macs = macs.filter(lambda mac: mac.unicast)
v4s = st.integers(1, 2**32 - 1).map(IPv4Address)
v6s = st.integers(1, 2**128 - 1).map(IPv6Address)
ips = st.lists(v4s | v6s, max_size=3).map(tuple)
optional = st.none() | texts


@st.composite
def subnets(draw: st.DrawFn, version: int) -> IPNetwork:
    address: IPAddress = draw(v4s if version == 4 else v6s)
    length = draw(st.integers(8, 31 if version == 4 else 127))
    return ip_network((address, length), strict=False)


@st.composite
def leases(draw: st.DrawFn) -> Lease:
    families = [4, 6] if draw(st.booleans()) else [4]
    backend_type = draw(st.sampled_from([VXLAN, HOST_GW, "wireguard", None]))
    vteps = (Vtep(f, draw(st.integers(1, 2**24 - 1)), draw(vtep_macs)) for f in families)
    return Lease(
        subnets=tuple(draw(subnets(family)) for family in families),
        public_ips=tuple(draw(v4s if family == 4 else v6s) for family in families),
        backend_type=backend_type,
        vteps=tuple(vteps) if backend_type == VXLAN else (),
        node_id=draw(optional),
        node_name=draw(optional),
    )


@st.composite
def pools(draw: st.DrawFn, version: int) -> Pool:
    bits, most = (32, 30) if version == 4 else (128, 126)
    network = ip_network((draw(v4s if version == 4 else v6s), draw(st.integers(8, most - 2))), strict=False)
    length = draw(st.integers(network.prefixlen + 2, min(most, network.prefixlen + 20)))
    count = 1 << (length - network.prefixlen)
    low, high = sorted(draw(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))))
    first, last = (network.network_address + (n << (bits - length)) for n in (low, high))
    return Pool(network, length, first, last)


backends = st.just(Backend(HOST_GW)) | st.builds(
    Backend,
    st.just(VXLAN),
    vni=st.integers(1, 2**24 - 1),
    port=st.integers(1, 65535),
    mtu=st.none() | st.integers(118, 65535),
    direct_routing=st.booleans(),
    learning=st.booleans(),
)
networks = st.builds(NetworkConfig, st.tuples(pools(4)) | st.tuples(pools(4), pools(6)), backends)
settings = st.builds(
    Settings,
    st.integers(2, 10**9),
    st.integers(2, 10**6),
    st.integers(0, 10**6),
    subnets(4),
)
records = st.builds(NodeRecord, names, texts, ips, texts, optional, labels, texts, names, names)
workload_ports = st.lists(
    st.builds(Port, st.integers(1, 65535), st.sampled_from(["TCP", "UDP"]), optional), max_size=3
)
flags = st.booleans()
workloads = st.builds(
    Workload,
    names,
    names,
    names,
    ips,
    macs,
    names,
    optional,
    labels,
    workload_ports.map(tuple),
    flags,
    flags,
    flags,
)


@given(leases())
def test_lease_survives_the_round_trip(value: Lease) -> None:
    assert decoded(KEYS.lease(value.subnets), codec.encode_lease(value)) == value


@given(networks)
def test_network_config_survives_the_round_trip(value: NetworkConfig) -> None:
    assert decoded(KEYS.network_config, codec.encode_network_config(value)) == value


@given(settings)
def test_settings_survive_the_round_trip(value: Settings) -> None:
    assert decoded(KEYS.settings, codec.encode_settings(value)) == value


@given(records)
def test_node_survives_the_round_trip(value: NodeRecord) -> None:
    assert decoded(KEYS.node(value.name), codec.encode_node(value)) == value


@given(v4s | v6s, vtep_macs, texts, texts)
def test_claims_survive_the_round_trip(ip: IPAddress, mac: Mac, node_id: str, node_name: str) -> None:
    address = Claim(codec.ADDRESS, str(ip), node_id, node_name)
    vtep = Claim(codec.VTEP, str(mac), node_id, node_name)
    assert decoded(KEYS.address(ip), codec.encode_claim(address)) == address
    assert decoded(KEYS.vtep(mac), codec.encode_claim(vtep)) == vtep


@given(workloads)
def test_workload_survives_the_round_trip(value: Workload) -> None:
    assert decoded(KEYS.workload(value.node, value.id), codec.encode_workload(value)) == value


def test_workload_of_an_older_agent_serves_if_it_is_ready() -> None:
    record = json.loads(codec.encode_workload(workload(ready=False)))
    del record["serving"], record["terminating"]
    old = decoded(KEYS.workload("node-1", "default/web-2"), json.dumps(record).encode())
    assert old == workload(ready=False, serving=False)


MEMBERS = st.sampled_from(
    [
        *("PublicIP", "BackendType", "BackendData", "VNI", "VtepMAC", "NodeTTL"),
        *("Network", "SubnetLen", "SubnetMin", "Backend", "Type"),
        *("name", "namespace", "node", "node_id", "public_ips", "labels", "ports", "ips", "mac"),
    ]
)


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MEMBERS | st.text(), inner, max_size=4),
    max_leaves=8,
)
tails = st.sampled_from(["10.244.1.0-24", "node-1", "192.0.2.1", MAC, "node-1/default/web-1"]) | st.text()


@given(st.sampled_from([*KEYS.watched, "/elsewhere/"]), tails, st.binary() | values.map(as_json))
def test_decode_always_answers(prefix: str, tail: str, value: bytes) -> None:
    key = prefix + tail if prefix.endswith("/") else prefix
    stored = codec.decode(KeyValue(key, value), KEYS)
    assert stored.key == key
    if isinstance(stored.value, Unreadable):
        assert stored.value.reason
