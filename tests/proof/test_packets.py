"""Searching and asserting in what was captured; what a refuted claim shows, and when silence proves nothing."""

from __future__ import annotations

import pytest
from helpers import frames
from helpers.captures import (
    NODE_1,
    NODE_2,
    SCENE,
    VIP,
    WEB_1,
    WEB_3,
    call_to_a_service,
    captured,
    ping,
    ping_on_its_way,
    seen,
)

from overlaynet.errors import UsageError
from overlaynet.proof.packets import Packets
from overlaynet.proof.predicates import arp, icmp, tcp, udp, vxlan
from overlaynet.proof.way import Inconclusive, Refuted
from overlaynet.trace.model import Sent

pytestmark = pytest.mark.unit

ROAD = ["web-1:eth0", "node-1:cni0", "node-1:flannel.1", "node-1:eth0", "node-2:flannel.1", "web-3:eth0"]


# --- looking --------------------------------------------------------------------------------------


def test_points_are_chosen_by_name_or_pattern() -> None:
    packets = ping_on_its_way()
    assert packets.points == ROAD
    assert [str(p.point) for p in packets.at("node-1:*")] == ROAD[1:4]
    assert packets.at("web-1:eth0", "node-2:*").points == ["web-1:eth0", "node-2:flannel.1"]


def test_point_where_nobody_listened_is_an_error() -> None:
    with pytest.raises(UsageError, match="nobody listened at node-2:eth0") as caught:
        ping_on_its_way().at("node-2:eth0")
    assert caught.value.evidence == "listened at " + ", ".join(ROAD)


def test_directions_and_predicates_narrow() -> None:
    packets = ping_on_its_way()
    assert [str(p.point) for p in packets.incoming] == ["node-1:cni0", "node-2:flannel.1", "web-3:eth0"]
    assert len(packets.outgoing.where(vxlan())) == 1
    assert len(packets.where("icmp and not tunnelled")) == 5
    assert len(packets[1:3]) == 2
    assert packets[1:3].points == ROAD


def test_packets_of_what_was_sent_are_told_from_what_others_send() -> None:
    cookie, other = b"\x01\x02\x03\x04\x05\x06\x07\x08", b"another"
    ours = frames.echo(WEB_1, WEB_3, 7, cookie * 4)
    packets = captured(
        seen("web-1:eth0", ours, 0),
        seen("web-1:eth0", frames.echo(WEB_1, WEB_3, 7, other * 4), 10),
        seen("web-1:eth0", frames.syn(WEB_1, 40_000, VIP, 80), 20),
        seen("node-1:eth0", frames.vxlan(NODE_1, NODE_2, ours), 30),
        seen("web-1:eth0", frames.error("10.244.1.1", WEB_1, ours, 3, 4, mtu=1450), 40),
    )
    sent = packets.of(Sent(1, cookie.hex(), 7, None))
    assert [packet.t_ns for packet in sent] == [0, 30_000, 40_000]
    assert sent.points == packets.points


def test_packets_of_a_connection_are_told_by_its_port_on_both_sides_of_nat() -> None:
    ours, other = frames.syn_ack(WEB_3, 8080, WEB_1, 40_000), frames.syn(WEB_1, 40_001, VIP, 80)
    packets = captured(*call_to_a_service(), seen("web-3:eth0", ours, 60), seen("web-1:eth0", other, 70))
    assert list(packets.of(Sent(1, "a1" * 8, 40_000, None))) == list(packets[:-1])
    assert list(packets.of(Sent(1, "b2" * 8, 40_001, None))) == [packets[-1]]


def test_mistake_in_a_filter_is_an_error_even_where_nothing_was_captured() -> None:
    with pytest.raises(UsageError, match="the filter is wrong at character 1"):
        captured(points="web-1:eth0").never("icpm")


def test_nothing_is_there_while_the_capture_runs() -> None:
    packets = Packets(None)
    with pytest.raises(UsageError, match="the capture still runs"):
        packets.where(icmp())
    assert repr(packets).startswith("<still capturing")


def test_witnesses_and_drops_are_told() -> None:
    packets = captured(points="web-1:eth0", dropped=3)
    assert packets.drops == 3
    assert not packets.witness("web-1:eth0")
    assert captured(points="web-1:eth0").witness("web-1:eth0")
    assert packets.tap("web-1:eth0").dropped == 3


# --- asserting ------------------------------------------------------------------------------------


def test_expected_packets_are_answered() -> None:
    found = ping_on_its_way().at("node-1:eth0").expect(vxlan(1, src=NODE_1), count=1)
    assert found[0].inner is not None


def test_expected_packet_that_is_not_there_shows_the_nearest_with_reasons() -> None:
    with pytest.raises(Refuted) as caught:
        ping_on_its_way().at("web-1:eth0", "node-1:eth0").expect(vxlan(7, dst="node-1"))
    assert str(caught.value) == (
        "no packet is vxlan 7 to node-1 at web-1:eth0, node-1:eth0\n"
        "  > "
        "  0.000000  web-1:eth0           out  10.244.1.2 > 10.244.2.2 icmp echo request 7/1 ttl 64  74 B\n"
        "      ^ it is not in a tunnel\n"
        "    "
        "  0.000030  node-1:eth0          out  192.168.50.11 > 192.168.50.12 vxlan 1"
        " [10.244.1.2 > 10.244.2.2 icmp echo request 7/1 ttl 63]  124 B"
    )


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        (lambda p: p.expect(icmp(), count=2), "6 packets are icmp at"),
        (lambda p: p.never(udp(8472)), "1 packet is udp port 8472 at"),
        (lambda p: p.only(icmp(ttl=64)), "4 packets are not icmp with TTL 64 at"),
        (lambda p: p.at("web-1:eth0").only(udp()), "1 packet is not udp at web-1:eth0: it is icmp, not udp"),
        (lambda p: p.where(arp()).only(arp()), "no packet at all at"),
    ],
)
def test_refuted_claim_shows_the_packets(claim, told: str) -> None:
    with pytest.raises(Refuted) as caught:
        claim(ping_on_its_way())
    assert str(caught.value).startswith(told)


def test_offending_packet_is_marked_among_its_neighbours() -> None:
    many = [seen("node-1:eth0", ping(ip_id=n), n) for n in range(40)]
    many[20] = seen("node-1:eth0", frames.arp(WEB_1, WEB_3), 20, kind=0x0806)
    with pytest.raises(Refuted) as caught:
        captured(*many).never(arp())
    lines = str(caught.value).splitlines()
    assert lines[1] == "    (16 packets before)"
    assert lines[-1] == "    (12 packets after)"
    assert [n for n, text in enumerate(lines) if text.startswith("  > ")] == [6]
    assert "arp" in lines[6]


NOT_WITNESSES = {
    "dropped": ({"dropped": 2}, "the kernel dropped 2 frames at node-1:eth0"),
    "error": ({"error": "network is down"}, "node-1:eth0 could not be listened at: network is down"),
    "open": ({"closed": False}, "it is not known whether listening at node-1:eth0 began in time"),
    "untold": ({"dropped": None}, "it is not known whether listening at node-1:eth0 began in time"),
}


@pytest.mark.parametrize(("tap", "why"), NOT_WITNESSES.values(), ids=NOT_WITNESSES)
def test_silence_without_a_witness_is_inconclusive(tap: dict, why: str) -> None:
    there = [seen("node-1:eth0", ping())]
    for claim in (
        lambda p: p.never(arp()),
        lambda p: p.only(icmp()),
        lambda p: p.expect(tcp()),
        lambda p: p.expect(icmp(), count=1),
        lambda p: p.expect(icmp(), count=2),
    ):
        with pytest.raises(Inconclusive, match=why):
            claim(captured(*there, **tap))
    captured(*there, **tap).expect(icmp())
    with pytest.raises(Refuted):
        captured(*there, **tap).never(icmp())


def test_silence_with_a_witness_is_proof() -> None:
    ping_on_its_way().never(arp())
    captured(points="node-1:eth0").never("net 10.244.0.0/16")


# --- one packet's way -----------------------------------------------------------------------------


def test_path_answers_one_sighting_a_point() -> None:
    way = ping_on_its_way().path(ROAD, icmp("echo-request"))
    assert way.points == ROAD
    assert way.values("ttl") == [64, 64, 63, 63, 63, 62]


def test_packet_is_followed_through_nat() -> None:
    packets = call_to_a_service()
    way = packets.follow(tcp(flags="S", dst=VIP))
    assert way.points == ["web-1:eth0", "node-1:cni0", "web-3:eth0"]
    way.turns("dst", VIP, "web-3", between=("web-1:eth0", "node-1:cni0"))
    way.turns("dst_port", 80, 8080, between=("web-1:eth0", "node-1:cni0"))
    way.keeps("src")


def test_another_packet_of_the_same_flow_is_not_followed() -> None:
    packets = captured(seen("web-1:eth0", ping(), 0), seen("node-1:cni0", ping(ip_id=8), 10))
    assert packets.follow(icmp()).points == ["web-1:eth0"]


def test_path_that_ends_early_shows_where_it_went() -> None:
    packets = captured(seen("web-1:eth0", ping(), 0), seen("node-1:cni0", ping(), 10), points="node-1:eth0")
    with pytest.raises(Refuted, match="is not seen at node-1:eth0, but at web-1:eth0 node-1:cni0"):
        packets.path(["web-1:eth0", "node-1:eth0"], icmp())


def test_path_in_another_order_is_refuted() -> None:
    with pytest.raises(Refuted, match=r"comes by node-1:cni0 before it comes by node-1:flannel\.1"):
        ping_on_its_way().path(["web-1:eth0", "node-1:flannel.1", "node-1:cni0"], icmp())


def test_order_between_machines_is_not_judged_by_their_clocks() -> None:
    late = ping_on_its_way()
    scene = type(SCENE)(SCENE.names, one_clock=False)
    taps = [late.tap(name) for name in late.points]
    way = Packets(late[:], taps, scene).path(["web-1:eth0", "node-1:flannel.1", "node-1:cni0"], icmp())
    assert way.points == ["web-1:eth0", "node-1:flannel.1", "node-1:cni0"]


def test_path_without_a_witness_is_inconclusive() -> None:
    packets = captured(seen("web-1:eth0", ping()), points="node-1:eth0", dropped=1)
    with pytest.raises(Inconclusive, match="the kernel dropped 1 frames at node-1:eth0"):
        packets.path(["web-1:eth0", "node-1:eth0"], icmp())


def test_loop_is_seen_twice_at_one_point() -> None:
    packets = captured(seen("node-1:cni0", ping(64), 0), seen("node-1:cni0", ping(63), 10))
    assert packets.path(["node-1:cni0", "node-1:cni0"], icmp()).values("ttl") == [64, 63]


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        (lambda w: w.keeps("ttl"), "not so: ttl stays the same"),
        (
            lambda w: w.falls("ttl", 1, ("node-1:cni0", "node-1:flannel.1")),
            "not so: ttl falls by 1 between node-1:cni0 and node-1:flannel.1 alone",
        ),
        (
            lambda w: w.turns("dst", VIP, "web-3", ("node-1:cni0", "node-1:flannel.1")),
            f"not so: dst turns from {VIP} to web-3 between node-1:cni0 and node-1:flannel.1 alone",
        ),
    ],
)
def test_claim_about_a_way_shows_the_values(claim, told: str) -> None:
    with pytest.raises(Refuted) as caught:
        claim(ping_on_its_way().path(ROAD, icmp()))
    lines = str(caught.value).splitlines()
    assert lines[0] == told
    assert len(lines) == 7
    assert lines[-1].split()[0] == "web-3:eth0"


def test_ttl_that_falls_once_is_proved() -> None:
    way = ping_on_its_way().path(ROAD[:5], icmp())
    way.falls("ttl", by=1, between=("node-1:cni0", "node-1:flannel.1"))
    assert way.changes("ttl")[0].where == ("node-1:cni0", "node-1:flannel.1")
    assert way.at("node-1:eth0").outer.protocol == "udp"
    with pytest.raises(Refuted, match="is not seen at node-9:eth0"):
        way.at("node-9:eth0")


@pytest.mark.parametrize(
    ("before", "after"),
    [(VIP, "web-1"), (WEB_3, "web-3"), (VIP, WEB_1)],
)
def test_translation_to_another_address_is_refuted(before: str, after: str) -> None:
    way = call_to_a_service().follow(tcp())
    with pytest.raises(Refuted):
        way.turns("dst", before, after, between=("web-1:eth0", "node-1:cni0"))


def test_fragment_and_whole_packet_are_not_one() -> None:
    whole = frames.udp(WEB_1, 5000, WEB_3, 53, b"x" * 2000, df=False)
    first, second = frames.pieces(whole)
    packets = captured(*(seen("web-1:eth0", one, n) for n, one in enumerate((whole, first, second))))
    assert len({packet.identity for packet in packets}) == 3


def test_error_is_followed_though_its_quote_is_translated() -> None:
    about = frames.syn(WEB_1, 40_000, WEB_3, 8080)
    translated = frames.syn(WEB_1, 40_000, VIP, 80)
    packets = captured(
        seen("node-1:cni0", frames.error("10.244.1.1", WEB_1, about, 3, 3), 0),
        seen("web-1:eth0", frames.error("10.244.1.1", WEB_1, translated, 3, 3), 10, "in"),
    )
    assert packets.follow(icmp("port-unreachable")).points == ["node-1:cni0", "web-1:eth0"]


def test_capture_prints_itself() -> None:
    text = str(ping_on_its_way())
    assert text.count("\n") == 5
    assert "web-3:eth0" in text
    assert repr(ping_on_its_way()) == f"<6 packets at {', '.join(ROAD)}>"


def test_frame_that_is_none_is_told_as_that() -> None:
    broken = type(seen("a:b", ping()))(seen("a:b", ping()).captured._replace(data=b"short", length=5), SCENE)
    assert "5 bytes are no Ethernet frame" in str(captured(broken))
