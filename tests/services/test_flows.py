"""What becomes of connections that exist when the endpoints of a service change: real sockets, real tables."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address

import pytest
from helpers.answering import REFUSED, SILENCE_S, SILENT, Answer, answer, connected
from helpers.eventually import eventually
from helpers.privilege import requires_netns
from helpers.service_net import (
    ADDRESS,
    COMMON,
    EXTERNAL,
    NODE_PORT,
    VIP,
    ServiceNet,
    base,
    endpoints,
    named,
    node_port,
    service,
    udp,
)

from overlaynet.core.flows import Cleanup
from overlaynet.firewall.chains import is_ours
from overlaynet.kernel.conntrack import ConntrackAdapter
from overlaynet.kernel.handle import Rtnl
from overlaynet.kernel.ipset import AffinitySetsAdapter
from overlaynet.kernel.observe import own_addresses
from overlaynet.reconcile import ServiceDoors, forget_flows, sync_firewall
from overlaynet.state import Endpoint, Flow, Policy, ServicePortPolicy

pytestmark = [pytest.mark.kernel, requires_netns]

NOBODY = Endpoint(ip_address("10.244.2.99"), 8080)


def serving(port: ServicePortPolicy) -> ServicePortPolicy:
    """A policy whose endpoints are just those that serve."""
    return replace(port, serving=frozenset((*port.cluster, *port.local)))


@dataclass
class HostA:
    """Host A of the net, made right as the agent does it."""

    net: ServiceNet
    doors: ServiceDoors
    cleanup: Cleanup = field(default_factory=Cleanup)

    def serve(self, *ports: ServicePortPolicy) -> int:
        """Have these services and no others; answer how many connections were forgotten for it."""
        want: dict[str, Policy] = {**base("A"), **named(*map(serving, ports))}
        if ports:
            want["services"] = COMMON
        with self.net.places["A"].entered():
            sync_firewall(self.net.firewalls["A"], want, sets=self.doors.sets)
            done = forget_flows(self.doors, self.cleanup, want, COMMON.networks)
        assert done.error is None
        return done.deleted

    def flows(self, *protocols: str) -> set[Flow]:
        assert self.doors.conntrack
        return set(self.doors.conntrack.flows(protocols))


@pytest.fixture
def host(net: ServiceNet) -> Iterator[HostA]:
    with net.places["A"].entered():
        sets, conntrack, rtnl = AffinitySetsAdapter(is_ours), ConntrackAdapter(), Rtnl.open()
        list(sets.observe()), list(conntrack.flows(["sctp"]))  # their sockets are opened here
    with closing(sets), closing(conntrack), rtnl:
        yield HostA(net, ServiceDoors(sets, conntrack, partial(own_addresses, rtnl)))


@contextmanager
def client_in(net: ServiceNet, place: str, address: str, port: int, protocol: str) -> Iterator[socket.socket]:
    """A socket that was connected in a place, which the calling thread has left again."""
    with ExitStack() as stack:
        with net.places[place].entered():
            client = stack.enter_context(connected(address, port, protocol))
        yield client


@contextmanager
def sender(net: ServiceNet, place: str, address: str = VIP, port: int = 80) -> Iterator[Sender]:
    """Sends datagrams from one socket."""
    with client_in(net, place, address, port, "udp") as client:
        yield Sender(client)


@dataclass(frozen=True)
class Sender:
    client: socket.socket

    def ask(self, patience_s: float = 5.0) -> str:
        """Who answers the next datagram, or in a word why nobody does."""
        self.client.settimeout(patience_s)
        try:
            self.client.send(b"who are you?")
            return answer(self.client.recv(256)).name
        except TimeoutError:
            return SILENT
        except ConnectionRefusedError:
            return REFUSED


def test_without_a_cleanup_a_sender_stays_with_an_endpoint_that_went(net: ServiceNet, host: HostA):
    """What the rest of this is for."""
    host.serve(udp("b1"))
    with sender(net, "a2") as client:
        assert client.ask() == "b1"
        net.serve(udp("b2"))
        assert client.ask() == "b1"


@pytest.mark.parametrize("place", ["a2", "A", "X"])
def test_the_next_datagram_reaches_the_endpoint_that_took_over(net: ServiceNet, host: HostA, place: str):
    host.serve(udp("b1"))
    with sender(net, place) as client:
        assert client.ask() == "b1"
        assert host.serve(udp("b2")) == 1
        assert client.ask() == "b2"


def test_a_sender_is_refused_at_a_service_scaled_to_zero_and_served_again(net: ServiceNet, host: HostA):
    host.serve(udp("b1"))
    with sender(net, "a2") as client:
        assert client.ask() == "b1"
        host.serve(udp(usable=False))
        assert client.ask() == REFUSED
        host.serve(udp("b2"))
        assert client.ask() == "b2"


def test_a_sender_from_before_the_service_is_served(net: ServiceNet, host: HostA):
    host.serve()
    with sender(net, "a2") as client:
        assert client.ask(SILENCE_S) == SILENT
        assert host.serve(udp("b1")) == 1
        assert client.ask() == "b1"


def test_a_sender_to_an_endpoint_that_only_is_not_chosen_any_more_stays(net: ServiceNet, host: HostA):
    host.serve(udp("b1"))
    ending = replace(serving(udp("b2")), serving=frozenset(endpoints("b1", "b2")))
    with sender(net, "a2") as client:
        assert client.ask() == "b1"
        with net.places["A"].entered():
            want = {**base("A"), **named(ending), "services": COMMON}
            assert forget_flows(host.doors, host.cleanup, want).deleted == 0
        assert client.ask() == "b1"


@pytest.mark.parametrize("address", [VIP, EXTERNAL])
def test_nothing_leads_to_the_endpoints_of_a_service_that_is_deleted(
    net: ServiceNet, host: HostA, address: str
):
    host.serve(udp("b1", external_ips=(ip_address(EXTERNAL),)))
    with sender(net, "X", address) as client:
        assert client.ask() == "b1"
        assert host.serve() == 1
        assert not [flow for flow in host.flows("udp") if str(flow.reply_src) == ADDRESS["b1"]]


def test_node_ports_are_cleaned_at_the_nodes_own_address_and_nowhere_else(net: ServiceNet, host: HostA):
    """The nodePort has the number of a port that host B itself answers at, by way of A."""
    host.serve(udp("b1", node_port=8081))
    with sender(net, "X", ADDRESS["A"], 8081) as outside, sender(net, "a2", ADDRESS["B"], 8081) as passing:
        assert (outside.ask(), passing.ask()) == ("b1", "B")
        before = {flow for flow in host.flows("udp") if str(flow.dst) == ADDRESS["B"]}
        assert before
        assert host.serve(udp("b2", node_port=8081)) == 1
        assert before <= {flow._replace(replied=True) for flow in host.flows("udp")}
        assert (outside.ask(), passing.ask()) == ("b2", "B")


def test_node_port_senders_are_let_go_when_nobody_serves(net: ServiceNet, host: HostA):
    host.serve(node_port("b1", protocol="udp"))
    with sender(net, "X", ADDRESS["A"], NODE_PORT) as client:
        assert client.ask() == "b1"
        host.serve(node_port(protocol="udp", usable=False))
        assert client.ask() == REFUSED


def test_an_established_connection_outlives_its_endpoints_place_in_the_service(net: ServiceNet, host: HostA):
    host.serve(service("b1"))
    with client_in(net, "a2", VIP, 80, "tcp") as client:
        assert answer(client.recv(256)).name == "b1"
        assert host.serve(service("b2")) == 0
        client.send(b"still there?")
        assert client.recv(256) == b"still there?"
    assert isinstance(said := net.ask("a2", VIP, 80), Answer)
    assert said.name == "b2"


def test_a_handshake_with_an_endpoint_that_went_is_begun_again_with_another(net: ServiceNet, host: HostA):
    net.places["B"].run(f"ip route add blackhole {NOBODY.ip}")
    try:
        host.serve(replace(service("b1"), cluster=(NOBODY,)))
        with net.places["a2"].entered():
            client = socket.socket()
        with client:
            client.setblocking(False)
            client.connect_ex((VIP, 80))
            eventually(lambda: [f for f in host.flows("tcp") if f.state == "SYN_SENT" and not f.replied])
            assert host.serve(service("b1")) == 1
            client.settimeout(10)
            assert answer(client.recv(256)).name == "b1"
    finally:
        net.places["B"].run(f"ip route del blackhole {NOBODY.ip}")


def test_a_restart_with_nothing_changed_forgets_nothing(net: ServiceNet, host: HostA):
    ports = udp("b1", "b2"), service("b1", "b2")
    host.serve(*ports)
    with sender(net, "a2") as client:
        name = client.ask()
        again = HostA(net, host.doors)
        assert again.serve(*ports) == 0
        assert client.ask() == name
