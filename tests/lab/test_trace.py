"""Traces in a whole lab: every kind of path is proved, by packets that were really sent and captured."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers.lab import lab_name, requires_lab
from helpers.served_lab import NODE_PORT, PORT, VIP, ServedLab, served_lab

from overlaynet.cluster.contexts import LabCluster
from overlaynet.proof.question import Asked
from overlaynet.proof.tracing import Proof, trace
from overlaynet.trace.model import PROVED

pytestmark = [pytest.mark.lab, requires_lab, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def vxlan() -> Iterator[ServedLab]:
    with served_lab(lab_name("trace"), containers=2) as made:
        yield made


@pytest.fixture(scope="module")
def host_gw() -> Iterator[ServedLab]:
    with served_lab(lab_name("trace-gw"), backend="host-gw") as made:
        yield made


def proved(lab: ServedLab, source: str, target: str, **words: object) -> Proof:
    """A trace that has to be proved, whole: every hop of both directions seen, and none beside."""
    proof = trace(LabCluster(lab.lab), Asked(source, target, **words))  # type: ignore[arg-type]
    found = proof.trace
    assert found.verdict == PROVED, (found.cause, found.inconclusive_because, found.notes)
    for hop in (*found.forward, *found.reply):
        assert hop.predicted, hop
        assert hop.seen or hop.optional, hop
    assert not any(hop.seen for hop in found.guards)
    return proof


def points(proof: Proof) -> list[str]:
    return [str(hop.point) for hop in proof.trace.forward]


def changed(proof: Proof, field: str) -> list[tuple[str, str | None, str | None]]:
    """Where a field changed on the way there, and from what to what."""
    return [
        (str(hop.point), change.before, change.after)
        for hop in proof.trace.forward
        for change in hop.changes
        if change.field == field
    ]


def test_same_host(vxlan: ServedLab) -> None:
    proof = proved(vxlan, "web-1", "web-2", protocol="tcp", dst_port=PORT)
    assert points(proof)[0] == "web-1:eth0"
    assert points(proof)[-1] == "web-2:eth0"
    assert not any("flannel" in point for point in points(proof))
    assert not changed(proof, "ttl")
    assert proof.trace.answer == "syn-ack"


def test_two_hosts_by_vxlan(vxlan: ServedLab) -> None:
    proof = proved(vxlan, "web-1", "web-3", protocol="tcp", dst_port=PORT)
    at = {str(hop.point): hop for hop in proof.trace.forward}
    outer = at["node-1:eth0"].outer
    assert outer is not None
    assert (str(outer.src), str(outer.dst), outer.dst_port) == ("192.168.50.11", "192.168.50.12", 8472)
    assert at["node-1:eth0"].vni == 1
    assert at["node-1:flannel.1"].outer is None
    assert [where for where, _, _ in changed(proof, "ttl")] == ["node-1:flannel.1", "node-2:cni0"]
    assert at["web-3:eth0"].inner.ttl == 62
    why = {why.object: why for why in at["node-1:eth0"].why}
    assert why["fdb"].source is not None
    assert why["fdb"].source.name == "10.244.2.0-24"


def test_two_hosts_by_host_gw(host_gw: ServedLab) -> None:
    proof = proved(host_gw, "web-1", "web-2", protocol="tcp", dst_port=PORT)
    assert not any("flannel" in point for point in points(proof))
    assert all(hop.outer is None for hop in proof.trace.forward)


def test_through_a_virtual_ip(vxlan: ServedLab) -> None:
    proof = proved(vxlan, "web-5", "svc/web")
    (dnat,) = [change for change in changed(proof, "dst") if change[1] == VIP]
    assert dnat[2] in {f"10.244.{n}.{k}" for n in (1, 2, 3) for k in (2, 3)}
    assert str(proof.trace.reply[-1].inner.src) == VIP
    assert proof.trace.connections
    assert any(count.table == "nat" for count in proof.trace.counts)


def test_hairpin(vxlan: ServedLab) -> None:
    """A container that is led back to itself by its own service; chance decides, so it is asked until it is."""
    for _ in range(60):
        proof = proved(vxlan, "web-1", "svc/web")
        if points(proof)[-1] == "web-1:eth0":
            break
    assert points(proof)[-1] == "web-1:eth0"
    assert changed(proof, "src")


def test_node_port_from_outside(vxlan: ServedLab) -> None:
    proof = proved(vxlan, "outside", "node-1", protocol="tcp", dst_port=NODE_PORT)
    assert changed(proof, "dst")
    assert points(proof)[0] == "outside:eth0"


def test_container_to_outside_is_masqueraded(vxlan: ServedLab) -> None:
    proof = proved(vxlan, "web-1", "outside", protocol="icmp")
    assert ("node-1:eth0", "10.244.1.2", "192.168.50.11") in changed(proof, "src")
    assert points(proof)[-1] == "outside:eth0"


def test_udp(vxlan: ServedLab) -> None:
    proof = proved(vxlan, "web-1", "web-3", protocol="udp", dst_port=PORT)
    assert proof.trace.answer == "udp"


def test_icmp(vxlan: ServedLab) -> None:
    assert proved(vxlan, "web-1", "web-3").trace.answer == "echo-reply"


def test_a_datagram_of_4000_bytes(vxlan: ServedLab) -> None:
    proof = proved(vxlan, "web-1", "web-3", protocol="udp", dst_port=PORT, size=4000)
    assert changed(proof, "fragments") or any("fragment" in hop.note for hop in proof.trace.forward)


def test_host_to_container_and_back(vxlan: ServedLab) -> None:
    proved(vxlan, "node-1", "web-3")
    proved(vxlan, "web-3", "node-1")


def test_a_port_where_nothing_listens(vxlan: ServedLab) -> None:
    assert proved(vxlan, "web-1", "web-3", protocol="tcp", dst_port=81).trace.answer == "rst"
    assert proved(vxlan, "web-1", "web-3", protocol="udp", dst_port=81).trace.answer == "icmp port-unreachable"
