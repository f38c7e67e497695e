"""Which of many captured frames are the traced packet and its answer."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from helpers.frames import ISN, arp, echo, error, ethernet, pieces, syn, syn_ack, udp, vxlan

from overlaynet.trace.join import Followed, Joined, join
from overlaynet.trace.model import (
    Captured,
    Connection,
    Direction,
    Evidence,
    Headers,
    Hop,
    Path,
    Point,
    Prediction,
    Question,
    Sent,
)

pytestmark = pytest.mark.unit

CLIENT, VIP, WEB = "10.244.1.2", "10.112.0.10", "10.244.2.2"
HOSTS = "192.168.50.11", "192.168.50.12"
GATEWAY = "10.244.1.1"
COOKIE, OTHER = "00112233445566ff", "deadbeef01020304"
BYTES = bytes.fromhex(COOKIE)
PORT = 40_000


class Wire:
    """Frames as points see them, each a microsecond after the one before."""

    def __init__(self) -> None:
        self.frames: list[Captured] = []

    def see(
        self, point: str, direction: Direction, *packets, t_us: int | None = None, kind: int = 0x0800
    ) -> None:
        place, iface = point.split(":")
        for packet in packets:
            octets = ethernet(packet, kind)
            t_ns = 1_000 * (len(self.frames) if t_us is None else t_us)
            self.frames.append(Captured(Point(place, iface), t_ns, direction, octets[:256], len(octets)))

    def join(
        self, protocol: str, *sent: Sent, source="client-1", src=CLIENT, dst=WEB, hops=(), texts=()
    ) -> Joined:
        port = {"tcp": 80, "udp": 53}.get(protocol)
        question = Question(source, "web-1", ip_address(src), ip_address(dst), protocol, dst_port=port)
        prediction = Prediction(question, (Path("delivered", hops),))
        connections = tuple(Connection(source, text) for text in texts)
        return join(question, prediction, Evidence((), tuple(self.frames), sent, connections=connections))

    def one(self, protocol: str, sent: Sent | None = None, **more) -> Followed:
        (followed,) = self.join(protocol, sent or attempt(), **more).tries
        return followed


def attempt(
    number: int = 1, cookie: str = COOKIE, port: int | None = PORT, answer: str = "", error: str = ""
) -> Sent:
    return Sent(number, cookie, port, None, answer, error)


def places(sightings) -> list[str]:
    return [f"{s.point} {s.direction}" for s in sightings]


def hop(point: str, src: str, dst: str, src_port: int | None, dst_port: int | None, protocol="tcp") -> Hop:
    head = Headers(None, None, ip_address(src), ip_address(dst), protocol, src_port, dst_port)
    return Hop(*point.split(":"), "out", head)


@pytest.fixture
def wire() -> Wire:
    return Wire()


# --- TCP ------------------------------------------------------------------------------------------


def through_a_service(wire: Wire, isn: int = ISN, ip_id: int = 7) -> None:
    """The way of a SYN to a VIP, translated on the bridge, tunnelled, and there."""
    translated = syn(CLIENT, PORT, WEB, 8080, ttl=63, ip_id=ip_id, isn=isn)
    wire.see("client-1:eth0", "out", syn(CLIENT, PORT, VIP, 80, ip_id=ip_id, isn=isn))
    wire.see("node-1:veth1", "in", syn(CLIENT, PORT, VIP, 80, ip_id=ip_id, isn=isn))
    wire.see("node-1:cni0", "in", syn(CLIENT, PORT, WEB, 8080, ip_id=ip_id, isn=isn))
    wire.see("node-1:flannel.1", "out", translated)
    wire.see("node-1:eth0", "out", vxlan(*HOSTS, translated))
    wire.see("node-2:eth0", "in", vxlan(*HOSTS, translated))
    wire.see("node-2:flannel.1", "in", translated)
    wire.see("web-1:eth0", "in", syn(CLIENT, PORT, WEB, 8080, ttl=62, ip_id=ip_id, isn=isn))


WAY = [
    "client-1:eth0 out", "node-1:veth1 in", "node-1:cni0 in", "node-1:flannel.1 out", "node-1:eth0 out",
    "node-2:eth0 in", "node-2:flannel.1 in", "web-1:eth0 in",
]  # fmt: skip


def test_syn_is_known_under_every_address_and_in_the_tunnel(wire) -> None:
    through_a_service(wire)
    found = wire.one("tcp", dst=VIP)
    assert places(found.forward) == WAY
    assert (found.isn, found.ip_id, found.reply, found.others) == (ISN, 7, (), ())
    assert {s.frame.packet.ttl for s in found.forward} == {64, 63, 62}
    assert [s.numbers for s in found.forward] == [(n,) for n in range(8)]


@pytest.mark.parametrize("flags", ["SA", "RA"])
def test_tcp_answer_is_what_acknowledges_the_number(wire, flags) -> None:
    through_a_service(wire)
    wire.see("web-1:eth0", "out", syn_ack(WEB, 8080, CLIENT, PORT, flags=flags))
    wire.see("node-2:eth0", "out", vxlan(*HOSTS[::-1], syn_ack(WEB, 8080, CLIENT, PORT, flags=flags, ttl=63)))
    wire.see("client-1:eth0", "in", syn_ack(VIP, 80, CLIENT, PORT, flags=flags, ttl=62))
    found = wire.one("tcp", dst=VIP)
    assert places(found.forward) == WAY
    assert places(found.reply) == ["web-1:eth0 out", "node-2:eth0 out", "client-1:eth0 in"]


def test_sequence_numbers_wrap_around(wire) -> None:
    wire.see("client-1:eth0", "out", syn(CLIENT, PORT, WEB, 80, isn=2**32 - 1))
    wire.see("client-1:eth0", "in", syn_ack(WEB, 80, CLIENT, PORT, isn=2**32 - 1))
    found = wire.one("tcp")
    assert (found.isn, len(found.reply)) == (2**32 - 1, 1)


def test_syn_with_ecn_is_a_syn(wire) -> None:
    wire.see("client-1:eth0", "out", syn(CLIENT, PORT, WEB, 80, flags="SEC"))
    assert wire.one("tcp").isn == ISN


def test_rest_of_the_connection_is_not_the_packet(wire) -> None:
    through_a_service(wire)
    wire.see("client-1:eth0", "in", syn_ack(VIP, 80, CLIENT, PORT))
    for flags in ("A", "PA", "FA", "R"):
        wire.see("client-1:eth0", "out", syn(CLIENT, PORT, VIP, 80, isn=ISN + 1, flags=flags))
        wire.see("client-1:eth0", "in", syn_ack(VIP, 80, CLIENT, PORT, flags=flags))
    found = wire.one("tcp", dst=VIP)
    assert (len(found.forward), len(found.reply), found.others) == (len(WAY), 1, ())


def test_retransmission_is_kept_apart_by_its_ip_id(wire) -> None:
    wire.see("client-1:eth0", "out", syn(CLIENT, PORT, VIP, 80, ip_id=7))
    wire.see("node-1:veth1", "in", syn(CLIENT, PORT, VIP, 80, ip_id=7))
    through_a_service(wire, ip_id=8)
    found = wire.one("tcp", dst=VIP)
    assert places(found.forward) == WAY[:2]
    assert places(found.others) == WAY


def test_duplicate_is_kept_apart_and_a_loop_is_not(wire) -> None:
    wire.see("client-1:eth0", "out", syn(CLIENT, PORT, WEB, 80))
    wire.see("node-1:eth0", "in", *(syn(CLIENT, PORT, WEB, 80, ttl=ttl) for ttl in (63, 63, 61)))
    found = wire.one("tcp")
    assert [s.frame.packet.ttl for s in found.forward] == [64, 63, 61]
    assert [s.frame.packet.ttl for s in found.others] == [63]


def test_copies_flooded_to_other_tunnel_ends_are_sightings(wire) -> None:
    wire.see("client-1:eth0", "out", syn(CLIENT, PORT, WEB, 80))
    wire.see(
        "node-1:eth0",
        "out",
        *(vxlan(HOSTS[0], f"192.168.50.{n}", syn(CLIENT, PORT, WEB, 80)) for n in (12, 13)),
    )
    found = wire.one("tcp")
    assert [str(s.frame.outer.dst) for s in found.forward[1:]] == ["192.168.50.12", "192.168.50.13"]


@pytest.mark.parametrize("quote", [28, 548])
def test_icmp_error_is_an_answer_by_the_number_that_it_quotes(wire, quote) -> None:
    through_a_service(wire)
    wire.see(
        "node-2:flannel.1", "out", error("10.244.2.1", CLIENT, syn(CLIENT, PORT, WEB, 8080), 3, 13, quote=quote)
    )
    wire.see("client-1:eth0", "in", error(VIP, CLIENT, syn(CLIENT, PORT, VIP, 80), 3, 13, quote=quote))
    wire.see("client-1:eth0", "in", error(VIP, CLIENT, syn(CLIENT, PORT, VIP, 80, isn=1), 3, 13, quote=quote))
    found = wire.one("tcp", dst=VIP)
    assert places(found.reply) == ["node-2:flannel.1 out", "client-1:eth0 in"]
    assert found.others == ()


def test_error_about_the_answer_is_no_answer(wire) -> None:
    through_a_service(wire)
    wire.see("web-1:eth0", "out", syn_ack(WEB, 8080, CLIENT, PORT))
    wire.see("web-1:eth0", "in", error("10.244.2.1", WEB, syn_ack(WEB, 8080, CLIENT, PORT), 3, 1))
    found = wire.one("tcp", dst=VIP)
    assert places(found.reply) == ["web-1:eth0 out"]
    assert places(found.others) == ["web-1:eth0 in"]


def test_load_with_equal_addresses_and_ports_is_not_the_packet(wire) -> None:
    """Another client behind the same masquerade, and a connection long gone."""
    wire.see("node-2:eth0", "in", vxlan(*HOSTS, syn(CLIENT, PORT, WEB, 8080, isn=1)))
    wire.see("web-1:eth0", "in", syn(CLIENT, PORT, WEB, 8080, isn=2, ip_id=7))
    wire.see("web-1:eth0", "out", syn_ack(WEB, 8080, CLIENT, PORT, isn=2))
    through_a_service(wire)
    wire.see("node-1:eth0", "in", arp(GATEWAY, WEB), kind=0x0806)
    found = wire.one("tcp", dst=VIP)
    assert places(found.forward) == WAY
    assert (found.reply, found.others) == ((), ())


def test_packet_that_was_never_seen_has_no_sightings(wire) -> None:
    wire.see("web-1:eth0", "in", syn("10.244.3.9", PORT, WEB, 80))
    found = wire.one("tcp")
    assert found == Followed(attempt())


def test_packet_is_known_by_its_addresses_elsewhere_if_the_sender_was_deaf(wire) -> None:
    wire.see("node-1:veth1", "in", syn(CLIENT, PORT, WEB, 80))
    assert places(wire.one("tcp").forward) == ["node-1:veth1 in"]


def test_tries_have_numbers_of_their_own(wire) -> None:
    for port, isn in ((PORT, 1), (PORT + 1, 2)):
        wire.see("client-1:eth0", "out", syn(CLIENT, port, WEB, 80, isn=isn, ip_id=isn))
    wire.see("client-1:eth0", "in", syn_ack(WEB, 80, CLIENT, PORT + 1, isn=2))
    one, two = wire.join("tcp", attempt(1), attempt(2, port=PORT + 1)).tries
    assert (one.isn, one.reply) == (1, ())
    assert (two.isn, len(two.reply)) == (2, 1)


def test_tries_from_one_port_are_told_apart_by_their_order(wire) -> None:
    for isn in (5, 3):
        wire.see("client-1:eth0", "out", *(syn(CLIENT, PORT, WEB, 80, isn=isn, ip_id=n) for n in (1, 2)))
    tries = wire.join("tcp", attempt(1), attempt(2, error="no route to host"), attempt(3)).tries
    assert [(t.isn, len(t.forward), len(t.others)) for t in tries] == [(5, 1, 1), (None, 0, 0), (3, 1, 1)]


def test_packet_of_a_refused_try_is_known_if_it_was_sent(wire) -> None:
    wire.see("client-1:eth0", "out", syn(CLIENT, PORT, WEB, 80))
    wire.see("client-1:eth0", "in", error(GATEWAY, CLIENT, syn(CLIENT, PORT, WEB, 80), 3, 1))
    found = wire.one("tcp", attempt(error="no route to host"))
    assert (len(found.forward), len(found.reply)) == (1, 1)


# --- TCP from a host, which translates before any interface ----------------------------------------


def test_packet_that_its_own_host_translates_is_known_by_its_prediction(wire) -> None:
    wire.see("node-1:flannel.1", "out", syn("10.244.1.0", PORT, WEB, 8080))
    wire.see("web-1:eth0", "in", syn("10.244.1.0", PORT, WEB, 8080, ttl=63))
    hops = (hop("node-1:flannel.1", "10.244.1.0", WEB, None, 8080),)
    found = wire.one("tcp", source="node-1", src=HOSTS[0], dst=VIP, hops=hops)
    assert places(found.forward) == ["node-1:flannel.1 out", "web-1:eth0 in"]


FROM_HOST = (hop("node-1:cni0", GATEWAY, "10.244.1.5", None, 8080),)
ENTRY = (
    f"tcp SYN_SENT src={HOSTS[0]} dst={VIP} sport={PORT} dport=80 "
    f"src=10.244.1.5 dst={GATEWAY} sport=8080 dport=61007"
)


@pytest.mark.parametrize(
    ("ports", "texts", "isn"),
    [
        pytest.param((61_007,), (), 0, id="only-one-it-can-be"),
        pytest.param((61_001, 61_007), (), None, id="several-it-could-be"),
        pytest.param((61_001, 61_007), (ENTRY,), 1, id="conntrack-names-it"),
        pytest.param((61_001,), (ENTRY,), None, id="conntrack-names-another"),
    ],
)
def test_masqueraded_port_is_conntracks_to_name(wire, ports, texts, isn) -> None:
    """The host's own readiness probes go to the same endpoint."""
    for number, port in enumerate(ports):
        wire.see("node-1:cni0", "out", syn(GATEWAY, port, "10.244.1.5", 8080, isn=number))
    found = wire.one("tcp", source="node-1", src=HOSTS[0], dst=VIP, hops=FROM_HOST, texts=texts)
    assert found.isn == isn


# --- ICMP echo ------------------------------------------------------------------------------------


def test_echo_and_its_reply_are_known_by_the_cookie(wire) -> None:
    wire.see("client-1:eth0", "out", echo(CLIENT, WEB, PORT, BYTES * 7))
    wire.see("node-1:eth0", "out", vxlan(*HOSTS, echo(CLIENT, WEB, PORT, BYTES * 7, ttl=63)))
    wire.see("web-1:eth0", "in", echo("10.244.1.0", WEB, 999, BYTES * 7, ttl=62))
    wire.see("web-1:eth0", "out", echo(WEB, "10.244.1.0", 999, BYTES * 7, kind=0, ip_id=70))
    wire.see("client-1:eth0", "in", echo(WEB, CLIENT, PORT, BYTES * 7, kind=0, ip_id=70, ttl=62))
    found = wire.one("icmp")
    assert places(found.forward) == ["client-1:eth0 out", "node-1:eth0 out", "web-1:eth0 in"]
    assert places(found.reply) == ["web-1:eth0 out", "client-1:eth0 in"]
    assert (found.others, found.ip_id, found.isn) == ((), 7, None)


def test_another_ping_between_the_same_two_is_not_the_packet(wire) -> None:
    for payload in (bytes.fromhex(OTHER), b"abcdefghijklmnop", b""):
        wire.see("client-1:eth0", "out", echo(CLIENT, WEB, PORT, payload))
        wire.see("client-1:eth0", "in", echo(WEB, CLIENT, PORT, payload, kind=0))
        wire.see("client-1:eth0", "in", error(GATEWAY, CLIENT, echo(CLIENT, WEB, PORT, payload), 3, 1))
    wire.see("client-1:eth0", "out", echo(CLIENT, WEB, PORT, BYTES, ip_id=8))
    found = wire.one("icmp")
    assert (places(found.forward), found.reply) == (["client-1:eth0 out"], ())


@pytest.mark.parametrize("quote", [28, 548])
def test_error_about_an_echo_is_an_answer(wire, quote) -> None:
    wire.see("client-1:eth0", "out", echo(CLIENT, WEB, PORT, BYTES * 100, ip_id=1))
    wire.see(
        "client-1:eth0",
        "in",
        error(GATEWAY, CLIENT, echo(CLIENT, WEB, PORT, BYTES, ip_id=1), 3, 4, quote=quote, mtu=1450),
    )
    found = wire.one("icmp")
    assert places(found.reply) == ["client-1:eth0 in"]
    assert found.reply[0].frame.packet.icmp.mtu == 1450


def test_short_quote_of_another_packet_with_the_same_ends_is_not_about_this_one(wire) -> None:
    wire.see("client-1:eth0", "out", echo(CLIENT, WEB, PORT, BYTES, ip_id=1))
    wire.see(
        "client-1:eth0", "in", error(GATEWAY, CLIENT, echo(CLIENT, WEB, PORT, BYTES, ip_id=2), 11, 0, quote=28)
    )
    assert wire.one("icmp").reply == ()


def test_error_about_the_tunnels_own_packet_is_told_apart(wire) -> None:
    """It goes to the host that wrapped the packet; the sender never hears of it."""
    wrapped = vxlan(*HOSTS, echo(CLIENT, WEB, PORT, BYTES * 50))
    wire.see("client-1:eth0", "out", echo(CLIENT, WEB, PORT, BYTES * 50))
    wire.see("node-1:eth0", "in", error("192.168.50.1", HOSTS[0], wrapped, 3, 4, mtu=1400))
    found = wire.one("icmp")
    assert (found.reply, places(found.others)) == ((), ["node-1:eth0 in"])


def test_loopback_shows_each_packet_on_its_way_out_and_in(wire) -> None:
    for kind, ip_id in ((8, 1), (0, 2)):
        for direction in ("out", "in"):
            wire.see("node-1:lo", direction, echo(HOSTS[0], HOSTS[0], PORT, BYTES, kind=kind, ip_id=ip_id))
    found = wire.one("icmp", source="node-1", src=HOSTS[0], dst=HOSTS[0])
    assert places(found.forward) == places(found.reply) == ["node-1:lo out", "node-1:lo in"]


# --- UDP ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [BYTES * 2, b"no cookie at all"], ids=["echoed", "other payload"])
def test_udp_answer_goes_back_between_the_same_ports(wire, answer) -> None:
    wire.see("client-1:eth0", "out", udp(CLIENT, PORT, VIP, 53, BYTES))
    wire.see("node-1:eth0", "out", vxlan(*HOSTS, udp("10.244.1.0", 61_000, WEB, 5353, BYTES)))
    wire.see("web-1:eth0", "in", udp("10.244.1.0", 61_000, WEB, 5353, BYTES, ttl=62))
    wire.see("web-1:eth0", "out", udp(WEB, 5353, "10.244.1.0", 61_000, answer, ip_id=0))
    wire.see("node-1:eth0", "in", vxlan(*HOSTS[::-1], udp(WEB, 5353, "10.244.1.0", 61_000, answer, ip_id=0)))
    wire.see("client-1:eth0", "in", udp(VIP, 53, CLIENT, PORT, answer, ip_id=0))
    wire.see("client-1:eth0", "in", udp(VIP, 54, CLIENT, PORT, b"somebody else", ip_id=0))
    found = wire.one("udp", dst=VIP)
    assert places(found.forward) == ["client-1:eth0 out", "node-1:eth0 out", "web-1:eth0 in"]
    assert places(found.reply) == ["web-1:eth0 out", "node-1:eth0 in", "client-1:eth0 in"]
    assert found.others == ()


@pytest.mark.parametrize("answer", [BYTES * 2, b"no cookie at all"], ids=["echoed", "other payload"])
def test_answer_that_a_bridge_shows_half_translated_is_the_answer(wire, answer) -> None:
    """With bridge-nf the container's own address goes back to the client's: a pair seen nowhere else."""
    wire.see("node-1:eth0", "in", udp("192.168.60.9", PORT, HOSTS[0], 30_053, BYTES))
    wire.see("node-1:cni0", "out", udp(GATEWAY, 61_000, WEB, 53, BYTES))
    wire.see("node-1:veth1", "in", udp(WEB, 53, GATEWAY, 61_000, answer, ip_id=9))
    wire.see("node-1:cni0", "in", udp(WEB, 53, "192.168.60.9", PORT, answer, ip_id=9))
    wire.see("node-1:eth0", "out", udp(HOSTS[0], 30_053, "192.168.60.9", PORT, answer, ip_id=9))
    found = wire.one("udp", source="outside", src="192.168.60.9", dst=HOSTS[0])
    assert places(found.forward) == ["node-1:eth0 in", "node-1:cni0 out"]
    assert places(found.reply) == ["node-1:veth1 in", "node-1:cni0 in", "node-1:eth0 out"]


def test_echoed_answer_is_told_from_the_packet_where_clocks_differ(wire) -> None:
    """The answerer's clock is behind, and another host, with a clock behind as well, sees only the answer."""
    wire.see("client-1:eth0", "out", udp(CLIENT, PORT, WEB, 53, BYTES), t_us=900)
    wire.see("node-3:eth0", "in", udp(WEB, 5353, "10.244.1.0", 61_000, BYTES, ip_id=2), t_us=1)
    wire.see("web-1:eth0", "in", udp("10.244.1.0", 61_000, WEB, 5353, BYTES), t_us=10)
    wire.see("web-1:eth0", "out", udp(WEB, 5353, "10.244.1.0", 61_000, BYTES, ip_id=2), t_us=11)
    found = wire.one("udp")
    assert places(found.forward) == ["web-1:eth0 in", "client-1:eth0 out"]
    assert places(found.reply) == ["node-3:eth0 in", "web-1:eth0 out"]


def test_further_answers_are_kept_apart(wire) -> None:
    wire.see("client-1:eth0", "out", udp(CLIENT, PORT, WEB, 53, BYTES))
    wire.see("client-1:eth0", "in", *(udp(WEB, 53, CLIENT, PORT, b"part", ip_id=n) for n in (4, 5)))
    found = wire.one("udp")
    assert [s.frame.packet.ip_id for s in found.reply] == [4]
    assert [s.frame.packet.ip_id for s in found.others] == [5]


@pytest.mark.parametrize("answered", [0, 1, None])
def test_answer_without_cookie_belongs_to_the_try_that_was_answered(wire, answered) -> None:
    for cookie in (COOKIE, OTHER):
        wire.see("client-1:eth0", "out", udp(CLIENT, PORT, WEB, 53, bytes.fromhex(cookie)))
    wire.see("client-1:eth0", "in", udp(WEB, 53, CLIENT, PORT, b"pong"))
    answers = ["udp" if n == answered else "" for n in (0, 1)]
    tries = wire.join("udp", attempt(1, answer=answers[0]), attempt(2, OTHER, answer=answers[1])).tries
    assert [len(t.forward) for t in tries] == [1, 1]
    assert [len(t.reply) for t in tries] == ([1, 0] if answered == 0 else [0, 1])


@pytest.mark.parametrize("quote", [28, 548])
def test_port_unreachable_is_an_answer(wire, quote) -> None:
    packet = udp(CLIENT, PORT, WEB, 53, BYTES)
    wire.see("client-1:eth0", "out", packet)
    wire.see("client-1:eth0", "in", error(WEB, CLIENT, packet, quote=quote, ip_id=3))
    found = wire.one("udp")
    assert places(found.reply) == ["client-1:eth0 in"]


# --- fragments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["icmp", "udp"])
def test_fragments_at_one_point_are_one_sighting(wire, protocol) -> None:
    """4000 bytes: whole at the sender, in three on the way, each of them tunnelled."""
    whole = big(protocol)
    wire.see("client-1:eth0", "out", whole)
    wire.see("node-1:flannel.1", "out", *reversed(list(pieces(whole))))
    wire.see("node-1:eth0", "out", *(vxlan(*HOSTS, piece) for piece in pieces(whole)))
    found = wire.one(protocol)
    assert places(found.forward) == ["client-1:eth0 out", "node-1:flannel.1 out", "node-1:eth0 out"]
    assert [(s.fragments, s.complete) for s in found.forward] == [(1, True), (3, True), (3, True)]
    assert all(s.frame.packet.offset == 0 for s in found.forward)
    assert [s.numbers for s in found.forward] == [(0,), (1, 2, 3), (4, 5, 6)]
    assert found.others == ()


def big(protocol: str, payload: int = 4000, **more):
    """Its cookie is turned by three bytes in the second fragment on, whatever the headers' sizes."""
    content = b"\0" * 3 + (BYTES * 501)[: payload - 3]
    if protocol == "icmp":
        return echo(CLIENT, WEB, PORT, content, df=False, **more)
    return udp(CLIENT, PORT, WEB, 53, content, df=False, **more)


@pytest.mark.parametrize("protocol", ["icmp", "udp"])
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_missing_fragment_makes_a_sighting_incomplete(wire, protocol, missing) -> None:
    wire.see("client-1:eth0", "out", big(protocol))
    wire.see("node-1:flannel.1", "out", *(p for n, p in enumerate(pieces(big(protocol))) if n != missing))
    found = wire.one(protocol)
    assert [(s.fragments, s.complete) for s in found.forward] == [(1, True), (2, False)]


def test_fragment_too_short_for_the_cookie_belongs_to_its_packet(wire) -> None:
    wire.see("node-1:eth0", "out", *pieces(big("udp", 1424 - 8 + 1), 1444))
    found = wire.one("udp")
    assert [(s.fragments, s.complete, len(s.numbers)) for s in found.forward] == [(2, True, 2)]


def test_fragments_of_the_tunnels_own_packet_are_one_sighting(wire) -> None:
    wire.see("client-1:eth0", "out", big("udp", 1200))
    wire.see("node-1:eth0", "out", *pieces(vxlan(*HOSTS, big("udp", 1200)), 800))
    found = wire.one("udp")
    assert [(s.fragments, s.complete) for s in found.forward] == [(1, True), (2, True)]
    assert found.forward[1].frame.inner is not None


def test_fragments_sent_twice_are_two_sightings(wire) -> None:
    wire.see("client-1:eth0", "out", *pieces(big("udp")), *pieces(big("udp")))
    found = wire.one("udp")
    assert [s.numbers for s in found.forward] == [(0, 1, 2)]
    assert [s.numbers for s in found.others] == [(3, 4, 5)]


def test_later_fragments_are_the_packets_though_they_show_a_header_of_further_on(wire) -> None:
    """What the kernel writes into them at the next router, while the socket still shows them."""
    first, *rest = pieces(big("icmp"))
    for piece in rest:
        piece.ttl, piece.src = 63, GATEWAY
    wire.see("client-1:eth0", "out", first, *rest)
    found = wire.one("icmp")
    assert [(s.fragments, s.complete, s.frame.packet.ttl) for s in found.forward] == [(3, True, 64)]
    assert found.others == ()


def test_fragments_of_a_packet_in_a_loop_are_sorted_by_their_ttl(wire) -> None:
    passes = [list(pieces(big("icmp", ttl=ttl))) for ttl in (64, 62)]
    wire.see("client-1:eth0", "out", passes[0][0], *passes[1], *passes[0][1:])
    found = wire.one("icmp")
    assert [(s.frame.packet.ttl, s.numbers) for s in found.forward] == [(64, (0, 4, 5)), (62, (1, 2, 3))]


def test_fragments_of_others_are_not_mixed_in(wire) -> None:
    other = echo(CLIENT, WEB, PORT, bytes(4000), df=False, ip_id=8)
    wire.see(
        "client-1:eth0",
        "out",
        *(p for two in zip(pieces(other), pieces(big("icmp")), strict=True) for p in two),
    )
    found = wire.one("icmp")
    assert [s.numbers for s in found.forward] == [(1, 3, 5)]


# --- what was captured besides --------------------------------------------------------------------


def test_every_frame_is_given_back_decoded_and_stumps_as_none(wire) -> None:
    wire.see("client-1:eth0", "out", arp(CLIENT, WEB), kind=0x0806)
    wire.frames.append(Captured(Point("client-1", "eth0"), None, "in", b"\0" * 5, 5))
    arps, stump = wire.join("icmp", attempt()).frames
    assert arps is not None
    assert arps.outer.protocol == "arp"
    assert stump is None


def test_length_on_the_wire_is_kept(wire) -> None:
    wire.see("client-1:eth0", "out", big("icmp", 1000))
    (sighting,) = wire.one("icmp").forward
    assert sighting.frame.length == 14 + 20 + 8 + 1000
    assert len(wire.frames[0].data) == 256
