"""The kernel port needs CAP_NET_ADMIN over its namespace, and nothing else whatever."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest
from helpers.private_netns import private_netns
from helpers.privilege import requires_netns

from overlaynet.kernel.netns import socket_in

pytestmark = [pytest.mark.kernel, requires_netns]

WIRE_A_HOST = """
import sys
from ipaddress import ip_address, ip_interface, ip_network
from overlaynet.addr import Mac
from overlaynet.kernel import capability
from overlaynet.kernel.apply import KernelAdapter
from overlaynet.ports import Wiring
from overlaynet.state import *

container, netlink = map(int, sys.argv[1:3])
local, mac, peer = ip_address("127.0.0.1"), Mac("02:00:00:00:00:01"), ip_address("10.244.2.0")
bridge = Link("cni0", "bridge", "overlaynet-bridge", 1450)
vxlan = Link("flannel.1", "vxlan", "overlaynet-vxlan", 1400, mac, Vxlan(1, 8472, local, "cni0"))
wanted = [
    Sysctl("net/ipv4/ip_forward", "1"), bridge, vxlan,
    Address("cni0", ip_interface("10.244.1.1/24")), Neigh("flannel.1", peer, mac),
    Fdb("flannel.1", mac, ip_address("192.168.50.12")),
    Route(ip_network("10.244.2.0/24"), "flannel.1", peer, 7, True),
]
kernel = KernelAdapter.open()
failures = kernel.apply([Change(Op.PUT, obj) for obj in wanted])
ips, gateways = (ip_interface("10.244.1.2/24"),), (ip_address("10.244.1.1"),)
kernel.attach(Wiring("veth1", "overlaynet-a/b", "eth0", mac, ips, gateways, 1450, container, netlink))
port, pin = BridgePort("veth1", "cni0"), Fdb("veth1", mac, None, "cni0", "static")
failures += kernel.apply([Change(Op.PUT, port), Change(Op.PUT, pin)])
state = kernel.observe(["net/ipv4/ip_forward"])
assert pin in state.fdb and state.sysctls["net/ipv4/ip_forward"] == "1", state
kernel.detach("veth1")
print(sorted(capability.effective()), [str(f.error) for f in failures])
"""

FORGET_A_CONNECTION = """
from ipaddress import ip_address
from overlaynet.kernel import capability
from overlaynet.kernel.conntrack import ConntrackAdapter
from overlaynet.kernel.handle import Rtnl
from overlaynet.kernel.ipset import AffinitySetsAdapter
from overlaynet.kernel.observe import own_addresses
from overlaynet.state import Flow

sets, table = AffinitySetsAdapter(lambda name: name.startswith("OVL-")), ConntrackAdapter()
sets.check(), table.check()
sets.create("OVL-A", 10)
there = sets.observe()
sets.destroy("OVL-A")
ip = ip_address("192.0.2.1")
table.delete(Flow("udp", ip, 1, ip, 2, ip, 2, ip, 1))
print(sorted(capability.effective()), there, list(table.flows(["udp"])), len(own_addresses(Rtnl.open())))
"""

MAKE_A_CONTAINER = """
import socket, sys
from overlaynet.kernel import netns
fd = netns.new()
inside = netns.socket_in(fd, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
sys.argv[1:] = [str(fd), str(inside.fileno())]
"""


def python(*before: str, script: str, arguments: tuple[int, ...] = ()) -> str:
    command = [*before, sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, pass_fds=arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_net_admin_alone_is_enough() -> None:
    with ExitStack() as stack:
        host, container = (stack.enter_context(private_netns()) for _ in range(2))
        netlink = socket_in(container.fd, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        stack.enter_context(netlink)
        stack.enter_context(host.entered())
        only = ["setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all"]
        said = python(*only, script=WIRE_A_HOST, arguments=(container.fd, netlink.fileno()))
    assert said == "['CAP_NET_ADMIN'] []\n"


def test_net_admin_alone_is_enough_for_sets_and_connections() -> None:
    with private_netns() as host, host.entered():
        said = python(
            "setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all", script=FORGET_A_CONNECTION
        )
    assert said == "['CAP_NET_ADMIN'] {'OVL-A': 10} [] 1\n"


def test_a_user_namespace_is_enough_for_sets_and_connections() -> None:
    assert python("unshare", "-Urn", script=FORGET_A_CONNECTION).endswith("{'OVL-A': 10} [] 0\n")


def test_a_user_namespace_is_enough() -> None:
    said = python("unshare", "-Urn", script=MAKE_A_CONTAINER + WIRE_A_HOST)
    assert said.endswith("[]\n")
