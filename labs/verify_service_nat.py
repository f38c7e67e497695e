"""Where does a service's virtual address turn into an endpoint's, and does the caller ever notice?

    sudo .venv/bin/python labs/verify_service_nat.py [-l LAB]

A container that is no endpoint itself calls the first service of the lab that has one elsewhere. Looked at: the
caller, every interface of its host, and all endpoints.
"""

from overlaynet.proof import Network, ok, prove, tcp


def claim(net: Network) -> None:
    """A call to a service is translated to one endpoint on the caller's host, and its answer back again."""
    service = net.services()[0]
    vip, port, endpoints = net.service(service)
    caller = next(name for name in reversed(net.containers) if name not in endpoints)
    here = net.host_of(caller)
    with net.capture([caller, here, *endpoints]) as packets:
        net.send(caller, service)

    call = packets.follow(tcp(dport=port, src=caller, dst=vip, flags="S"))
    endpoint = call[-1].point.place
    call.require("it comes to an endpoint", endpoint in endpoints)
    ok(f"{caller} calls {vip}:{port}, and of {len(endpoints)} endpoints {endpoint} gets it")

    turn = call.turns("dst", vip, endpoint)
    call.require(f"it is translated on {here}", {p.partition(":")[0] for p in turn.where} == {here})
    call.keeps("src")
    ok(f"between {' and '.join(turn.where)} the destination becomes {endpoint}; the source stays {caller}")

    answer = packets.follow(tcp(sport=call[-1].innermost.dst_port, src=endpoint, dst=caller))
    turn = answer.turns("src", endpoint, vip)
    answer.require(f"it is translated back on {here}", {p.partition(":")[0] for p in turn.where} == {here})
    ok(f"between {' and '.join(turn.where)} the answer ({answer[0].innermost.tcp.flags}) gets the source {vip}")

    packets.at(f"{caller}:eth0").never(f"host {endpoint}")
    ok(f"{caller} never sees {endpoint}'s address")


if __name__ == "__main__":
    prove(claim)
