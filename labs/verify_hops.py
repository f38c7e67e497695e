"""Hop by hop: who lowers the TTL, and to whose Ethernet address does each hop send?

    sudo .venv/bin/python labs/verify_hops.py [-l LAB]

A container pings one on another host. Each host routes twice: from the bridge into the tunnel, and out of the
tunnel onto the bridge; each time the TTL falls by one and the frame gets new Ethernet addresses.
"""

from overlaynet.proof import Network, icmp, ok, prove


def claim(net: Network) -> None:
    """The TTL falls at each of two routers and nowhere else, and every frame is sent to the next one's MAC."""
    one, other = net.pair()
    here, there = net.host_of(one), net.host_of(other)
    into, out_of = net.tunnel(here), net.tunnel(there)
    way = [f"{one}:eth0", f"{here}:cni0", into, net.underlay(here), out_of, f"{there}:cni0", f"{other}:eth0"]
    with net.capture(way) as packets:
        net.send(one, other)

    hops = packets.path(way, icmp("echo-request", src=one, dst=other))
    for hop in hops:
        ok(f"{hop.point!s:<18} TTL {hop.innermost.ttl}  {hop.innermost.src_mac} > {hop.innermost.dst_mac}")

    first, second = (f"{here}:cni0", into), (out_of, f"{there}:cni0")
    ttls = hops.changes("ttl")
    hops.require("the TTL falls by one at each router", [c.where for c in ttls] == [first, second])
    hops.require("by one each", all(c.before - c.after == 1 for c in ttls))
    ok(f"it falls by one between {' and '.join(first)}, and between {' and '.join(second)}")

    macs = {point: hops.at(point).innermost.dst_mac for point in way}
    hops.require("the container sends to its bridge", macs[f"{one}:eth0"] == net.mac(f"{here}:cni0"))
    hops.require("the tunnel's entry sends to its exit", macs[into] == net.mac(out_of))
    hops.require("the bridge sends to the container", macs[f"{there}:cni0"] == net.mac(f"{other}:eth0"))
    ok("it is sent to the bridge's MAC, then to that of the tunnel's other end, then to the container's")


if __name__ == "__main__":
    prove(claim)
