"""What a host should hold: whole hosts as text, and slices that add up."""

from __future__ import annotations

import random
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from textwrap import dedent

import pytest
from helpers.model import KEYS, flannel_lease, lease, local, network, stored, subnet, vtep_mac, workload
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.core import overlay, plan
from overlaynet.core.plan import Desired
from overlaynet.core.view import View
from overlaynet.core.workload import give_address, host_device, veth_tag
from overlaynet.errors import AddressTaken, SubnetFull
from overlaynet.model import Backend, Lease, Vtep
from overlaynet.state import ForwardAccept, HostState, Masquerade, Neigh, Source, VxlanGuard

pytestmark = pytest.mark.unit


def whole(*peers: Lease, net=None, own: Lease | None = None, workloads=(), **changes) -> Desired:
    """Host 1 with these peers."""
    mine = own or lease(1)
    items = [stored(net or network()), *map(stored, peers), stored(mine)]
    return plan.desired(View.of(items, KEYS), local(1, **changes), mine, workloads)


def text(desired: Desired, *kinds: str) -> str:
    lines = str(HostState(desired.objects)).splitlines()
    return "\n".join(line for line in lines if not kinds or line.split()[0] in kinds)


VXLAN_HOST = """
address 10.244.1.0/32 dev flannel.1
link flannel.1 type vxlan id 1 dstport 8472 local 192.168.50.1 dev eth0 address 02:00:00:00:00:01 mtu 1450 up
sysctl net/ipv4/conf/flannel.1/rp_filter = 2
sysctl net/ipv4/ip_forward = 1
"""
HOSTS = [
    pytest.param(whole(), VXLAN_HOST, id="vxlan-without-peers"),
    pytest.param(
        whole(lease(2)),
        """
        fdb 02:00:00:00:00:02 dev flannel.1 dst 192.168.50.2 self permanent
        neigh 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent
        route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink metric 717827 table 254
        """
        + VXLAN_HOST,
        id="vxlan-with-a-peer",
    ),
    pytest.param(
        whole(workloads=[workload(1, 2)]),
        f"""
        address 10.244.1.1/24 dev cni0
        fdb 0a:58:0a:f4:01:02 dev {host_device("default/web-2")} master cni0 static
        link cni0 type bridge address 0a:58:0a:f4:01:01 mtu 1450 up
        port {host_device("default/web-2")} master cni0 hairpin on
        sysctl net/ipv4/conf/cni0/rp_filter = 2
        """
        + VXLAN_HOST,
        id="vxlan-with-a-container",
    ),
    pytest.param(
        whole(workloads=[workload(1, 2)], bridge_mode="external", bridge="br9"),
        f"""
        fdb 0a:58:0a:f4:01:02 dev {host_device("default/web-2")} master br9 static
        port {host_device("default/web-2")} master br9 hairpin on
        """
        + VXLAN_HOST,
        id="somebody-else's-bridge",
    ),
    pytest.param(whole(workloads=[workload(1, 2)], bridge_mode="none"), VXLAN_HOST, id="no-bridge"),
    pytest.param(
        whole(
            lease(2, backend="host-gw"),
            net=network(backend="host-gw"),
            own=lease(1, backend="host-gw"),
            workloads=[workload(1, 2)],
        ),
        f"""
        address 10.244.1.1/24 dev cni0
        fdb 0a:58:0a:f4:01:02 dev {host_device("default/web-2")} master cni0 static
        link cni0 type bridge address 0a:58:0a:f4:01:01 mtu 1500 up
        port {host_device("default/web-2")} master cni0 hairpin on
        route 10.244.2.0/24 via 192.168.50.2 dev eth0 metric 717827 table 254
        sysctl net/ipv4/conf/cni0/rp_filter = 2
        sysctl net/ipv4/ip_forward = 1
        """,
        id="host-gw",
    ),
]


@pytest.mark.parametrize(("desired", "expected"), HOSTS)
def test_whole_host(desired, expected):
    lines = [line.strip() for line in dedent(expected).splitlines() if line.strip()]
    assert text(desired) == "\n".join(sorted(lines))


@pytest.mark.parametrize(
    "peer",
    [
        pytest.param(lease(2, backend="host-gw"), id="another-backend"),
        pytest.param(lease(2, backend=None), id="a-reservation"),
        pytest.param(lease(2, vni=7), id="another-vni"),
        pytest.param(lease(2, vteps=()), id="no-vtep"),
        pytest.param(lease(2, vteps=(Vtep(6, 1, vtep_mac(2)),)), id="a-vtep-of-the-other-family"),
        pytest.param(lease(2, public_ips=()), id="no-public-address"),
        pytest.param(lease(2, subnets=(ip_network("10.244.1.128/25"),)), id="overlaps-ours"),
        pytest.param(lease(2, subnets=(ip_network("10.244.0.0/16"),)), id="covers-ours"),
        pytest.param(lease(3, node_id="id-1", public_ips=local(1).public_ips), id="an-old-one-of-ours"),
        pytest.param(flannel_lease(3, public_ips=local(1).public_ips), id="at-our-own-address"),
    ],
)
def test_peer_that_cannot_be_reached_gets_no_entries(peer):
    assert text(whole(peer)) == text(whole())


def test_flannel_host_is_a_peer_like_any_other():
    assert text(whole(flannel_lease(2))) == text(whole(lease(2)))


@given(st.sets(st.integers(0, 2**16 - 1), min_size=2, max_size=30))
def test_metric_is_unique_for_each_subnet_and_at_least_one(numbers):
    metrics = {overlay.metric_of(ip_network((number << 16, 16))) for number in numbers}
    assert len(metrics) == len(numbers)
    assert min(metrics) >= 1


@pytest.mark.parametrize(
    ("backend", "underlay", "mtu"),
    [
        pytest.param(Backend("vxlan"), 1500, 1450, id="vxlan"),
        pytest.param(Backend("vxlan"), 9000, 8950, id="vxlan-over-jumbo-frames"),
        pytest.param(Backend("vxlan", mtu=1400), 1500, 1350, id="vxlan-with-the-operator's-mtu"),
        pytest.param(Backend("vxlan", mtu=9000), 1500, 1450, id="vxlan-with-more-than-the-interface-carries"),
        pytest.param(Backend("vxlan"), 100, 68, id="vxlan-over-almost-nothing"),
        pytest.param(Backend("host-gw"), 1500, 1500, id="host-gw"),
        pytest.param(Backend("host-gw", mtu=1400), 1500, 1400, id="host-gw-with-the-operator's-mtu"),
    ],
)
def test_container_mtu(backend, underlay, mtu):
    assert overlay.container_mtu(backend, local(1, underlay_mtu=underlay)) == mtu


OVERLAY = (ip_network("10.244.0.0/16"),)


@pytest.mark.parametrize(
    ("net", "changes", "expected"),
    [
        pytest.param(
            network(),
            {},
            {
                "forward": ForwardAccept(OVERLAY),
                "masquerade": Masquerade(OVERLAY, (subnet(1),)),
                "vxlan": VxlanGuard(8472, OVERLAY, None, ("cni0", "flannel.1")),
            },
            id="vxlan",
        ),
        pytest.param(
            network(port=4789),
            {"masquerade": False, "vxlan_peers_only": True},
            {
                "forward": ForwardAccept(OVERLAY),
                "vxlan": VxlanGuard(
                    4789,
                    OVERLAY,
                    (ip_address("192.168.50.2"), ip_address("192.168.50.10")),
                    ("cni0", "flannel.1"),
                ),
            },
            id="peers-only-and-no-masquerade",
        ),
        pytest.param(
            network(backend="host-gw"),
            {},
            {"forward": ForwardAccept(OVERLAY), "masquerade": Masquerade(OVERLAY, (subnet(1),))},
            id="host-gw-has-nothing-to-guard",
        ),
    ],
)
def test_policies(net, changes, expected):
    assert whole(lease(10), lease(2), net=net, **changes).policies == expected


def test_every_object_has_a_source():
    desired = whole(lease(2), workloads=[workload(1, 2)])
    names = {str(source): 0 for source in desired.sources.values()}
    assert desired.sources.keys() == desired.objects.keys()
    assert names.keys() == {
        str(Source("host", "base")),
        str(Source("lease", "10.244.2.0-24")),
        str(Source("workload", "default/web-2")),
    }


# --- slices ---------------------------------------------------------------------------------------

SOURCES = [Source("lease", name) for name in "abcd"]
DEVICES = [Neigh("flannel.1", ip_address(f"10.244.{n}.0"), vtep_mac(m)) for n in range(4) for m in range(2)]
POLICY = ForwardAccept(OVERLAY)


def slices() -> st.SearchStrategy[HostState]:
    return st.lists(st.sampled_from(DEVICES), max_size=4).map(HostState.of)


@given(st.lists(st.tuples(st.sampled_from(SOURCES), slices()), max_size=20))
def test_replacing_slices_one_by_one_is_the_union_of_the_last_of_each(steps):
    grown, shown = Desired(), dict[object, object]()
    for source, part in steps:
        for key in grown.replace(source, part):
            shown[key] = grown.objects.get(key)
    fresh = Desired()
    for source, part in sorted(dict(steps).items(), reverse=True):
        fresh.replace(source, part)
    assert (grown.objects, grown.sources) == (fresh.objects, fresh.sources)
    assert (grown.slices, grown.contended) == (fresh.slices, fresh.contended)
    assert {key: obj for key, obj in shown.items() if obj is not None} == grown.objects


def test_contended_key_goes_to_the_smaller_source_and_back_when_that_goes():
    desired, (a, b) = Desired(), SOURCES[:2]
    one, other = DEVICES[:2]
    desired.replace(b, HostState.of([other]))
    desired.replace(a, HostState.of([one]))
    assert desired.objects == {one.key: one}
    assert desired.remove(a) == {one.key}
    assert desired.objects == {one.key: other}
    desired.remove(b)
    assert desired.objects == {}


def test_policies_come_and_go_with_their_slice():
    desired = Desired()
    desired.replace(SOURCES[0], HostState.of(forward=POLICY))
    assert desired.policies == {"forward": POLICY}
    desired.remove(SOURCES[0])
    assert desired.policies == {}


# --- containers' addresses ------------------------------------------------------------------------


def ips(*last: int) -> list:
    return [ip_address(f"10.244.1.{n}") for n in last]


def given_out(used: Iterable[int], asked: int | None = None, cidr: str = "10.244.1.0/29") -> str:
    wish = None if asked is None else ip_address(f"10.244.1.{asked}")
    try:
        return str(give_address(ip_network(cidr), set(ips(*used)), wish))
    except (AddressTaken, SubnetFull) as error:
        return error.code


@pytest.mark.parametrize(
    ("used", "asked", "expected"),
    [
        pytest.param([], None, "10.244.1.2", id="the-third"),
        pytest.param([2, 4], None, "10.244.1.3", id="lowest-free"),
        pytest.param([2, 3, 4, 5, 6], None, "OVL-703", id="full-without-the-broadcast-address"),
        pytest.param([], 5, "10.244.1.5", id="as-asked"),
        pytest.param([5], 5, "OVL-702", id="asked-and-taken"),
        pytest.param([], 0, "OVL-702", id="the-vtep's"),
        pytest.param([], 1, "OVL-702", id="the-gateway's"),
        pytest.param([], 7, "OVL-702", id="broadcast"),
        pytest.param([], 9, "OVL-702", id="of-another-subnet"),
    ],
)
def test_address_for_a_container(used, asked, expected):
    assert given_out(used, asked) == expected


def test_names_of_a_veth_fit_the_kernel_and_tell_containers_apart():
    ids = [f"ns-{n}/web" for n in range(500)]
    assert len({host_device(one) for one in ids}) == len(ids)
    assert max(len(host_device(one)) for one in ids) == 15
    assert veth_tag("default/web") == "overlaynet-veth-default.web"


def test_desired_order_of_leases_does_not_matter():
    peers = [lease(n, vteps=(Vtep(4, 1, vtep_mac(9)),)) for n in range(2, 8)]
    shuffled = random.Random(4).sample(peers, len(peers))
    assert text(whole(*peers)) == text(whole(*shuffled))
