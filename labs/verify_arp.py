"""Does anybody have to ask on the underlay who has a container's address?

    sudo .venv/bin/python labs/verify_arp.py [-l LAB]

Elsewhere ARP asks everybody by broadcast. Here the agent has written down beforehand which Ethernet address the
tunnel's other end has, and on which host that is; so no question may ever enter the tunnel. Every container
pings one on each other host meanwhile.
"""

from overlaynet.proof import Network, arp, icmp, ok, prove


def claim(net: Network) -> None:
    """No ARP enters a tunnel or asks the underlay for an address of the overlay, while everybody talks."""
    tunnels = [net.tunnel(host) for host in net.hosts]
    underlays = [net.underlay(host) for host in net.hosts]
    on_each = {net.host_of(name): name for name in net.containers}
    pairs = [(one, on_each[host]) for one in net.containers for host in on_each if host != net.host_of(one)]
    with net.capture([*tunnels, *underlays]) as packets:
        for one, other in pairs:
            net.send(one, other, wait_s=0.5)

    pings = packets.at(*tunnels).outgoing.where(icmp("echo-request"))
    ok(f"{len(pairs)} pings between hosts, {len(pings)} requests enter a tunnel")

    packets.at(*tunnels).never(arp())
    ok("no ARP enters a tunnel or leaves one")

    for one in net.containers:
        packets.at(*underlays).never(f"arp and host {one}")
    packets.at(*underlays).never("arp and tunnelled")
    ok("nobody asks the underlay for a container")

    for ping in pings:
        way = packets.follow(ping)
        way.require("it comes out of another tunnel", way[-1].point != ping.point)
    ok("and every request came out at the other end")


if __name__ == "__main__":
    prove(claim)
