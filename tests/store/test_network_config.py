"""flannel's network config: defaults, rules, and what is refused with which member named."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from overlaynet.errors import NetworkConfigInvalid
from overlaynet.model import HOST_GW, VXLAN, Backend
from overlaynet.store.network_config import parse_network_config

pytestmark = pytest.mark.unit

Members = Mapping[str, object]


def config(**members: object) -> bytes:
    return json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}} | members).encode()


def vxlan(**members: object) -> bytes:
    return config(Backend={"Type": "vxlan"} | members)


@pytest.mark.parametrize(
    ("members", "want"),
    [
        pytest.param({}, "10.244.0.0/16 24 10.244.1.0 10.244.255.0", id="usual"),
        pytest.param(
            {"Network": "10.244.9.9/16"}, "10.244.0.0/16 24 10.244.1.0 10.244.255.0", id="host-bits-masked"
        ),
        pytest.param(
            {"Network": "10.0.0.0/22"}, "10.0.0.0/22 24 10.0.1.0 10.0.3.0", id="largest-with-usual-length"
        ),
        pytest.param(
            {"Network": "10.0.0.0/23"}, "10.0.0.0/23 25 10.0.0.128 10.0.1.128", id="length-is-two-more"
        ),
        pytest.param({"Network": "10.0.0.0/28"}, "10.0.0.0/28 30 10.0.0.4 10.0.0.12", id="smallest"),
        pytest.param({"SubnetLen": 26}, "10.244.0.0/16 26 10.244.0.64 10.244.255.192", id="explicit-length"),
        pytest.param({"SubnetLen": 0}, "10.244.0.0/16 24 10.244.1.0 10.244.255.0", id="zero-is-default"),
        pytest.param({"SubnetLen": None}, "10.244.0.0/16 24 10.244.1.0 10.244.255.0", id="null-is-default"),
        pytest.param(
            {"SubnetMin": "10.244.0.0", "SubnetMax": "10.244.9.0"},
            "10.244.0.0/16 24 10.244.0.0 10.244.9.0",
            id="limits",
        ),
        pytest.param({"Network": "0.0.0.0/0"}, "0.0.0.0/0 24 0.0.1.0 255.255.255.0", id="everything"),
        pytest.param(
            {"EnableIPv6": True, "IPv6Network": "fd00::/48"},
            "10.244.0.0/16 24 10.244.1.0 10.244.255.0; fd00::/48 64 fd00:0:0:1:: fd00:0:0:ffff::",
            id="dual-stack",
        ),
        pytest.param(
            {"EnableIPv6": True, "IPv6Network": "fd00::/63"},
            "10.244.0.0/16 24 10.244.1.0 10.244.255.0; fd00::/63 65 fd00::8000:0:0:0 fd00:0:0:1:8000::",
            id="small-ipv6",
        ),
        pytest.param(
            {"IPv6Network": "nonsense"}, "10.244.0.0/16 24 10.244.1.0 10.244.255.0", id="ipv6-not-enabled"
        ),
    ],
)
def test_ranges_have_flannels_defaults(members: Members, want: str) -> None:
    pools = parse_network_config(config(**members)).pools
    assert "; ".join(f"{p.network} {p.subnet_len} {p.first} {p.last}" for p in pools) == want


@pytest.mark.parametrize(
    ("backend", "want"),
    [
        pytest.param({"Type": "vxlan"}, Backend(VXLAN), id="vxlan-defaults"),
        pytest.param({"Type": "VXLAN"}, Backend(VXLAN), id="type-in-any-case"),
        pytest.param({"Type": "vxlan", "Port": 0, "MTU": 0}, Backend(VXLAN), id="zero-is-default"),
        pytest.param(
            {"Type": "vxlan", "VNI": 7, "Port": 4789, "MTU": 9000, "DirectRouting": True, "Learning": True},
            Backend(VXLAN, vni=7, port=4789, mtu=9000, direct_routing=True, learning=True),
            id="vxlan-in-full",
        ),
        pytest.param(
            {"Type": "vxlan", "VNI": 2**24 - 1, "Port": 65535}, Backend(VXLAN, 2**24 - 1, 65535), id="largest"
        ),
        pytest.param({"Type": "vxlan", "GBP": False}, Backend(VXLAN), id="gbp-off"),
        pytest.param({"Type": "host-gw", "VNI": 99}, Backend(HOST_GW), id="host-gw-has-no-options"),
    ],
)
def test_backend_has_flannels_defaults(backend: Members, want: Backend) -> None:
    assert parse_network_config(config(Backend=backend)).backend == want


@pytest.mark.parametrize("fold", [str.lower, str.upper, str.swapcase], ids=["lower", "upper", "swapped"])
def test_names_are_read_in_any_case(fold: object) -> None:
    assert callable(fold)
    backend = {fold("Type"): "vxlan", fold("VNI"): 7, fold("DirectRouting"): True}
    data = json.dumps({fold("Network"): "10.0.0.0/8", fold("SubnetLen"): 20, fold("Backend"): backend}).encode()
    found = parse_network_config(data)
    assert found.pools[0].subnet_len == 20
    assert found.backend == Backend(VXLAN, vni=7, direct_routing=True)


@pytest.mark.parametrize(
    ("data", "member"),
    [
        pytest.param(b"{", "not JSON", id="broken"),
        pytest.param(b'"text"', "not a JSON object", id="text"),
        pytest.param(b'{"Backend":{"Type":"vxlan"}}', "Network is missing", id="no-network"),
        pytest.param(config(Network="10.244.0.0"), "Network", id="no-length"),
        pytest.param(config(Network="fd00::/48"), "Network is not an IPv4", id="ipv6-as-ipv4"),
        pytest.param(config(Network=10), "Network is not text", id="number"),
        pytest.param(config(Network="10.0.0.0/29"), "Network makes subnets smaller", id="too-small"),
        pytest.param(config(SubnetLen=31), "SubnetLen makes subnets smaller", id="len-too-long"),
        pytest.param(config(SubnetLen=17), "SubnetLen must be at least 18", id="len-too-short"),
        pytest.param(config(SubnetLen="24"), "SubnetLen is not a whole number", id="len-as-text"),
        pytest.param(config(SubnetLen=True), "SubnetLen is not a whole number", id="len-as-bool"),
        pytest.param(config(SubnetMin="10.245.0.0"), "SubnetMin is outside", id="min-outside"),
        pytest.param(config(SubnetMax="fd00::"), "SubnetMax is outside", id="max-other-family"),
        pytest.param(config(SubnetMin="10.244.1.128"), "SubnetMin is not the base", id="min-unaligned"),
        pytest.param(
            config(SubnetMin="10.244.9.0", SubnetMax="10.244.8.0"),
            "SubnetMin is above SubnetMax",
            id="min-above-max",
        ),
        pytest.param(
            config(EnableIPv4=False, EnableIPv6=True, IPv6Network="fd00::/48"), "EnableIPv4", id="ipv6-only"
        ),
        pytest.param(config(EnableIPv6=True), "IPv6Network is missing", id="ipv6-without-network"),
        pytest.param(
            config(EnableIPv6=True, IPv6Network="fd00::/125"), "IPv6Network makes", id="ipv6-too-small"
        ),
        pytest.param(config(Backend=None), "Backend.Type is missing", id="no-backend"),
        pytest.param(config(Backend={}), "Backend.Type is missing", id="no-type"),
        pytest.param(config(Backend="vxlan"), "Backend is not an object", id="backend-as-text"),
        pytest.param(
            config(Backend={"Type": "wireguard"}), "Backend.Type is none of: vxlan, host-gw", id="wireguard"
        ),
        pytest.param(vxlan(VNI=0), "Backend.VNI must be from 1 to 16777215", id="vni-zero"),
        pytest.param(vxlan(VNI=2**24), "Backend.VNI must be", id="vni-too-large"),
        pytest.param(vxlan(Port=65536), "Backend.Port must be", id="port-too-large"),
        pytest.param(vxlan(Port=-1), "Backend.Port must be", id="port-negative"),
        pytest.param(vxlan(MTU=117), "Backend.MTU must be from 118", id="mtu-too-small"),
        pytest.param(vxlan(GBP=True), "Backend.GBP is not supported", id="gbp"),
        pytest.param(vxlan(DirectRouting=1), "Backend.DirectRouting is not true or false", id="number-as-bool"),
    ],
)
def test_config_that_cannot_work_is_refused_by_member(data: bytes, member: str) -> None:
    with pytest.raises(NetworkConfigInvalid) as caught:
        parse_network_config(data)
    assert member in caught.value.message
    assert caught.value.evidence


def test_missing_backend_is_explained() -> None:
    with pytest.raises(NetworkConfigInvalid) as caught:
        parse_network_config(b'{"Network":"10.244.0.0/16"}')
    assert "user-space tunnel" in caught.value.evidence
    assert "vxlan, host-gw" in caught.value.evidence
