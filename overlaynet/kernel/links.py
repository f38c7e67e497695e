"""Requests about links, packed by pyroute2.

Links are few and their attributes nest (a veth's peer is a whole link inside an attribute), so here a
general encoder is worth its price. pyroute2 is the encoder only; `handle.Rtnl` sends the messages like
all others, so their refusals are told apart in the same way.

Importing pyroute2 costs a quarter of a second and 14 MB, whichever part of it one asks for. It is imported
at the first request about a link, so that an agent which finds its links in place is ready without it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from overlaynet.kernel import wire
from overlaynet.kernel.parse import IFF_UP
from overlaynet.ports import Wiring
from overlaynet.state import Link, Vxlan

Attrs: TypeAlias = list[tuple[str, object]]

CREATE = wire.NLM_F_CREATE | wire.NLM_F_EXCL


def load_encoder() -> Any:
    """pyroute2's message class. Whoever must not wait for the import later calls this before."""
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    return ifinfmsg


def create(link: Link, underlay: int) -> bytes:
    """A new VXLAN device on the link with index `underlay`, or a new bridge.

    Raise it and give it its MTU in the same message. A bridge takes an MTU given at birth for a mere
    default, and follows its ports; `modify` is what makes it stay.
    """
    about: Attrs = [("IFLA_INFO_KIND", link.type)]
    if link.vxlan:
        about.append(("IFLA_INFO_DATA", {"attrs": _vxlan(link.vxlan, underlay)}))
    attrs: Attrs = [("IFLA_IFNAME", link.name), ("IFLA_LINKINFO", {"attrs": about})]
    attrs += [("IFLA_MTU", link.mtu)] if link.type != "bridge" else []
    attrs += [("IFLA_ADDRESS", str(link.mac))] if link.mac else []
    return _message(wire.RTM_NEWLINK, attrs, flags=CREATE, up=link.up)


def _vxlan(vxlan: Vxlan, underlay: int) -> Attrs:
    local = "IFLA_VXLAN_LOCAL" if vxlan.local.version == 4 else "IFLA_VXLAN_LOCAL6"
    return [
        ("IFLA_VXLAN_ID", vxlan.vni),
        ("IFLA_VXLAN_LINK", underlay),
        (local, str(vxlan.local)),
        ("IFLA_VXLAN_LEARNING", int(vxlan.learning)),
        ("IFLA_VXLAN_PORT", vxlan.port),
    ]


def modify(name: str, *, up: bool | None = None, mtu: int | None = None, mac: str | None = None) -> bytes:
    """Change what is not None of a link that exists."""
    attrs: Attrs = [("IFLA_IFNAME", name)]
    attrs += [("IFLA_MTU", mtu)] if mtu is not None else []
    attrs += [("IFLA_ADDRESS", mac)] if mac is not None else []
    return _message(wire.RTM_NEWLINK, attrs, up=up)


def add_altname(name: str, altname: str) -> bytes:
    """A further name for a link."""
    return _message(wire.RTM_NEWLINKPROP, _altname(name, altname), flags=CREATE)


def drop_altname(name: str, altname: str) -> bytes:
    """One further name less."""
    return _message(wire.RTM_DELLINKPROP, _altname(name, altname))


def _altname(name: str, altname: str) -> Attrs:
    properties = {"attrs": [("IFLA_ALT_IFNAME", altname)]}
    return [("IFLA_IFNAME", name), ("IFLA_PROP_LIST", properties)]


def delete(name: str) -> bytes:
    return _message(wire.RTM_DELLINK, [("IFLA_IFNAME", name)])


def enslave(name: str, master: int, *, mtu: int = 0, up: bool | None = None) -> bytes:
    """Make a link a port of the bridge with index `master` (0: of none). `mtu` 0 leaves it."""
    attrs: Attrs = [("IFLA_IFNAME", name), ("IFLA_MASTER", master)]
    attrs += [("IFLA_MTU", mtu)] if mtu else []
    return _message(wire.RTM_NEWLINK, attrs, up=up)


def hairpin(name: str, on: bool) -> bytes:
    """Whether a bridge port may send a frame back where it came from."""
    about = [
        ("IFLA_INFO_SLAVE_KIND", "bridge"),
        ("IFLA_INFO_SLAVE_DATA", {"attrs": [("IFLA_BRPORT_MODE", int(on))]}),
    ]
    return _message(wire.RTM_NEWLINK, [("IFLA_IFNAME", name), ("IFLA_LINKINFO", {"attrs": about})])


def veth(wiring: Wiring) -> bytes:
    """A veth pair whose far end is born in the container's namespace."""
    peer: Attrs = [
        ("IFLA_IFNAME", wiring.container_device),
        ("IFLA_MTU", wiring.mtu),
        ("IFLA_ADDRESS", str(wiring.mac)),
        ("IFLA_NET_NS_FD", wiring.netns_fd),
    ]
    about: Attrs = [
        ("IFLA_INFO_KIND", "veth"),
        ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", {"attrs": peer})]}),
    ]
    attrs: Attrs = [
        ("IFLA_IFNAME", wiring.host_device),
        ("IFLA_MTU", wiring.mtu),
        ("IFLA_LINKINFO", {"attrs": about}),
    ]
    return _message(wire.RTM_NEWLINK, attrs, flags=CREATE)


def _message(kind: int, attrs: Attrs, *, flags: int = 0, up: bool | None = None) -> bytes:
    message = load_encoder()()
    message["header"]["type"] = kind
    message["header"]["flags"] = flags | wire.NLM_F_REQUEST
    message["flags"] = IFF_UP if up else 0
    message["change"] = 0 if up is None else IFF_UP
    message["attrs"] = attrs
    message.encode()
    return bytes(message.data)
