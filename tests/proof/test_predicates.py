"""Predicates on packets, and what they say of packets that they do not match."""

from __future__ import annotations

import pytest
from helpers import frames
from helpers.captures import NODE_1, NODE_2, SCENE, VIP, WEB_1, WEB_3, captured, ping, ping_on_its_way, seen

from overlaynet.errors import UsageError
from overlaynet.proof.predicates import Match, arp, icmp, tcp, udp, vxlan

pytestmark = pytest.mark.unit

PING = seen("web-1:eth0", ping())
TUNNELLED = seen("node-1:eth0", frames.vxlan(NODE_1, NODE_2, ping(63)))
SYN = seen("web-1:eth0", frames.syn(WEB_1, 40_000, VIP, 80))
TUNNELLED_SYN = seen("node-1:eth0", frames.vxlan(NODE_1, NODE_2, frames.syn(WEB_1, 40_000, WEB_3, 80, ttl=63)))
ARP = seen("node-1:cni0", frames.arp(WEB_1, "10.244.1.1"), kind=0x0806)
TOO_BIG = seen("web-1:eth0", frames.error("10.244.1.1", WEB_1, ping(), 3, 4, mtu=1450))


@pytest.mark.parametrize(
    ("match", "one"),
    [
        (icmp(), PING),
        (icmp(), TUNNELLED),
        (icmp("echo-request", src="web-1", dst=WEB_3, seq=1, ttl=64), PING),
        (icmp("fragmentation-needed"), TOO_BIG),
        (icmp("unreachable"), TOO_BIG),
        (tcp(), SYN),
        (tcp(80), SYN),
        (tcp(40_000, flags="S", dst=VIP), SYN),
        (tcp(sport=40_000, dport=80), TUNNELLED_SYN),
        (udp(8472), TUNNELLED),
        (udp(8472, src="node-1", dst="node-2"), TUNNELLED_SYN),
        (arp(src="web-1", dst="10.244.1.1"), ARP),
        (vxlan(), TUNNELLED),
        (vxlan(1, src="node-1", dst="node-2"), TUNNELLED),
        (vxlan(carrying=icmp(ttl=63)), TUNNELLED),
        (vxlan(carrying="tcp port 80"), TUNNELLED_SYN),
        (vxlan(1, carrying=PING), TUNNELLED),
        (udp(8472) & tcp(80), TUNNELLED_SYN),
        (icmp() & "src web-1", PING),
        (arp() | icmp(), PING),
        (~arp(), PING),
        (~icmp() | icmp(ttl=64), PING),
    ],
    ids=lambda value: str(value) if isinstance(value, Match) else "",
)
def test_packet_matches(match: Match, one) -> None:
    assert match.known(SCENE.names)(one)
    assert match.misses(one) == () or match.misses(one) == []


@pytest.mark.parametrize(
    ("match", "one", "misses"),
    [
        (icmp(), SYN, ["it is tcp, not icmp"]),
        (tcp(81), SYN, ["its ports are 40000 and 80, not 81"]),
        (tcp(flags="SA", ttl=60), SYN, ["its flags are S, not SA", "its TTL is 64, not 60"]),
        (udp(80), TUNNELLED_SYN, ["its ports are 40001 and 8472, not 80"]),
        (icmp("echo-reply"), PING, ["it is ICMP (8, 0), not echo-reply"]),
        (icmp(ttl=62), TUNNELLED, ["its TTL is 63, not 62"]),
        (vxlan(), PING, ["it is not in a tunnel"]),
        (vxlan(2), TUNNELLED, ["its VNI is 1, not 2"]),
        (vxlan(dst="node-1"), TUNNELLED, ["its destination is 192.168.50.12, not 192.168.50.11"]),
        (vxlan(carrying=tcp()), TUNNELLED, ["inside, it is icmp, not tcp"]),
        (vxlan(carrying=icmp(ttl=62)), TUNNELLED, ["inside, its TTL is 63, not 62"]),
        (~icmp(), PING, ["it is icmp"]),
        (~(icmp() & "src web-1"), PING, ["it is icmp and 'src web-1'"]),
        (icmp() & "src web-3", PING, ["it does not satisfy 'src web-3'"]),
        (tcp() | udp(53), PING, ["it is icmp, not tcp"]),
    ],
    ids=lambda value: str(value) if isinstance(value, Match) else "",
)  # fmt: skip
def test_packet_that_does_not_match_is_told_why(match: Match, one, misses: list[str]) -> None:
    assert not match.known(SCENE.names)(one)
    assert list(match.misses(one)) == misses


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (seen("web-1:eth0", ping(ip_id=8)), "ip_id was 8 and is 7"),
        (
            seen("web-1:eth0", frames.echo(WEB_1, WEB_3, 7, b"other octets...." * 2)),
            "its content is not what was sent",
        ),
        (
            seen("web-1:eth0", frames.echo(WEB_1, VIP, 7, b"sixteen octets.." * 2)),
            f"dst was {VIP} and is {WEB_3}",
        ),
        (seen("web-1:eth0", ping() / b"!"), "length was 61 and is 60"),
    ],
    ids=["ip-id", "payload", "translated", "longer"],
)
def test_tunnel_that_carries_another_packet_is_told(sent, why: str) -> None:
    match = vxlan(carrying=sent)
    assert not match(TUNNELLED)
    assert why in match.misses(TUNNELLED)


def test_checksum_that_a_card_fills_in_later_is_no_difference() -> None:
    unfinished = frames.syn(WEB_1, 40_000, WEB_3, 80)
    unfinished["TCP"].chksum = 0x1234
    assert vxlan(carrying=seen("web-1:eth0", unfinished))(TUNNELLED_SYN)


def test_stump_of_a_tunnel_carries_nothing() -> None:
    cut = seen("node-1:eth0", frames.vxlan(NODE_1, NODE_2, ping(63)))
    cut = type(cut)(cut.captured._replace(data=cut.data[:60]), SCENE)
    assert list(vxlan(carrying=icmp()).misses(cut)) == ["nothing whole is in the tunnel"]


def test_predicate_says_what_it_is() -> None:
    assert str(tcp(80, src="web-1", flags="S") & ~arp()) == "tcp port 80 from web-1 flags S and not arp"
    assert str(vxlan(1, src="node-1", carrying="icmp")) == "vxlan 1 from node-1 carrying 'icmp'"
    assert str(icmp("echo-request", ttl=64) | "arp") == "(icmp echo-request with TTL 64 or 'arp')"


@pytest.mark.parametrize(
    "match",
    [
        tcp(src="web-9"),
        vxlan(dst="web-9"),
        vxlan(carrying=tcp(src="web-9")),
        ~arp(src="web-9"),
        tcp(dst="web-9") | icmp(),
    ],
    ids=str,
)
def test_name_that_nobody_has_is_an_error_even_of_an_empty_capture(match: Match) -> None:
    with pytest.raises(UsageError, match="'web-9' is no address, nor the name of a container or host"):
        captured(points="web-1:eth0").never(match)


def test_icmp_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(UsageError, match="there is no ICMP 'ping'"):
        icmp("ping")


def test_inner_frame_is_a_packet_of_its_own() -> None:
    inside = ping_on_its_way().at("node-1:eth0")[0].inside
    assert inside is not None
    assert (inside.length, inside.innermost.ttl, inside.inner) == (PING.length, 63, None)
