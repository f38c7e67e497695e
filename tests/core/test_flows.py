"""Which connections are forgotten, and when the table has to be judged again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import product

import pytest
from helpers.flows import flow
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.core.flows import PROTOCOLS, Cleanup, Frontend
from overlaynet.state import Endpoint, Flow, ForwardAccept, Policy, ServicePortPolicy, ServicesPolicy

pytestmark = pytest.mark.unit

NETWORK = ip_network("10.112.0.0/16")
NODE, OTHER, LOOPBACK = (ip_address(text) for text in ("192.168.50.11", "172.16.0.1", "127.0.0.1"))
LOCAL = frozenset({NODE, OTHER, LOOPBACK})
ONE, TWO = Endpoint(ip_address("10.244.1.2"), 5353), Endpoint(ip_address("10.244.2.2"), 5353)
GONE = "10.244.3.3:5353"
CLIENT = "10.244.1.7:4000"
VIP, EXTERNAL, INGRESS = "10.112.0.10:53", "203.0.113.5:53", "203.0.113.6:53"
NODE_PORT = f"{NODE}:30053"
FORWARDING = {"forward": ForwardAccept((ip_network("10.244.0.0/16"),))}


def service(protocol: str = "udp", *serving: Endpoint, name: str = "dns") -> ServicePortPolicy:
    return ServicePortPolicy(
        f"default/{name}",
        "",
        protocol,
        53,
        cluster_ips=(ip_address("10.112.0.10"),),
        external_ips=(ip_address("203.0.113.5"),),
        ingress_ips=(ip_address("203.0.113.6"),),
        node_port=30053,
        serving=frozenset(serving),
    )


def policies(*ports: ServicePortPolicy, shared: ServicesPolicy | None = None) -> dict[str, Policy]:
    common = shared or ServicesPolicy((NETWORK,), node_ips=(NODE,))
    named = {f"service {port.name}/{port.protocol}": port for port in ports}
    return {**FORWARDING, **named, **({"services": common} if ports else {})}


def forgotten(
    want: Mapping[str, Policy], *flows: Flow, before: Mapping[str, Policy] | None = None
) -> set[Flow]:
    cleanup = Cleanup() if before is None else cleaned(before)
    cleanup.follow(want, LOCAL, (NETWORK,))
    return set(cleanup.stale(flows))


def cleaned(want: Mapping[str, Policy]) -> Cleanup:
    """After a cleanup by these that succeeded."""
    cleanup = Cleanup()
    cleanup.follow(want, LOCAL, (NETWORK,))
    cleanup.done()
    return cleanup


def frontends(want: Mapping[str, Policy]) -> Mapping[Frontend, frozenset[Endpoint]]:
    return cleaned(want).frontends()


@pytest.mark.parametrize("protocol", ["udp", "sctp"])
@pytest.mark.parametrize("frontend", [VIP, EXTERNAL, INGRESS, NODE_PORT])
@pytest.mark.parametrize(
    ("serving", "leads_to", "is_forgotten"),
    [
        pytest.param([ONE, TWO], str(ONE), False, id="to-one-that-serves"),
        pytest.param([TWO], str(ONE), True, id="to-one-that-went"),
        pytest.param([TWO], f"{TWO.ip}:9", True, id="to-another-port-of-one-that-serves"),
        pytest.param([], str(ONE), True, id="scaled-to-zero"),
        pytest.param([ONE], "", True, id="from-before-the-service"),
        pytest.param([], "", False, id="not-translated-and-no-endpoints"),
    ],
)
def test_a_datagram_sender_is_let_go_unless_its_endpoint_serves(
    protocol: str, frontend: str, serving: list[Endpoint], leads_to: str, is_forgotten: bool
):
    there = flow(protocol, CLIENT, frontend, leads_to)
    assert (there in forgotten(policies(service(protocol, *serving)), there)) == is_forgotten


@pytest.mark.parametrize("frontend", [VIP, NODE_PORT])
@pytest.mark.parametrize("leads_to", [GONE, ""])
@pytest.mark.parametrize(
    ("state", "replied", "is_forgotten"),
    [
        ("SYN_SENT", False, True),
        ("SYN_SENT", True, False),
        ("SYN_RECV", True, False),
        ("ESTABLISHED", True, False),
        ("ESTABLISHED", False, False),
        ("FIN_WAIT", True, False),
        ("TIME_WAIT", True, False),
    ],
)
def test_of_tcp_only_an_attempt_that_nobody_answered_is_forgotten(
    frontend, leads_to, state, replied, is_forgotten
):
    there = flow("tcp", CLIENT, frontend, leads_to, state=state, replied=replied)
    assert (there in forgotten(policies(service("tcp", ONE)), there)) == is_forgotten


def test_an_unanswered_attempt_at_an_endpoint_that_serves_goes_on():
    there = flow("tcp", CLIENT, VIP, str(ONE), state="SYN_SENT", replied=False)
    assert forgotten(policies(service("tcp", ONE)), there) == set()


@pytest.mark.parametrize(
    ("target", "is_forgotten"),
    [
        pytest.param(f"{NODE}:30053", True, id="where-node-ports-are-open"),
        pytest.param(f"{OTHER}:30053", False, id="own-address-without-node-ports"),
        pytest.param("192.168.50.12:30053", False, id="another-hosts"),
        pytest.param(f"{NODE}:30054", False, id="another-port"),
    ],
)
def test_node_ports_are_those_of_this_hosts_own_addresses(target: str, is_forgotten: bool):
    there = flow("udp", CLIENT, target, GONE)
    assert (there in forgotten(policies(service("udp", ONE)), there)) == is_forgotten


def test_an_address_that_left_the_host_is_not_its_own():
    elsewhere = flow("udp", CLIENT, NODE_PORT, GONE)
    cleanup = Cleanup()
    cleanup.follow(policies(service("udp", ONE)), LOCAL - {NODE})
    assert not cleanup.is_stale(elsewhere)


@pytest.mark.parametrize(("localhost", "expected"), [(False, {NODE, OTHER}), (True, {NODE, OTHER, LOOPBACK})])
def test_every_local_address_is_one_where_all_have_node_ports(localhost: bool, expected: set[object]):
    shared = ServicesPolicy((NETWORK,), node_ips=None, localhost_node_ports=localhost)
    found = frontends(policies(service("udp", ONE), shared=shared))
    assert {frontend.ip for frontend in found if frontend.port == 30053} == expected


@pytest.mark.parametrize(
    ("target", "leads_to", "is_forgotten"),
    [
        pytest.param("10.112.0.99:53", GONE, True, id="service-deleted"),
        pytest.param("10.112.0.10:54", GONE, True, id="port-removed"),
        pytest.param("10.112.0.99:53", "", False, id="not-translated"),
        pytest.param("203.0.113.99:53", GONE, True, id="stray"),
        pytest.param("8.8.8.8:53", GONE, False, id="somebody-elses"),
        pytest.param("10.244.3.3:53", "", False, id="between-containers"),
    ],
)
def test_what_belongs_to_services_alone_leads_nowhere_without_one(
    target: str, leads_to: str, is_forgotten: bool
):
    shared = ServicesPolicy((NETWORK,), strays=(ip_address("203.0.113.99"),))
    there = flow("udp", CLIENT, target, leads_to)
    assert (there in forgotten(policies(service("udp", ONE), shared=shared), there)) == is_forgotten


def test_the_service_network_is_known_without_any_service():
    there = flow("udp", CLIENT, VIP, GONE)
    assert forgotten(FORWARDING, there) == {there}


@pytest.mark.parametrize("target", [VIP, EXTERNAL, INGRESS, NODE_PORT])
def test_a_service_that_was_known_and_went_is_remembered(target: str):
    there, foreign = flow("udp", CLIENT, target, str(ONE)), flow("udp", CLIENT, "203.0.113.5:80", str(ONE))
    want, before = policies(service("udp", TWO, name="other")), policies(service("udp", ONE))
    want = {name: replace(p, cluster_ips=(), external_ips=(), ingress_ips=(), node_port=0)
            if isinstance(p, ServicePortPolicy) else p for name, p in want.items()}  # fmt: skip
    assert forgotten(want, there, foreign, before=before) == {there}


def test_a_service_that_was_never_known_is_somebody_elses():
    there = flow("udp", CLIENT, EXTERNAL, str(ONE))
    assert forgotten(FORWARDING, there) == set()


def test_an_endpoint_at_the_frontend_itself_is_served_untranslated():
    """An external address may be the host's own, where an endpoint in the host's namespace listens."""
    here = Endpoint(ip_address("203.0.113.5"), 53)
    assert forgotten(policies(service("udp", here, TWO)), flow("udp", CLIENT, EXTERNAL)) == set()


def test_what_two_services_share_both_serve():
    want = policies(service("udp", ONE), service("udp", TWO, name="other"))
    to_both = [flow("udp", CLIENT, EXTERNAL, str(ONE)), flow("udp", CLIENT, EXTERNAL, str(TWO))]
    assert forgotten(want, *to_both) == set()


# --- when -----------------------------------------------------------------------------------------


def test_everything_is_judged_at_the_start():
    assert Cleanup().follow(policies(), LOCAL) == PROTOCOLS


BASE = service("udp", ONE)
TCP = service("tcp", ONE)


@pytest.mark.parametrize(
    ("want", "protocols"),
    [
        pytest.param([BASE, TCP], set(), id="nothing"),
        pytest.param([replace(BASE, serving=frozenset({ONE})), TCP], set(), id="equal-but-made-anew"),
        pytest.param([replace(BASE, cluster=(ONE,), usable=True, affinity_s=5), TCP], set(), id="no-matter"),
        pytest.param([service("udp", TWO), TCP], {"udp"}, id="endpoint-replaced"),
        pytest.param([service("udp"), TCP], {"udp"}, id="scaled-to-zero"),
        pytest.param([BASE, service("tcp")], {"tcp"}, id="tcp-scaled-to-zero"),
        pytest.param([TCP], {"udp"}, id="service-deleted"),
        pytest.param([BASE, TCP, service("sctp", ONE)], {"sctp"}, id="service-added"),
        pytest.param([replace(BASE, node_port=30054), TCP], {"udp"}, id="node-port-changed"),
        pytest.param([replace(BASE, external_ips=()), TCP], {"udp"}, id="external-address-gone"),
    ],
)
def test_only_what_flows_are_judged_by_asks_for_another_look(want, protocols):
    assert cleaned(policies(BASE, TCP)).follow(policies(*want), LOCAL) == protocols


def test_another_address_of_this_host_matters_to_node_ports_alone():
    want = policies(BASE, replace(TCP, node_port=0))
    assert cleaned(want).follow(want, LOCAL - {OTHER}) == set()
    assert cleaned(want).follow(want, LOCAL - {NODE}) == {"udp"}


def test_another_choice_of_node_port_addresses_matters():
    everywhere = ServicesPolicy((NETWORK,), node_ips=None)
    assert cleaned(policies(BASE)).follow(policies(BASE, shared=everywhere), LOCAL) == {"udp"}


def test_what_is_owed_is_owed_until_it_is_done():
    before, want = policies(BASE), policies(service("udp", TWO))
    cleanup = cleaned(before)
    assert cleanup.follow(want, LOCAL) == {"udp"}
    assert cleanup.follow(before, LOCAL) == {"udp"}
    cleanup.done()
    assert cleanup.follow(before, LOCAL) == set()


def test_a_frontend_that_came_and_went_while_deletions_failed_is_remembered():
    cleanup = cleaned(FORWARDING)
    cleanup.follow(policies(BASE), LOCAL)
    cleanup.follow(FORWARDING, LOCAL)
    assert cleanup.is_stale(flow("udp", CLIENT, EXTERNAL, str(ONE)))


def test_a_frontend_that_came_back_is_judged_by_who_serves_it_now():
    cleanup = cleaned(policies(BASE))
    for want in (FORWARDING, policies(BASE)):
        cleanup.follow(want, LOCAL)
    assert not cleanup.is_stale(flow("udp", CLIENT, EXTERNAL, str(ONE)))


def test_a_frontend_is_forgotten_once_its_flows_are():
    cleanup = cleaned(policies(BASE))
    cleanup.follow(FORWARDING, LOCAL)
    cleanup.done()
    assert not cleanup.is_stale(flow("udp", CLIENT, EXTERNAL, str(ONE)))


def test_a_shared_frontend_stays_while_one_of_its_services_does():
    cleanup = cleaned(policies(BASE, service("udp", TWO, name="other")))
    cleanup.follow(policies(BASE), LOCAL)
    there = [flow("udp", CLIENT, EXTERNAL, str(end)) for end in (ONE, TWO)]
    assert [cleanup.is_stale(each) for each in there] == [False, True]


# --- properties -----------------------------------------------------------------------------------

TARGETS = [VIP, EXTERNAL, NODE_PORT, "10.112.0.99:53", "8.8.8.8:53", "192.168.50.12:30053"]
LEADS = ["", str(ONE), str(TWO), GONE]
KINDS = [("udp", ""), ("sctp", ""), *(("tcp", state) for state in ("SYN_SENT", "SYN_RECV", "ESTABLISHED"))]
FLOWS = [
    flow(protocol, CLIENT, target, leads_to, state=state, replied=replied)
    for (protocol, state), target, leads_to, replied in product(KINDS, TARGETS, LEADS, [True, False])
]
"""Every kind of flow to every kind of target."""
SERVING = [None, (), (ONE,), (TWO,), (ONE, TWO)]


def served(by_protocol: Iterable[tuple[Endpoint, ...] | None]) -> dict[str, Policy]:
    """One service port a protocol with these endpoints, and none for None."""
    pairs = zip(sorted(PROTOCOLS), by_protocol, strict=True)
    return policies(*(service(protocol, *chosen) for protocol, chosen in pairs if chosen is not None))


WANTED = st.sampled_from([served(each) for each in product(SERVING, repeat=len(PROTOCOLS))])


def to_services(want: Mapping[str, Policy]) -> list[Flow]:
    """What clients have that came by these rules."""
    return [
        flow(front.protocol, CLIENT, f"{front.ip}:{front.port}", str(endpoint), state="SYN_SENT", replied=False)
        for front, serving in frontends(want).items()
        for endpoint in serving
    ]


@given(WANTED, WANTED)
def test_what_came_by_the_present_rules_is_never_forgotten(want, before):
    assert forgotten(want, *to_services(want), before=before) == set()


@given(WANTED, WANTED)
def test_what_is_left_after_a_cleanup_needs_none(want, before):
    left = set(FLOWS) - forgotten(want, *FLOWS, before=before)
    assert forgotten(want, *left, before=before) == set()


@given(WANTED)
def test_a_restart_forgets_nothing_that_a_cleanup_left(want):
    left = set(FLOWS) - forgotten(want, *FLOWS, before=want)
    assert forgotten(want, *left) == set()


@given(WANTED, WANTED)
def test_answered_tcp_and_what_never_was_a_services_are_never_forgotten(want, before):
    gone = forgotten(want, *FLOWS, before=before)
    assert not [f for f in gone if f.protocol == "tcp" and (f.replied or f.state != "SYN_SENT")]
    theirs = {front[1:] for front in (*frontends(want), *frontends(before))}
    assert all((f.dst, f.dport) in theirs or f.dst in NETWORK for f in gone)


@given(WANTED, WANTED)
def test_where_no_look_is_due_none_would_find_anything(want, before):
    """Flows that were left under the old policies are right under the new ones, for protocols not due."""
    cleanup = cleaned(before)
    left = set(FLOWS) - forgotten(before, *FLOWS)
    owed = cleanup.follow(want, LOCAL, (NETWORK,))
    assert {f.protocol for f in cleanup.stale(left)} <= owed


@given(st.lists(WANTED, min_size=1, max_size=5), st.lists(st.booleans(), min_size=5, max_size=5))
def test_followed_step_by_step_is_as_planned_at_once(steps, dones):
    cleanup = Cleanup()
    for want, done in zip(steps, dones, strict=False):
        cleanup.follow(want, LOCAL, (NETWORK,))
        if done:
            cleanup.done()
    assert cleanup.frontends() == frontends(steps[-1])
    cleanup.done()
    assert set(cleanup.stale(FLOWS)) == forgotten(steps[-1], *FLOWS)
