"""The filter language: what it means, by a second reading of it, and how it says that it was not understood."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.errors import UsageError
from overlaynet.trace.filter import CONDITIONS, Filter, begins_filter, read
from overlaynet.trace.model import Frame, Headers

pytestmark = pytest.mark.unit

NAMES = {
    "web-1": [ip_address("10.244.1.2")],
    "web-3": [ip_address("10.244.2.2")],
    "node-1": [ip_address("192.168.50.11"), ip_address("10.244.1.0"), ip_address("10.244.1.1")],
    "unwired": [],
}


def headers(protocol: str, src: str = "10.244.1.2", dst: str = "10.244.2.2", *ports: int) -> Headers:
    src_port, dst_port = ports or (None, None)
    return Headers(None, None, ip_address(src), ip_address(dst), protocol, src_port, dst_port)


def tunnel(inner: Headers | None, vni: int = 1) -> Frame:
    return Frame(headers("udp", "192.168.50.11", "192.168.50.12", 59_000, 8472), vni, inner)


PING = Frame(headers("icmp"))
CALL = Frame(headers("tcp", "10.244.1.2", "10.112.0.10", 40_000, 80))
ARP = Frame(headers("arp"))
TUNNELLED_PING = tunnel(headers("icmp"))
TUNNELLED_CALL = tunnel(headers("tcp", "10.244.1.2", "10.244.2.2", 40_000, 80), vni=7)
STUMP = tunnel(None)
OTHER = Frame(Headers(None, None, None, None, "0x88b5"))
EVERY = {
    "PING": PING, "CALL": CALL, "ARP": ARP, "TUNNELLED_PING": TUNNELLED_PING, "TUNNELLED_CALL": TUNNELLED_CALL,
    "STUMP": STUMP, "OTHER": OTHER,
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", "PING CALL ARP TUNNELLED_PING TUNNELLED_CALL STUMP OTHER"),
        ("icmp", "PING TUNNELLED_PING"),
        ("not icmp", "CALL ARP TUNNELLED_CALL STUMP OTHER"),
        ("tcp port 80", "CALL TUNNELLED_CALL"),
        ("udp port 80", ""),
        ("udp and port 80", ""),
        ("udp port 8472", "TUNNELLED_PING TUNNELLED_CALL STUMP"),
        ("not tcp port 80", "PING ARP TUNNELLED_PING STUMP OTHER"),
        ("sport 40000", "CALL TUNNELLED_CALL"),
        ("dport 40000", ""),
        ("dst port 80", "CALL TUNNELLED_CALL"),
        ("tcp src port 80", ""),
        ("vxlan", "TUNNELLED_PING TUNNELLED_CALL STUMP"),
        ("tunnelled", "TUNNELLED_PING TUNNELLED_CALL"),
        ("vni 7", "TUNNELLED_CALL"),
        ("vni 1 icmp", "TUNNELLED_PING"),
        ("vxlan and host node-1", "TUNNELLED_PING TUNNELLED_CALL STUMP"),
        ("tunnelled and host node-1", ""),
        ("tunnelled and host web-1", "TUNNELLED_PING TUNNELLED_CALL"),
        ("src web-1", "PING CALL ARP TUNNELLED_PING TUNNELLED_CALL"),
        ("src host 10.112.0.10", ""),
        ("dst 10.112.0.10", "CALL"),
        ("net 10.112.0.0/16", "CALL"),
        ("src net 10.112.0.0/16", ""),
        ("net 10.244.0.0/16 and not tunnelled", "PING CALL ARP"),
        ("icmp or arp", "PING ARP TUNNELLED_PING"),
        ("icmp || arp", "PING ARP TUNNELLED_PING"),
        ("(icmp or arp) && !(vxlan)", "PING ARP"),
        ("not (icmp or arp or vxlan)", "CALL OTHER"),
        ("not not icmp", "PING TUNNELLED_PING"),
        ("host 192.168.50.12 and icmp", ""),
    ],
)
def test_which_frames_are_kept(text: str, kept: str) -> None:
    wanted = read(text, NAMES)
    assert " ".join(name for name, frame in EVERY.items() if wanted(frame)) == kept


def test_filter_keeps_its_words() -> None:
    assert isinstance(read("icmp"), Filter)
    assert read("icmp").text == "icmp"


# --- against another reading of the same words ----------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A filter as a tree, with how it is written and a meaning that is put down once more here."""

    word: str
    value: str = ""
    parts: tuple[Node, ...] = ()

    def text(self) -> str:
        match self.word:
            case "not":
                return f"not ({self.parts[0].text()})"
            case "and" | "or":
                return f" {self.word} ".join(f"({part.text()})" for part in self.parts)
            case "beside":
                return " ".join(part.text() for part in self.parts)
        return f"{self.word} {self.value}".strip()

    def satisfied(self, packet: dict) -> bool:
        """`packet`: flat facts of one packet and of the frame it is in."""
        both = {"src": packet["src"], "dst": packet["dst"]}
        match self.word:
            case "not":
                return not any(self.parts[0].satisfied(one) for one in packet["siblings"])
            case "and" | "beside":
                return all(part.satisfied(packet) for part in self.parts)
            case "or":
                return any(part.satisfied(packet) for part in self.parts)
            case "host":
                return str(self.value) in both.values()
            case "src" | "dst":
                return both[self.word] == self.value
            case "net":
                inside = ip_network(self.value)
                return any(ip and ip_address(ip) in inside for ip in both.values())
            case "port":
                return int(self.value) in (packet["sport"], packet["dport"])
            case "sport" | "dport":
                return packet[self.word] == int(self.value)
            case "vni":
                return packet["vni"] == int(self.value)
            case "vxlan":
                return packet["vni"] is not None
            case "tunnelled":
                return packet["inside"]
        return packet["protocol"] == self.word


IPS = ("10.244.1.2", "10.244.2.2", "192.168.50.11", "10.112.0.10")
PORT_NUMBERS = (80, 8472, 40_000)
PROPERTIES = st.one_of(
    st.sampled_from(["tcp", "udp", "icmp", "arp", "vxlan", "tunnelled"]).map(Node),
    st.builds(Node, st.sampled_from(["host", "src", "dst"]), st.sampled_from(IPS)),
    st.builds(Node, st.sampled_from(["port", "sport", "dport"]), st.sampled_from(PORT_NUMBERS).map(str)),
    st.builds(Node, st.just("net"), st.sampled_from(["10.244.0.0/16", "10.244.2.0/24", "0.0.0.0/0"])),
    st.builds(Node, st.just("vni"), st.sampled_from(["1", "7"])),
)
RUNS = st.lists(PROPERTIES, min_size=1, max_size=3).map(lambda parts: Node("beside", parts=tuple(parts)))
TREES = st.recursive(
    RUNS,
    lambda trees: st.one_of(
        trees.map(lambda one: Node("not", parts=(one,))),
        st.builds(
            lambda word, parts: Node(word, parts=tuple(parts)),
            st.sampled_from(["and", "or"]),
            st.lists(trees, min_size=2, max_size=3),
        ),
    ),
    max_leaves=6,
)
PORTED = st.builds(
    headers,
    st.sampled_from(["tcp", "udp"]),
    st.sampled_from(IPS),
    st.sampled_from(IPS),
    st.sampled_from(PORT_NUMBERS),
    st.sampled_from(PORT_NUMBERS),
)
PACKETS = PORTED | st.builds(headers, st.sampled_from(["icmp", "arp"]), *[st.sampled_from(IPS)] * 2)
FRAMES = PACKETS.map(Frame) | st.builds(tunnel, st.none() | PACKETS, st.sampled_from([1, 7]))


def facts(frame: Frame) -> list[dict]:
    found = [
        {
            "protocol": one.protocol,
            "src": str(one.src),
            "dst": str(one.dst),
            "sport": one.src_port,
            "dport": one.dst_port,
            "vni": frame.vni,
            "inside": number == 1,
        }
        for number, one in enumerate((frame.outer, frame.inner))
        if one is not None
    ]
    for one in found:
        one["siblings"] = found
    return found


@given(TREES, FRAMES)
def test_meaning_is_that_of_the_reference(tree: Node, frame: Frame) -> None:
    assert read(tree.text())(frame) == any(tree.satisfied(packet) for packet in facts(frame))


@given(
    st.text(alphabet="tcpudhosrn 0189.:/()!&|-", max_size=30)
    | st.lists(
        st.sampled_from([*CONDITIONS, "and", "or", "not", "(", ")", "web-1", "80", "10.0.0.0/8"]), max_size=6
    ).map(" ".join)
)
def test_anything_is_understood_or_refused_with_its_place(text: str) -> None:
    error = refusal(text)
    if error is not None:
        shown, marks = error.evidence.split("\n")
        at = len(marks) - len(marks.lstrip())
        assert error.message.startswith(f"the filter is wrong at character {at + 1}: ")
        assert shown == text
        assert set(marks.strip()) == {"^"}


def refusal(text: str) -> UsageError | None:
    try:
        read(text, NAMES)(PING)
    except UsageError as error:
        return error
    return None


# --- what the kernel may leave out already --------------------------------------------------------


def is_kept(keep: dict | None, packet: dict) -> bool:
    """What a probe's `keep` lets through: `overlaynet.probe.bpf.Keep` in words."""
    if keep is None or packet["protocol"] == "arp":
        return True
    ports = {packet["sport"], packet["dport"]}
    return (
        (not keep["ips"] or bool({packet["src"], packet["dst"]} & set(keep["ips"])))
        and keep["protocol"] in (None, packet["protocol"])
        and (not keep["ports"] or packet["protocol"] == "icmp" or bool(ports & set(keep["ports"])))
    )


@given(TREES, FRAMES)
def test_nothing_is_left_out_that_passes(tree: Node, frame: Frame) -> None:
    wanted = read(tree.text())
    kept = any(is_kept(wanted.keep(8472), packet) for packet in facts(frame))
    assert kept or not wanted(frame)


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("", None),
        ("not icmp", None),
        ("icmp or arp", None),
        ("vxlan", None),
        ("arp", None),
        ("icmp", ([], "icmp", [])),
        ("tcp port 80 and src web-1", (["10.244.1.2"], "tcp", [80])),
        ("host web-1 and (tcp or udp)", (["10.244.1.2"], None, [])),
        ("arp and host web-1", (["10.244.1.2"], None, [])),
    ],
)
def test_what_is_left_out(text: str, keep: tuple | None) -> None:
    found = read(text, NAMES).keep(4789)
    wanted = keep and {**dict(zip(("ips", "protocol", "ports"), keep, strict=True)), "vxlan_port": 4789}
    assert found == wanted


# --- what is not understood -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem", "marks"),
    [
        ("tcp prot 80", "'and' or 'or' is missing before 'prot'; did you mean 'port'?", "    ^^^^"),
        ("tpc", "'tpc' is no condition; did you mean 'tcp'?", "^^^"),
        (
            "host web-2",
            "'web-2' is no address, nor the name of a container or host; did you mean 'web-3'?",
            "     ^^^^^",
        ),
        ("src unwired", "unwired has no address", "    ^^^^^^^"),
        ("(tcp or udp", "this parenthesis is not closed", "^"),
        ("tcp)", "this parenthesis was never opened", "   ^"),
        ("tcp and", "a condition is missing", "       ^"),
        ("port", "a port is missing", "    ^"),
        ("port http", "'http' is not a port from 0 to 65535", "     ^^^^"),
        ("vni 16777216", "'16777216' is not a VNI from 0 to 16777215", "    ^^^^^^^^"),
        ("net 10.0.0.1/8", "'10.0.0.1/8' is no network: 10.0.0.1/8 has host bits set", " " * 4 + "^" * 10),
        (
            "tcp and icmp or arp",
            "'and' and 'or' are mixed: say with parentheses which comes first",
            " " * 13 + "^^",
        ),
        ("icmp not arp", "'and' or 'or' is missing before 'not'; did you mean 'net'?", "     ^^^"),
    ],
)  # fmt: skip
def test_mistake_is_pointed_at(text: str, problem: str, marks: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(text, NAMES)
    at = len(marks) - len(marks.lstrip())
    assert caught.value.message == f"the filter is wrong at character {at + 1}: {problem}"
    assert caught.value.evidence == f"{text}\n{marks}"
    assert caught.value.next == ("overlaynet capture --help",)


@pytest.mark.parametrize("word", ["tcp", "not", "(", "(tcp", "!arp", "tcp and port 80", "host", "vni"])
def test_word_begins_a_filter(word: str) -> None:
    assert begins_filter(word)


@pytest.mark.parametrize("word", ["web-1", "web-1:eth0", "tcp:eth0", "node-1:*", "and", "10.0.0.1", ""])
def test_word_begins_no_filter(word: str) -> None:
    assert not begins_filter(word)
