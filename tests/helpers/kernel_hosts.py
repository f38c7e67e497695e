"""A host to try a kernel port on: an underlay device, and containers to be wired. Fake or real."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface
from typing import Protocol

from helpers.eventually import eventually
from helpers.private_netns import PrivateNetns, private_netns

from overlaynet.addr import Mac
from overlaynet.kernel.apply import KernelAdapter
from overlaynet.kernel.handle import Rtnl
from overlaynet.kernel.netns import socket_in
from overlaynet.kernel.observe import observe
from overlaynet.ports import Kernel, Wiring
from overlaynet.state import KernelState
from overlaynet.testing.fake_kernel import FakeKernel

UNDERLAY = "eth0"
PUBLIC = ip_interface("192.168.50.11/24")
GATEWAY = ip_address("10.244.1.1")
CONTAINER_MAC = Mac("0a:58:0a:f4:01:02")


class Host(Protocol):
    """What the contract suite needs beside the port itself."""

    @property
    def kernel(self) -> Kernel: ...

    def container(self) -> Wiring:
        """How to wire a new, empty container."""

    def inside(self, wiring: Wiring) -> KernelState:
        """What its namespace holds."""


def wiring(netns_fd: int, netlink_fd: int) -> Wiring:
    return Wiring(
        host_device="veth1",
        tag="overlaynet-default/web-1",
        container_device="eth0",
        mac=CONTAINER_MAC,
        addresses=(ip_interface("10.244.1.2/24"),),
        gateways=(GATEWAY,),
        mtu=1_450,
        netns_fd=netns_fd,
        netlink_fd=netlink_fd,
    )


@dataclass
class FakeHost:
    kernel: FakeKernel = field(default_factory=FakeKernel)
    made: int = 0

    def __post_init__(self) -> None:
        self.kernel.add_device(UNDERLAY, addresses=(PUBLIC,))

    def container(self) -> Wiring:
        self.made += 1
        return wiring(netns_fd=100 + self.made, netlink_fd=200 + self.made)

    def inside(self, wiring: Wiring) -> KernelState:
        return self.kernel.container(wiring.netns_fd).observe()


@dataclass
class RealHost:
    """The kernel, in a namespace of its own that the calling thread has entered."""

    kernel: KernelAdapter
    netns: PrivateNetns
    stack: ExitStack

    def container(self) -> Wiring:
        netns = self.stack.enter_context(private_netns())
        netlink = socket_in(netns.fd, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self.stack.callback(netlink.close)
        return wiring(netns.fd, netlink.fileno())

    def inside(self, wiring: Wiring) -> KernelState:
        with Rtnl.from_fd(wiring.netlink_fd) as rtnl:
            return observe(rtnl)


@contextmanager
def real_host() -> Iterator[RealHost]:
    with ExitStack() as stack:
        netns = stack.enter_context(private_netns())
        netns.run(f"ip link add {UNDERLAY} type veth peer name wire")
        netns.run("ip link set wire up")
        netns.run(f"ip link set {UNDERLAY} up")
        netns.run(f"ip address add {PUBLIC} dev {UNDERLAY}")
        # The kernel announces a carrier in its own time (net/core/link_watch.c); who listens by then hears it.
        eventually(lambda: " state UP " in netns.run(f"ip -o link show {UNDERLAY}"))
        stack.enter_context(netns.entered())
        kernel = KernelAdapter.open()
        stack.callback(kernel.close)
        yield RealHost(kernel, netns, stack)
