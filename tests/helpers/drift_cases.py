"""Ways in which what is ours can be broken, as another program would do it. `{port}` is a container's veth."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """`settings` are written below /proc/sys, `commands` run one a line; `commit` is for iptables-restore,
    where a quick agent must not come between; `same_size` says that a legacy table keeps its size, so that
    no poll can see the edit."""

    object: str
    how: str
    commands: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    commit: str = ""
    same_size: bool = False

    @property
    def name(self) -> str:
        return f"{self.object}-{self.how}"


MAC_2, NOBODY, METRIC_2 = "02:00:00:00:00:02", "02:00:00:00:0f:0f", 717_827
ROUTE_2 = f"10.244.2.0/24 metric {METRIC_2}"
TO_OUTSIDE = '-s 10.244.0.0/16 {dst} -m comment --comment "overlaynet: containers to the outside" -j MASQUERADE'
FROM_CONTAINERS = '-s {src} -m comment --comment "overlaynet: from containers" -j ACCEPT'
HOOK = '-m comment --comment "overlaynet: let container traffic through" -j {target}'

KERNEL = (
    Case("route", "removed", f"ip route del {ROUTE_2}"),
    Case("route", "altered", f"ip route replace {ROUTE_2} via 10.244.3.0 dev flannel.1 onlink proto 111"),
    Case("route", "taken", f"ip route replace blackhole {ROUTE_2}"),
    Case("route", "added", "ip route add 10.244.9.0/24 dev flannel.1 proto 111"),
    Case("neighbour", "removed", "ip neigh del 10.244.2.0 dev flannel.1"),
    Case(
        "neighbour",
        "altered",
        f"ip neigh replace 10.244.2.0 lladdr {NOBODY} dev flannel.1 nud permanent",
    ),
    Case("neighbour", "weakened", f"ip neigh replace 10.244.2.0 lladdr {MAC_2} dev flannel.1 nud stale"),
    Case("neighbour", "added", f"ip neigh add 10.244.9.0 lladdr {NOBODY} dev flannel.1 nud permanent"),
    Case("fdb", "removed", f"bridge fdb del {MAC_2} dev flannel.1 dst 192.168.50.2"),
    Case("fdb", "altered", f"bridge fdb replace {MAC_2} dev flannel.1 dst 192.168.50.9"),
    Case("fdb", "added", f"bridge fdb add {NOBODY} dev flannel.1 dst 192.168.50.9"),
    Case("pin", "removed", "bridge fdb del 0a:58:0a:f4:01:02 dev {port} master static"),
    Case("port", "removed", "ip link set {port} nomaster"),
    Case("port", "altered", "bridge link set dev {port} hairpin off"),
    Case("port", "down", "ip link set {port} down"),
    Case("vxlan-device", "removed", "ip link del flannel.1"),
    Case("vxlan-device", "altered", "ip link set flannel.1 mtu 1300"),
    Case("vxlan-device", "down", "ip link set flannel.1 down"),
    Case("vxlan-device", "other-mac", f"ip link set flannel.1 address {NOBODY}"),
    Case("bridge", "removed", "ip link del cni0"),
    Case("bridge", "down", "ip link set cni0 down"),
    Case("address", "removed", "ip address del 10.244.1.0/32 dev flannel.1"),
    Case("address", "altered", "ip address add 10.244.1.9/32 dev flannel.1"),
    Case("gateway", "removed", "ip address del 10.244.1.1/24 dev cni0"),
    Case("sysctl", "altered", settings=(("net/ipv4/ip_forward", "0"),)),
    Case("sysctl-of-device", "altered", settings=(("net/ipv4/conf/flannel.1/rp_filter", "1"),)),
)

RULES = (
    Case("masquerade-rule", "removed", "iptables -t nat -D OVL-POSTROUTING 3"),
    Case(
        "masquerade-rule",
        "altered",
        f"iptables -t nat -R OVL-POSTROUTING 3 {TO_OUTSIDE.format(dst='! -d 10.0.0.0/8')}",
        same_size=True,
    ),
    Case("masquerade-rule", "doubled", f"iptables -t nat -A OVL-POSTROUTING {TO_OUTSIDE.format(dst='')}"),
    Case("jump", "removed", "iptables -D FORWARD 1"),
    Case("jump", "altered", f"iptables -R FORWARD 1 {HOOK.format(target='ACCEPT')}", same_size=True),
    Case("jump", "doubled", f"iptables -A FORWARD {HOOK.format(target='OVL-FORWARD')}"),
    Case("chain", "emptied", "iptables -F OVL-FORWARD"),
    Case("chain", "removed", commit="*filter\n-D INPUT 1\n-F OVL-INPUT\n-X OVL-INPUT\nCOMMIT\n"),
    Case(
        "rule-under-its-comment",
        "altered",
        f"iptables -R OVL-FORWARD 4 {FROM_CONTAINERS.format(src='10.244.7.0/24')}",
        same_size=True,
    ),
)
