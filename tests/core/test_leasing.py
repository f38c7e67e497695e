"""Who owns which subnet, and how a free one is found."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from helpers.model import KEYS, flannel_lease, lease, local, network, stored, subnet, vtep_mac
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.addr import Mac
from overlaynet.core import leasing
from overlaynet.core.view import View
from overlaynet.errors import Conflict, PoolExhausted
from overlaynet.model import Identity, Lease, Traces, Unreadable, Vtep

pytestmark = pytest.mark.unit


def first_of(n: int) -> int:
    return 0


def last_of(n: int) -> int:
    return n - 1


def reservation(*cidrs: str) -> Lease:
    return Lease(tuple(ip_network(cidr) for cidr in cidrs), ())


def view_of(*leases: Lease, net=None) -> View:
    items = [stored(one, revision) for revision, one in enumerate(leases, 3)]
    return View.of([stored(net or network(), 2), *items], KEYS, 100)


def choose(view: View, pick=first_of, avoid: Iterable[str] = (), **changes) -> str:
    assert view.network
    return " ".join(map(str, leasing.choose(view, view.network, local(1, **changes), pick, avoid)))


@pytest.mark.parametrize(
    ("taken", "avoid", "pick", "expected"),
    [
        pytest.param([], [], first_of, "10.244.1.0/24", id="first-subnet-of-the-range-is-left-out"),
        pytest.param([], [], last_of, "10.244.255.0/24", id="last-subnet-is-given"),
        pytest.param([lease(1)], [], first_of, "10.244.2.0/24", id="a-lease-is-avoided"),
        pytest.param([flannel_lease(1)], [], first_of, "10.244.2.0/24", id="so-is-flannel's"),
        pytest.param([reservation("10.244.0.0/20")], [], first_of, "10.244.16.0/24", id="wider-than-a-subnet"),
        pytest.param([reservation("10.244.1.128/25")], [], first_of, "10.244.2.0/24", id="part-of-a-subnet"),
        pytest.param([reservation("10.128.0.0/9")], [], first_of, "error", id="all-of-the-network"),
        pytest.param([reservation("10.245.0.0/16")], [], first_of, "10.244.1.0/24", id="elsewhere"),
        pytest.param([], [KEYS.lease((subnet(1),))], first_of, "10.244.2.0/24", id="one-just-lost"),
        pytest.param([], [KEYS.subnets + "junk"], first_of, "10.244.1.0/24", id="a-key-that-names-no-subnet"),
    ],
)
def test_choice_avoids_what_is_taken(taken, avoid, pick, expected):
    try:
        found = choose(view_of(*taken), pick, avoid)
    except PoolExhausted:
        found = "error"
    assert found == expected


def test_unreadable_lease_still_takes_its_subnet():
    bad = stored(Unreadable("not JSON"), key=KEYS.lease((subnet(1),)))
    view = View.of([stored(network(), 2), bad], KEYS)
    assert choose(view) == "10.244.2.0/24"


@pytest.mark.parametrize(
    ("taken", "remembered", "expected"),
    [
        pytest.param([], "10.244.9.0/24", "10.244.9.0/24", id="free"),
        pytest.param([lease(9)], "10.244.9.0/24", "10.244.1.0/24", id="taken-by-another"),
        pytest.param([], "10.99.9.0/24", "10.244.1.0/24", id="of-another-network"),
        pytest.param([], "10.244.8.0/23", "10.244.1.0/24", id="of-another-length"),
        pytest.param([], "10.244.0.0/24", "10.244.1.0/24", id="below-the-first"),
    ],
)
def test_remembered_subnet_is_taken_again_if_it_is_free_and_fits(taken, remembered, expected):
    identity = Identity("id-1", vtep_mac(1), (ip_network(remembered),))
    assert choose(view_of(*taken), identity=identity) == expected


def test_exhausted_pool_says_how_many_subnets_there_are():
    full = network(count=2)
    with pytest.raises(PoolExhausted) as caught:
        choose(view_of(lease(1), lease(2), net=full))
    assert "all 2 subnets of length /24" in caught.value.evidence


@given(
    taken=st.lists(st.tuples(st.integers(0, 1023), st.integers(24, 30)), max_size=40),
    limits=st.tuples(st.integers(1, 15), st.integers(0, 15)),
    seed=st.integers(),
)
def test_choice_never_overlaps_and_stays_within_the_limits(taken, limits, seed):
    first, more = limits
    net = network("10.244.0.0/22", 26, count=1)
    base = net.pools[0].network.network_address
    pool = replace(net.pools[0], first=base + 64 * first, last=base + 64 * min(15, first + more))
    net = replace(net, pools=(pool,))
    blocks = [ip_network((int(base) + offset, length), strict=False) for offset, length in taken]
    view = view_of(*(reservation(str(block)) for block in set(blocks)), net=net)
    try:
        (found,) = leasing.choose(view, net, local(1), random.Random(seed).randrange)
    except PoolExhausted:
        candidates = [ip_network((start, 26)) for start in range(int(pool.first), int(pool.last) + 1, 64)]
        assert all(any(block.overlaps(one) for block in blocks) for one in candidates)
    else:
        assert not any(found.overlaps(block) for block in blocks)
        assert found.prefixlen == 26
        assert pool.first <= found.network_address <= pool.last


OTHER_MAC = (Vtep(4, 1, Mac.parse("02:ff:ff:ff:ff:ff")),)
REMEMBERS_7 = Identity("id-1", vtep_mac(1), (subnet(7),))


@pytest.mark.parametrize(
    ("there", "identity", "ours"),
    [
        pytest.param(lease(7, node_id="id-1"), None, True, id="our-node-id"),
        pytest.param(lease(7, node_id="id-1", public_ips=()), None, True, id="our-node-id-at-an-old-address"),
        pytest.param(lease(1, node_id="id-9"), None, False, id="another-node-id-at-our-address"),
        pytest.param(flannel_lease(1), None, True, id="flannel-with-our-address-and-mac"),
        pytest.param(flannel_lease(1, vteps=OTHER_MAC), None, False, id="equal-address-is-no-proof"),
        pytest.param(
            flannel_lease(1, vteps=OTHER_MAC, subnets=(subnet(7),)), REMEMBERS_7, True, id="remembered-subnet"
        ),
        pytest.param(flannel_lease(7), REMEMBERS_7, False, id="remembered-subnet-at-another-address"),
        pytest.param(
            flannel_lease(1, public_ips=(ip_address("192.168.50.9"),)), None, False, id="our-mac-elsewhere"
        ),
    ],
)
def test_ownership_needs_the_node_id_or_address_and_proof(there, identity, ours):
    host = local(1) if identity is None else local(1, identity=identity)
    found = leasing.own_lease(view_of(there), host)
    assert (found is not None) is ours


def test_own_lease_of_another_network_does_not_count():
    stranger = lease(1, subnets=(ip_network("10.99.1.0/24"),))
    assert leasing.own_lease(view_of(stranger), local(1)) is None


def test_oldest_of_two_own_leases_counts():
    view = view_of(lease(9, node_id="id-1"), lease(3, node_id="id-1"))
    found = leasing.own_lease(view, local(1))
    assert found
    assert found.value.subnets == (subnet(9),)


@pytest.mark.parametrize(
    ("backend", "vteps"),
    [
        pytest.param("vxlan", (Vtep(4, 1, vtep_mac(1)),), id="vxlan-names-its-vtep"),
        pytest.param("host-gw", (), id="host-gw-has-none"),
    ],
)
def test_lease_value_is_flannels_with_our_two_members(backend, vteps):
    value = leasing.lease_value((subnet(1),), network(backend=backend), local(1))
    assert value == lease(1, backend=backend, vteps=vteps)


# --- hosts that flannel made ----------------------------------------------------------------------

THEIRS = flannel_lease(1, subnets=(subnet(7),), vteps=OTHER_MAC)
"""Of a flannel that ran at our address; its MAC is not that of our identity."""


@pytest.mark.parametrize(
    "evidence",
    [
        pytest.param({"traces": Traces(frozenset({OTHER_MAC[0].mac}))}, id="its-device"),
        pytest.param({"traces": Traces(subnets=(subnet(7),))}, id="its-subnet-env"),
        pytest.param({"adopt_lease": True}, id="the-operators-word"),
    ],
)
def test_lease_that_flannel_left_on_this_host_is_gone_on_with(evidence):
    adopted = leasing.adopt(view_of(THEIRS, flannel_lease(2)), local(1, **evidence))
    assert adopted.identity == Identity("id-1", OTHER_MAC[0].mac, (subnet(7),))
    assert leasing.own_lease(view_of(THEIRS), adopted)


@pytest.mark.parametrize(
    "there",
    [
        pytest.param([], id="nothing"),
        pytest.param([flannel_lease(2)], id="another-hosts"),
        pytest.param([lease(8, node_id="id-1"), THEIRS], id="ours-by-node-id"),
        pytest.param([replace(THEIRS, node_id="id-9")], id="another-nodes-at-our-address"),
    ],
)
def test_host_without_a_lease_of_flannels_stays_what_it_is(there):
    host = local(1, traces=Traces(frozenset({OTHER_MAC[0].mac}), (subnet(7),)))
    assert leasing.adopt(view_of(*there), host) is host


def test_while_a_lease_may_be_ours_no_other_is_claimed():
    with pytest.raises(Conflict, match=r"192\.168\.50\.1, and nothing here proves") as caught:
        choose(view_of(THEIRS))
    assert "10.244.7.0-24" in caught.value.evidence
    assert "--adopt-lease" in caught.value.next[1]
