"""Does a packet between two hosts travel inside VXLAN, and come out as it went in?

    sudo .venv/bin/python labs/verify_vxlan.py [-l LAB]

A container pings one on another host. Looked at: the sender's own interface, the underlay at both hosts, and
the receiver's. What is asked of the packets is below, line by line; change a line and see it refuted.
"""

from overlaynet.proof import Network, icmp, ok, prove, vxlan

OVERHEAD = 14 + 20 + 8 + 8  # Ethernet, IP, UDP and VXLAN headers (RFC 7348, section 5)


def claim(net: Network) -> None:
    """Between hosts a packet is inside VXLAN, and unchanged there but for TTL and Ethernet addresses."""
    one, other = net.pair()
    here, there = net.host_of(one), net.host_of(other)
    leaves, comes = net.underlay(here), net.underlay(there)
    with net.capture([one, leaves, comes, other]) as packets:
        net.send(one, other)

    sent = packets.at(f"{one}:eth0").expect(icmp("echo-request", src=one, dst=other))[0]
    ok(f"{one} on {here} sends {sent.length} bytes to {other} on {there}, TTL {sent.innermost.ttl}")

    tunnel = packets.at(leaves).expect(vxlan(src=here, dst=there, carrying=sent))[0]
    assert tunnel.length == sent.length + OVERHEAD, f"it is {tunnel.length - sent.length} bytes longer"
    ok(f"{leaves} carries it in VXLAN {tunnel.frame.vni} from {here} to {there}, {OVERHEAD} bytes longer")

    packets.at(comes).expect(vxlan(tunnel.frame.vni, carrying=sent))
    ok(f"{comes} receives it with the same inside")

    packets.at(leaves, comes).never(f"host {one} and host {other} and not tunnelled")
    ok("outside of the tunnel it is nowhere on the underlay")

    packets.at(f"{other}:eth0").expect(icmp("echo-request", src=one, ttl=sent.innermost.ttl - 2))
    ok(f"{other} receives it, two routers later by its TTL")


if __name__ == "__main__":
    prove(claim)
