"""Wiring a container: a veth pair with one end here and the other in the container's namespace.

Both descriptors in a `Wiring` come from whoever owns the container. The pair's far end is born inside,
so it never shows here under a name that might collide; the rest is done through the netlink socket that
was opened inside. So wiring takes CAP_NET_ADMIN and no right to enter anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_network

from overlaynet.addr import IPAddress
from overlaynet.errors import KernelError, OverlayError, WorkloadExists
from overlaynet.kernel import links, modules, wire
from overlaynet.kernel.handle import Rtnl
from overlaynet.ports import Wiring
from overlaynet.state import Address, Route

LOOPBACK_INDEX = 1
DEFAULT = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}

Step = tuple[str, bytes]
"""What is done, in words, and the request."""


def attach(rtnl: Rtnl, wiring: Wiring) -> None:
    """All or nothing. The host's end is left down and in no bridge: that is a `BridgePort`'s to say.

    Raises WorkloadExists if the container has a device of that name already, else KernelError.
    """
    with Rtnl.from_fd(wiring.netlink_fd) as inside:
        if inside.ifindex(wiring.container_device) is not None:
            raise WorkloadExists(
                f"the container has a device {wiring.container_device} already",
                evidence=f"{wiring.host_device} was to be its other end",
                next=["detach the container first"],
            )
        try:
            _do(rtnl, [(f"veth pair {wiring.host_device}", links.veth(wiring))])
        except KernelError as error:
            raise modules.explained(error, device="veth") from None
        try:
            _do(rtnl, [(f"alt-name {wiring.tag}", links.add_altname(wiring.host_device, wiring.tag))])
            _do(inside, _inner_steps(inside, wiring))
        except OverlayError:
            with suppress(KernelError):  # the first error is the one to tell
                rtnl.batch([links.delete(wiring.host_device)])
            raise


def _inner_steps(inside: Rtnl, wiring: Wiring) -> list[Step]:
    device = wiring.container_device
    index = inside.ifindex(device) or 0  # 0 if the socket is from another namespace than the descriptor: ENODEV
    steps = [("lo up in the container", links.modify("lo", up=True))]
    steps += [
        (f"address {address} on {device}", wire.put_address(Address(device, address), index))
        for address in wiring.addresses
    ]
    steps.append((f"{device} up in the container", links.modify(device, up=True)))
    steps += [
        (f"default route via {gateway}", wire.put_route(_default(gateway, device), index))
        for gateway in wiring.gateways
    ]
    return steps


def _default(gateway: IPAddress, device: str) -> Route:
    return Route(DEFAULT[gateway.version], device, gateway)


def _do(rtnl: Rtnl, steps: Sequence[Step]) -> None:
    for (what, _), refusal in zip(steps, rtnl.batch([message for _, message in steps]), strict=True):
        if refusal:
            raise KernelError(what, refusal.errno, refusal.text)
