"""What the rules do to packets: a container, its host, and the underlay beyond, as three namespaces.

container 10.244.1.2 ── cni0 10.244.1.1 [host] eth0 192.168.50.11 ── 192.168.50.50 outside
(also 172.16.0.9 and,                                                (also 10.244.2.2, in the
 as a forger, 192.168.50.12)                                          place of another host)
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.eventually import eventually
from helpers.firewall_cases import BASE, HOST_GW, PEERS_ONLY
from helpers.private_netns import PrivateNetns, private_netns
from helpers.privilege import requires_netns

from overlaynet.firewall.iptables import Iptables

pytestmark = [pytest.mark.kernel, requires_netns]

VXLAN_PORT = 8472
OTHER_PORT = 8473


@dataclass(frozen=True)
class Wire:
    container: PrivateNetns
    host: PrivateNetns
    outside: PrivateNetns
    firewall: Iptables

    def reach(self, want) -> None:
        with self.host.entered():
            have = self.firewall.observe()
            self.firewall.apply(self.firewall.pending(want, have), have)

    def dropped(self) -> int:
        """Packets that met one of our DROP rules."""
        with self.host.entered():
            rules = self.firewall.observe().chains.values()
        return sum(line.packets for lines in rules for line in lines if line.text.endswith("-j DROP"))


def udp(stack: ExitStack, netns: PrivateNetns, address: str, port: int) -> socket.socket:
    with netns.entered():
        made = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    made.bind((address, port))
    made.settimeout(10)
    return made


@pytest.fixture(params=["legacy", "nft"])
def wire(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    with private_netns() as container, private_netns() as host, private_netns() as outside:
        for command in (
            f"ip link add cni0 type veth peer name eth0 netns {container.path}",
            f"ip link add eth0 type veth peer name eth0 netns {outside.path}",
            "ip address add 10.244.1.1/24 dev cni0",
            "ip address add 192.168.50.11/24 dev eth0",
            "ip link set cni0 up",
            "ip link set eth0 up",
            "ip route add 10.244.2.0/24 via 192.168.50.50",
            "ip route add 172.16.0.9/32 dev cni0",
            "sysctl -q -w net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.cni0.rp_filter=2",
        ):
            host.run(command)
        for command in (
            "ip address add 10.244.1.2/24 dev eth0",
            "ip address add 172.16.0.9/32 dev eth0",
            "ip address add 192.168.50.12/32 dev eth0",
            "ip link set eth0 up",
            "ip route add default via 10.244.1.1",
        ):
            container.run(command)
        for command in (
            "ip address add 192.168.50.50/24 dev eth0",
            "ip address add 10.244.2.2/32 dev eth0",
            "ip link set eth0 up",
            "ip route add 10.244.1.0/24 via 192.168.50.11",
        ):
            outside.run(command)
        yield Wire(container, host, outside, Iptables(request.param))


@pytest.mark.parametrize("source", ["10.244.1.2", "192.168.50.12"], ids=["own-address", "forged-address"])
@pytest.mark.parametrize(
    ("where", "target"),
    [("host", "192.168.50.11"), ("outside", "192.168.50.50")],
    ids=["own-host", "other-host"],
)
@pytest.mark.parametrize("want", [BASE, PEERS_ONLY], ids=["base", "peers-only"])
def test_a_container_cannot_send_vxlan_to_a_host(wire: Wire, want, where: str, target: str, source: str):
    with ExitStack() as stack:
        receiver = udp(stack, getattr(wire, where), target, VXLAN_PORT)
        sender = udp(stack, wire.container, source, 0)
        sender.sendto(b"let through without our rules", (target, VXLAN_PORT))
        assert receiver.recv(99) == b"let through without our rules"
        wire.reach(want)
        fresh = udp(stack, wire.container, source, 0)
        fresh.sendto(b"forged", (target, VXLAN_PORT))
        eventually(lambda: wire.dropped() == 1)
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(99)


def test_any_other_port_of_the_host_is_open_to_containers(wire: Wire):
    wire.reach(PEERS_ONLY)
    with ExitStack() as stack:
        receiver = udp(stack, wire.host, "192.168.50.11", OTHER_PORT)
        udp(stack, wire.container, "10.244.1.2", 0).sendto(b"hello", ("192.168.50.11", OTHER_PORT))
        assert receiver.recv(99) == b"hello"


def test_underlay_may_send_vxlan_unless_only_peers_may(wire: Wire):
    with ExitStack() as stack:
        receiver = udp(stack, wire.host, "192.168.50.11", VXLAN_PORT)
        stranger = udp(stack, wire.outside, "192.168.50.50", 0)
        wire.outside.run("ip address add 192.168.50.13/24 dev eth0")
        peer = udp(stack, wire.outside, "192.168.50.13", 0)
        wire.reach(BASE)
        stranger.sendto(b"base", ("192.168.50.11", VXLAN_PORT))
        assert receiver.recv(99) == b"base"
        wire.reach(PEERS_ONLY)
        stranger.sendto(b"stranger", ("192.168.50.11", VXLAN_PORT))
        peer.sendto(b"peer", ("192.168.50.11", VXLAN_PORT))
        assert receiver.recv(99) == b"peer"
        assert wire.dropped() == 1


@pytest.mark.parametrize(
    ("source", "target", "seen"),
    [
        pytest.param("10.244.1.2", "192.168.50.50", "192.168.50.11", id="container-to-outside-is-masqueraded"),
        pytest.param("10.244.1.2", "10.244.2.2", "10.244.1.2", id="container-to-container-is-not"),
        pytest.param("172.16.0.9", "10.244.2.2", "192.168.50.11", id="outside-to-container-elsewhere-is"),
        pytest.param("172.16.0.9", "192.168.50.50", "172.16.0.9", id="outside-to-outside-is-none-of-ours"),
    ],
)
@pytest.mark.parametrize("want", [BASE, HOST_GW], ids=["vxlan", "host-gw"])
def test_source_address_a_receiver_sees(wire: Wire, want, source: str, target: str, seen: str):
    wire.reach(want)
    with ExitStack() as stack:
        receiver = udp(stack, wire.outside, target, OTHER_PORT)
        udp(stack, wire.container, source, 0).sendto(b"who am I?", (target, OTHER_PORT))
        assert receiver.recvfrom(99)[1][0] == seen


def test_container_here_sees_the_address_of_an_outside_client(wire: Wire):
    wire.reach(BASE)
    with ExitStack() as stack:
        receiver = udp(stack, wire.container, "10.244.1.2", OTHER_PORT)
        udp(stack, wire.outside, "192.168.50.50", 0).sendto(b"client", ("10.244.1.2", OTHER_PORT))
        assert receiver.recvfrom(99)[1][0] == "192.168.50.50"


def test_traffic_passes_a_forward_chain_whose_policy_is_drop(wire: Wire):
    wire.host.run(f"iptables-{wire.firewall.flavour} -P FORWARD DROP")
    wire.reach(BASE)
    with ExitStack() as stack:
        receiver = udp(stack, wire.outside, "192.168.50.50", OTHER_PORT)
        sender = udp(stack, wire.container, "10.244.1.2", 0)
        sender.sendto(b"ask", ("192.168.50.50", OTHER_PORT))
        receiver.sendto(b"answer", receiver.recvfrom(99)[1])
        assert sender.recv(99) == b"answer"


DOCKER = """*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
COMMIT
"""


def load(wire: Wire, text: str) -> None:
    with wire.host.entered():
        command = [f"iptables-{wire.firewall.flavour}-restore", "--noflush"]
        subprocess.run(command, input=text, text=True, check=True, capture_output=True)


def blockers(wire: Wire) -> tuple[str, ...]:
    with wire.host.entered():
        return wire.firewall.blockers(BASE, wire.firewall.observe())


def reaches(wire: Wire, within_s: float = 10) -> bool:
    """Whether a datagram of the container comes out beyond the host."""
    with ExitStack() as stack:
        receiver = udp(stack, wire.outside, "10.244.2.2", OTHER_PORT)
        receiver.settimeout(within_s)
        udp(stack, wire.container, "10.244.1.2", 0).sendto(b"x", ("10.244.2.2", OTHER_PORT))
        try:
            return receiver.recv(9) == b"x"
        except TimeoutError:
            return False


def test_dockers_rules_in_front_of_ours_stop_nothing(wire: Wire):
    """Docker that starts after us puts its jumps in front; they concern its own bridge alone."""
    wire.reach(BASE)
    load(wire, DOCKER.replace("-A FORWARD -j DOCKER-USER", "-I FORWARD 1 -j DOCKER-USER"))
    assert reaches(wire)
    assert blockers(wire) == ()


def test_drop_in_docker_user_stops_us_and_is_told(wire: Wire):
    wire.reach(BASE)
    load(wire, DOCKER.replace("-A FORWARD -j DOCKER-USER", "-I FORWARD 1 -j DOCKER-USER"))
    load(wire, "*filter\n-A DOCKER-USER -s 10.244.0.0/16 -j DROP\nCOMMIT\n")
    assert not reaches(wire, within_s=0.5)
    assert blockers(wire) == (
        "a foreign rule stands before ours in table filter chain DOCKER-USER: -s 10.244.0.0/16 -j DROP",
    )


def test_drop_behind_our_hook_stops_nothing(wire: Wire):
    """As firewalld and ufw have it: their own chains, then a REJECT of the rest."""
    load(wire, "*filter\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\nCOMMIT\n")
    wire.reach(BASE)
    assert reaches(wire)
    assert blockers(wire) == ()
