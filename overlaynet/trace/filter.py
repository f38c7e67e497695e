"""The words behind `overlaynet capture POINT…`: which frames to keep, in the words of pcap-filter(7).

    tcp port 80                       protocol and port of one packet
    icmp and host web-1               names of containers and hosts stand for their addresses
    not arp and not port 2379
    vni 1 and (src web-1 or src web-2)
    net 10.244.0.0/16 and not tunnelled

A frame of a tunnel holds two packets, the outer and the inner one, any other frame one. **A filter passes a
frame if one of its packets satisfies it as a whole**: `udp port 80` is not content with a tunnel's outer UDP
and an inner port 80. `not X` says that none of the frame's packets is X, so `not icmp` hides tunnelled pings
as well. `vxlan` and `vni N` hold for both packets of a tunnel's frame, `tunnelled` for the inner one alone:
``tunnelled and host A`` asks about what is inside, ``vxlan and host A`` about either.

Words that stand together (``tcp dst port 80``) are one condition, and `not` takes all of it. `and` and `or`
are not mixed without parentheses: pcap-filter gives them the same precedence and most other languages do not,
so whoever writes both would be misunderstood by half of the readers.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias

from overlaynet.addr import IPAddress, IPNetwork
from overlaynet.errors import UsageError
from overlaynet.trace.model import Frame, Headers

PROTOCOLS = ("tcp", "udp", "icmp", "arp")
TUNNELS = ("vxlan", "tunnelled")
SIDES = ("src", "dst")
KINDS = ("host", "port", "net")
PORTS: Mapping[str, Side] = {"port": "either", "sport": "src", "dport": "dst"}
CONDITIONS = (*PROTOCOLS, *TUNNELS, *SIDES, *KINDS, "sport", "dport", "vni")
WORDS = (*CONDITIONS, "and", "or", "not", "(", ")")
LARGEST_PORT, LARGEST_VNI = 0xFFFF, 0xFFFFFF

Names: TypeAlias = Mapping[str, Collection[IPAddress]]
"""What names stand for: all addresses of a container or host."""
Side: TypeAlias = Literal["src", "dst", "either"]

_TOKEN = re.compile(r"[()!]|&&|\|\||[^\s()!]+")
_SIGNS = {"!": "not", "&&": "and", "||": "or"}


# --- what a filter is -----------------------------------------------------------------------------


class Protocol(NamedTuple):
    name: str


class Tunnel(NamedTuple):
    """`inside`: about the packet in the tunnel, not about the frame. `vni` None: any."""

    inside: bool = False
    vni: int | None = None


class Address(NamedTuple):
    """One of these addresses."""

    ips: frozenset[IPAddress]
    side: Side = "either"


class Net(NamedTuple):
    network: IPNetwork
    side: Side = "either"


class Port(NamedTuple):
    number: int
    side: Side = "either"


class Not(NamedTuple):
    term: Term


class All(NamedTuple):
    """Every one of them, of the same packet."""

    terms: tuple[Term, ...]


class Some(NamedTuple):
    """One of them at least."""

    terms: tuple[Term, ...]


Term: TypeAlias = Protocol | Tunnel | Address | Net | Port | Not | All | Some


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter that was understood: a predicate on frames. `text` is as it was typed; empty passes all."""

    text: str
    term: Term

    def __call__(self, frame: Frame) -> bool:
        return _passes(self.term, frame)

    def keep(self, vxlan_port: int) -> dict[str, Any] | None:
        """What the kernel may leave out already: a probe's `keep`, which passes all that this passes and some
        more. None: everything has to come up."""
        terms = _joint(self.term)
        ips = [term.ips for term in terms if isinstance(term, Address)]
        ports = [term.number for term in terms if isinstance(term, Port)]
        protocols = [term.name for term in terms if isinstance(term, Protocol) and term.name != "arp"]
        if not (ips or ports or protocols):
            return None
        return {
            "ips": sorted(map(str, min(ips, key=len, default=()))),
            "protocol": next(iter(protocols), None),
            "ports": ports[:1],
            "vxlan_port": vxlan_port,
        }


def _joint(term: Term) -> list[Term]:
    """What must be true of one and the same packet."""
    return [one for part in term.terms for one in _joint(part)] if isinstance(term, All) else [term]


def _passes(term: Term, frame: Frame) -> bool:
    return any(_holds(term, packet, frame) for packet in (frame.outer, frame.inner) if packet is not None)


def _holds(term: Term, packet: Headers, frame: Frame) -> bool:
    match term:
        case All(terms):
            return all(_holds(one, packet, frame) for one in terms)
        case Some(terms):
            return any(_holds(one, packet, frame) for one in terms)
        case Not(one):
            return not _passes(one, frame)
        case Protocol(name):
            return packet.protocol == name
        case Tunnel(inside, vni):
            here = packet is frame.inner if inside else frame.vni is not None
            return here and vni in (None, frame.vni)
        case Address(ips, side):
            return any(ip in ips for ip in _of_side(side, packet.src, packet.dst) if ip is not None)
        case Net(network, side):
            return any(ip in network for ip in _of_side(side, packet.src, packet.dst) if ip is not None)
        case Port(number, side):
            return number in _of_side(side, packet.src_port, packet.dst_port)


def _of_side(side: Side, src: Value, dst: Value) -> tuple[Value, ...]:
    return (src, dst) if side == "either" else (src,) if side == "src" else (dst,)


Value: TypeAlias = IPAddress | int | None


# --- reading one ----------------------------------------------------------------------------------


def begins_filter(word: str) -> bool:
    """Whether this argument of a command line is no point but the filter's first word."""
    first = _TOKEN.search(word)
    return first is not None and first.group() in (*CONDITIONS, "not", "(", "!")


def read(text: str, names: Names | None = None) -> Filter:
    """Understand a filter. Raises UsageError that shows the place where it cannot be understood."""
    return Filter(text, _Reader(text, names or {}).filter())


class Token(NamedTuple):
    text: str
    at: int


class _Reader:
    """Reads a filter from left to right, one word ahead."""

    def __init__(self, text: str, names: Names) -> None:
        self._text = text
        self._names = names
        self._tokens = [Token(_SIGNS.get(m.group(), m.group()), m.start()) for m in _TOKEN.finditer(text)]
        self._next = 0

    def filter(self) -> Term:
        if not self._tokens:
            return All(())
        term = self._expression()
        if self._peek() is not None:
            self._fail(self._expected_after_term())
        return term

    def _expression(self) -> Term:
        """Conditions that are all joined by the same word."""
        terms = [self._clause()]
        joint = self._peek()
        while self._peek() in ("and", "or"):
            if self._peek() != joint:
                self._fail("'and' and 'or' are mixed: say with parentheses which comes first")
            self._take()
            terms.append(self._clause())
        if len(terms) == 1:
            return terms[0]
        return All(tuple(terms)) if joint == "and" else Some(tuple(terms))

    def _clause(self) -> Term:
        match self._peek():
            case "not":
                self._take()
                return Not(self._clause())
            case "(":
                opened = self._take()
                term = self._expression()
                if self._peek() is None:
                    self._fail("this parenthesis is not closed", opened)
                if self._peek() != ")":
                    self._fail(self._expected_after_term())
                self._take()
                return term
            case _:
                return self._condition()

    def _condition(self) -> Term:
        """One packet's properties, side by side."""
        terms = [self._property()]
        while self._peek() in CONDITIONS:
            terms.append(self._property())
        return terms[0] if len(terms) == 1 else All(tuple(terms))

    def _property(self) -> Term:
        word = self._take("a condition")
        match word.text:
            case "tcp" | "udp" | "icmp" | "arp":
                return Protocol(word.text)
            case "vxlan" | "tunnelled":
                return Tunnel(inside=word.text == "tunnelled")
            case "vni":
                return Tunnel(vni=self._number("a VNI", LARGEST_VNI))
            case "src" | "dst":
                return self._sided("src" if word.text == "src" else "dst")
            case "host":
                return Address(self._addresses())
            case "net":
                return Net(self._network())
            case "port" | "sport" | "dport":
                return Port(self._number("a port", LARGEST_PORT), PORTS[word.text])
            case _:
                self._fail(f"{word.text!r} is no condition{self._did_you_mean(word.text, CONDITIONS)}", word)

    def _sided(self, side: Side) -> Term:
        """``src A``, ``src host A``, ``src port N`` or ``src net CIDR``."""
        match self._peek():
            case "port":
                self._take()
                return Port(self._number("a port", LARGEST_PORT), side)
            case "net":
                self._take()
                return Net(self._network(), side)
            case "host":
                self._take()
        return Address(self._addresses(), side)

    def _addresses(self) -> frozenset[IPAddress]:
        word = self._take("an address or the name of a container or host")
        if word.text in self._names:
            if not self._names[word.text]:
                self._fail(f"{word.text} has no address", word)
            return frozenset(self._names[word.text])
        try:
            return frozenset({ip_address(word.text)})
        except ValueError:
            what = "is no address, nor the name of a container or host"
            self._fail(f"{word.text!r} {what}{self._did_you_mean(word.text, self._names)}", word)

    def _network(self) -> IPNetwork:
        word = self._take("a network like 10.244.0.0/16")
        try:
            return ip_network(word.text)
        except ValueError as error:
            self._fail(f"{word.text!r} is no network: {error}", word)

    def _number(self, what: str, largest: int) -> int:
        word = self._take(what)
        if not (word.text.isascii() and word.text.isdecimal()) or int(word.text) > largest:
            self._fail(f"{word.text!r} is not {what} from 0 to {largest}", word)
        return int(word.text)

    # --- words and complaints ---

    def _peek(self) -> str | None:
        return self._tokens[self._next].text if self._next < len(self._tokens) else None

    def _take(self, wanted: str = "") -> Token:
        if self._next == len(self._tokens):
            self._fail(f"{wanted} is missing")
        token = self._tokens[self._next]
        self._next += 1
        return token

    def _expected_after_term(self) -> str:
        word = self._peek()
        if word == ")":
            return "this parenthesis was never opened"
        return f"'and' or 'or' is missing before {word!r}{self._did_you_mean(str(word), CONDITIONS)}"

    @staticmethod
    def _did_you_mean(word: str, known: Collection[str]) -> str:
        near = difflib.get_close_matches(word, known, n=1)
        return f"; did you mean {near[0]!r}?" if near else ""

    def _fail(self, problem: str, where: Token | None = None) -> NoReturn:
        """`where` None: at the word that comes next, or at the end."""
        if where is None and self._next < len(self._tokens):
            where = self._tokens[self._next]
        at, length = (where.at, len(where.text)) if where else (len(self._text), 1)
        raise UsageError(
            f"the filter is wrong at character {at + 1}: {problem}",
            evidence=f"{self._text}\n{' ' * at}{'^' * length}",
            next=["overlaynet capture --help"],
        )
