"""Under which address does a container speak to the world outside, and how does the answer find back?

    sudo .venv/bin/python labs/verify_masquerade.py [-l LAB]

Nobody outside knows a way to a container's address. So the container's host puts its own in its place, and
undoes that in the answer. Within the overlay nothing of that may happen. A container pings `outside`, a client
that is no host, and then a container on another host.
"""

from overlaynet.proof import Network, icmp, ok, prove


def claim(net: Network) -> None:
    """Outside a container is seen under its host's address, within the overlay under its own."""
    one, other = net.pair()
    here = net.host_of(one)
    leaves = net.underlay(here)
    with net.capture([one, f"{here}:cni0", leaves, "outside:eth0", other]) as packets:
        net.send(one, "outside")
        net.send(one, other)

    request = packets.path([f"{one}:eth0", f"{here}:cni0", leaves, "outside:eth0"], icmp(dst="outside"))
    request.turns("src", one, net.address_of(here), between=(f"{here}:cni0", leaves))
    ok(f"{one}'s packet to outside gets {here}'s address at {leaves}")

    answer = packets.path([leaves, f"{here}:cni0", f"{one}:eth0"], icmp("echo-reply", src="outside"))
    answer.turns("dst", net.address_of(here), one, between=(leaves, f"{here}:cni0"))
    ok("the answer comes to the host, which gives it back to the container")

    packets.at(leaves, "outside:eth0").never(f"host {one} and not tunnelled")
    ok(f"neither the underlay nor outside sees {one}'s address")

    packets.at(f"{other}:eth0").expect(icmp("echo-request", src=one))
    packets.at(f"{other}:eth0").never(icmp("echo-request", src=here))
    ok(f"{other}, in the overlay, sees {one} itself")


if __name__ == "__main__":
    prove(claim)
