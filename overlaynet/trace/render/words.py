"""A hop in few words: which kind of interface it is, who speaks to whom there, what changed.

A hop does not say what kind of device its interface is, and a captured frame does not tell either; but the way
of a packet does. Next to a container's interface is the host's end of its cable; what carries an outer header,
or is next to another machine, is the wire; next to that, without the outer header, is the tunnel's device.
What is left, in between, is a bridge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from enum import IntEnum

from overlaynet.addr import IPAddress
from overlaynet.core.underlay import FLANNEL_DEVICE
from overlaynet.trace.model import Change, Direction, Headers, Hop, Point

UNKNOWN = "?"
LOOPBACK = "lo"
TRANSLATED = frozenset({"src", "dst", "src_port", "dst_port"})
"""Fields that only NAT changes."""
_QUIET = frozenset({"src_mac", "dst_mac"})
"""Fields that change whenever a packet is routed, so that they need no words of their own."""


class Role(IntEnum):
    """Kinds of interface, from a container outwards."""

    CONTAINER = 0
    PORT = 1
    BRIDGE = 2
    TUNNEL = 3
    WIRE = 4


def in_container(hop: Hop) -> bool:
    return hop.host is not None and hop.host != hop.place


def lane(hop: Hop) -> str:
    """The host it is on, or the place itself if that is on none."""
    return hop.host or hop.place


# --- roles ----------------------------------------------------------------------------------------


def roles(hops: Sequence[Hop], other_way: Sequence[Hop] = ()) -> Mapping[Point, Role]:
    """Each point's role, by all that passes there in either direction."""
    found: dict[Point, Role] = {}
    for way in (hops, other_way):
        for hop, before, after in _with_neighbours(way):
            role = _role(hop, [h for h in (before, after) if h is not None])
            if role is not None:
                found.setdefault(hop.point, role)
    wired = {lane(hop) for hop in (*hops, *other_way) if found.get(hop.point) is Role.WIRE}
    for hop in (*hops, *other_way):
        found.setdefault(hop.point, _leaving(hops, hop, wired))
    return found


def _with_neighbours(hops: Sequence[Hop]) -> Iterator[tuple[Hop, Hop | None, Hop | None]]:
    padded = (None, *hops, None)
    for number, hop in enumerate(hops):
        yield hop, padded[number], padded[number + 2]


def _role(hop: Hop, neighbours: Sequence[Hop]) -> Role | None:
    if in_container(hop):
        return Role.CONTAINER
    if hop.host is None or hop.outer is not None:
        return Role.WIRE
    if any(in_container(other) and other.host == hop.host for other in neighbours):
        return Role.PORT
    if any(lane(other) != lane(hop) for other in neighbours):
        return Role.WIRE
    if any(other.outer is not None for other in neighbours):
        return Role.TUNNEL
    return None


def _leaving(hops: Sequence[Hop], hop: Hop, wired: Set[str]) -> Role:
    """What nothing else tells: the last that sends and the first that receives are on the wire, if they have no
    VXLAN device's name and their host has no wire yet."""
    if FLANNEL_DEVICE.fullmatch(hop.iface):
        return Role.TUNNEL
    if lane(hop) in wired:
        return Role.BRIDGE
    leaves: tuple[tuple[Hop, Direction], ...] = ((hops[-1], "out"), (hops[0], "in")) if hops else ()
    at_the_end = any(hop is end and hop.direction == way for end, way in leaves)
    return Role.WIRE if at_the_end else Role.BRIDGE


def role_words(hop: Hop, before: Hop | None, role: Role) -> str:
    """What there is to say where nothing changes."""
    if before is None:
        return _size_words(hop.inner)
    if (hop.iface, hop.direction) == (LOOPBACK, "in"):
        return "arrived"
    match role, hop.direction:
        case Role.CONTAINER, "in":
            return "arrived"
        case Role.PORT, "in":
            return "end of the cable"
        case Role.PORT, _:
            return "into the cable"
        case Role.BRIDGE, _:
            return "bridge"
        case Role.TUNNEL, _:
            return "tunnel"
        case Role.WIRE, "in":
            return "from the underlay"
        case _:
            return "to the underlay"


def _size_words(headers: Headers) -> str:
    said = [f"ttl {headers.ttl}"] if headers.ttl is not None else []
    size = "fragments of " if headers.is_fragment else ""
    said += [f"{size}{headers.length} B"] if headers.length is not None else []
    return ", ".join(said) or "sent"


# --- who to whom ----------------------------------------------------------------------------------


def flow(headers: Headers, *, ports: bool = True) -> str:
    """``10.244.1.2:44778 → 10.244.2.2:8080``."""
    src_port, dst_port = (headers.src_port, headers.dst_port) if ports else (None, None)
    if headers.src is None and headers.dst is None:
        return f"{headers.src_mac or UNKNOWN} → {headers.dst_mac or UNKNOWN}"
    if ports and headers.protocol in ("tcp", "udp") and not headers.offset:
        return f"{_end(headers.src, src_port)} → {_end(headers.dst, dst_port)}"
    return f"{flow_parts(headers.src, src_port)} → {flow_parts(headers.dst, dst_port)}"


def _end(ip: IPAddress | None, port: int | None) -> str:
    """An end of a TCP connection or UDP flow: its port is shown even where it is not known."""
    return flow_parts(ip, port) if port is not None else f"{flow_parts(ip, None)}:{UNKNOWN}"


def flow_parts(ip: IPAddress | None, port: int | None) -> str:
    """``10.244.2.2:8080``, or the address alone."""
    address = UNKNOWN if ip is None else str(ip)
    if port is None:
        return address
    return f"[{address}]:{port}" if ip is not None and ip.version == 6 else f"{address}:{port}"


# --- changes --------------------------------------------------------------------------------------


def change_words(hop: Hop, before: Hop | None = None) -> str:
    """All that changed here since the hop before, by reason: ``DNAT, ttl 63: routed``. What a router always
    changes comes last, and its new MACs go without saying."""
    by_reason: dict[str, dict[str, Change]] = {}
    for change in hop.changes:
        if change.field not in TRANSLATED:
            by_reason.setdefault(change.reason, {})[change.field] = change
    words = [_reason_words(hop, before, reason, fields) for reason, fields in by_reason.items()]
    words.sort(key=lambda text: text.startswith(("ttl ", "new MACs")))
    return ", ".join(filter(None, [translations(hop), *words]))


def translations(hop: Hop) -> str:
    """Why addresses or ports changed here: ``DNAT``; empty if they did not. The destination comes first."""
    known = {change.field: change.reason for change in hop.changes if change.field in TRANSLATED}
    reasons = [known[name] for name in ("dst", "dst_port", "src", "src_port") if known.get(name)]
    return ", ".join(dict.fromkeys(reasons)) or ", ".join(known)


def _reason_words(hop: Hop, before: Hop | None, reason: str, fields: Mapping[str, Change]) -> str:
    if "encapsulation" in fields:
        return _wrapping_words(hop, before, fields)
    if "fragments" in fields:
        return _pieces(fields["fragments"], reason)
    if "ttl" in fields:
        after = fields["ttl"].after  # None: predicted of routers that nobody can look into
        return _because("ttl falls" if after is None else f"ttl {after}", reason)
    if fields.keys() <= _QUIET:
        routed = any(change.field == "ttl" for change in hop.changes)
        return "" if routed else _because("new MACs", reason)
    return _because(_growth(fields.get("length")), reason)


def _because(words: str, reason: str) -> str:
    return f"{words}: {reason}" if words and reason else words or reason or "changed"


def _pieces(change: Change, reason: str) -> str:
    if change.after is None:
        return reason or "put together again"
    many = f"{change.after} fragments" if change.after.isdecimal() else change.after
    return _because(f"cut into {many}", reason)


def _wrapping_words(hop: Hop, before: Hop | None, fields: Mapping[str, Change]) -> str:
    grown = _growth(fields.get("length")) or _overhead(hop, "+") or _overhead(before, "−")
    size = f"{grown}: " if grown else ""
    if fields["encapsulation"].after is None:
        return f"{size}unwrapped"
    return f"{size}VXLAN" if hop.vni is None else f"{size}VXLAN vni {hop.vni}"


def _growth(length: Change | None) -> str:
    """By how many bytes: ``+50 B``; empty if that is not known."""
    if length is None or length.before is None or length.after is None:
        return ""
    if not (length.before.isdecimal() and length.after.isdecimal()):
        return ""
    more = int(length.after) - int(length.before)
    return f"{'−' if more < 0 else '+'}{abs(more)} B"


def _overhead(hop: Hop | None, sign: str) -> str:
    """What a tunnel adds to its packet here; empty if there is none or it is not known."""
    if hop is None or hop.outer is None or hop.outer.length is None or hop.inner.length is None:
        return ""
    if hop.outer.is_fragment:
        return ""
    return f"{sign}{hop.outer.length - hop.inner.length} B"
