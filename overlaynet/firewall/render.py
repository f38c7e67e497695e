"""Policies to chains.

Three shared chains, each hooked into one built-in chain, carry what concerns every packet; a policy adds
rules to them (`Dispatch`) and may own further chains. One function per policy; `assemble` joins the parts.

**OVL-POSTROUTING** (nat), in the order of the rules, of which a connection's first packet takes the first
that matches:

1. Packets that carry the masquerade mark: where services are ours they lose it and are masqueraded, whatever
   the other rules say. Else they RETURN: a service proxy marked them and masquerades them itself.
2. From the overlay to the overlay RETURN: containers see each other's true addresses. This includes a host
   that speaks to a remote container, since the kernel takes the source from the VXLAN device, whose address
   is the base of the host's own subnet; and packets in transit through a third host.
3. From the overlay to anything but multicast MASQUERADE: the outside knows no route to a container.
   Multicast has no reply that would need one, and receivers tell senders apart by address.
4. To our own subnet RETURN. What comes by here is not from the overlay (rule 2): an outside client that was
   routed to us. Its container is here, the reply passes here, so it may see the client's true address.
5. To the rest of the overlay MASQUERADE: the container is on another host, whose reply to an outside address
   would leave by that host's own default route and never come back through us. The same holds for a host
   process that is bound to its underlay address.

There is no ``! -s overlay`` anywhere: the sequence says it, and so it holds for several networks at once.

**OVL-FORWARD** (filter) drops VXLAN that comes out of a container, then accepts from and to the overlay
(Docker and firewalld set the built-in chain's policy to DROP).

**OVL-INPUT** (filter) guards the host's own VXLAN port. A VXLAN frame proves nothing about its sender (RFC
7348 section 7): whoever reaches the port can speak as any container. A container reaches its own host's
underlay address through INPUT and every other host's through FORWARD, so both have the drops. They match the
overlay as source, and the devices that containers come in by, since a container may lie about its source.
Where only peers may send, their list is a chain of its own, so that no other packet walks through it.

What services add to these, and their own chains, is told in `services`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import NamedTuple, assert_never

from overlaynet.addr import IPAddress, IPNetwork
from overlaynet.firewall.chains import (
    CHAIN_PREFIX,
    COMMENT_PREFIX,
    Dispatch,
    Part,
    Rendered,
    Rules,
    chain_key,
    comment_prefix,
    rule,
)
from overlaynet.firewall.services import (
    CLUSTER_FILTER,
    EXTERNAL_FILTER,
    HEALTH_CHECKS,
    MARKED,
    MARKED_ORDER,
    MARTIANS,
    PROXY_FIREWALL,
    SERVICES,
    Affinity,
    port_part,
    services_part,
)
from overlaynet.state import (
    ChainKey,
    ForwardAccept,
    Masquerade,
    Policy,
    ServicePortPolicy,
    ServicesPolicy,
    Source,
    VxlanGuard,
)

POSTROUTING = chain_key("nat", "OVL-POSTROUTING")
FORWARD = chain_key("filter", "OVL-FORWARD")
INPUT = chain_key("filter", "OVL-INPUT")

GUARD_ORDER = 10
"""Before the accepts: a frame that was let through cannot be stopped later."""
ACCEPT_ORDER = 50
MASQUERADE_ORDER = 50

MULTICAST: Mapping[int, IPNetwork] = {4: IPv4Network("224.0.0.0/4"), 6: IPv6Network("ff00::/8")}


class Hook(NamedTuple):
    """A jump from a built-in chain to one of ours."""

    builtin: ChainKey
    chain: ChainKey
    why: str
    only: str = ""

    @property
    def text(self) -> str:
        return rule(self.why, self.chain[1], matches=[self.only] if self.only else [])


NEW = "-m conntrack --ctstate NEW"

HOOKS = (
    Hook(("filter", "INPUT"), MARTIANS, "services: 127.0.0.0/8 stays here"),
    Hook(("filter", "INPUT"), PROXY_FIREWALL, "services: source ranges", NEW),
    Hook(("filter", "INPUT"), INPUT, "guard the VXLAN port"),
    Hook(("filter", "INPUT"), HEALTH_CHECKS, "services: health checks"),
    Hook(("filter", "INPUT"), EXTERNAL_FILTER, "services: external without endpoints", NEW),
    Hook(("filter", "FORWARD"), PROXY_FIREWALL, "services: source ranges", NEW),
    Hook(("filter", "FORWARD"), EXTERNAL_FILTER, "services: external without endpoints", NEW),
    Hook(("filter", "FORWARD"), CLUSTER_FILTER, "services: without endpoints", NEW),
    Hook(("filter", "FORWARD"), FORWARD, "let container traffic through"),
    Hook(("filter", "OUTPUT"), MARTIANS, "services: 127.0.0.0/8 stays here"),
    Hook(("filter", "OUTPUT"), PROXY_FIREWALL, "services: source ranges", NEW),
    Hook(("filter", "OUTPUT"), CLUSTER_FILTER, "services: without endpoints", NEW),
    Hook(("nat", "PREROUTING"), SERVICES, "services"),
    Hook(("nat", "OUTPUT"), SERVICES, "services"),
    Hook(("nat", "POSTROUTING"), POSTROUTING, "masquerade what leaves the overlay"),
)
"""In the order in which they stand where one built-in chain has several."""

_NAMES = re.compile(rf"((?: -j|--match-set|--add-set|--name) ){CHAIN_PREFIX}")
"""Where a rule names a chain or a set of ours."""


class How(NamedTuple):
    """How to render: for which address family (4 or 6), and with what the kernel has.

    `random_fully` makes MASQUERADE choose source ports at random, which avoids lost packets when two
    connections race for one port. `affinity` as in `services`; `services` is what all of them share, None
    where there are none."""

    random_fully: bool
    family: int = 4
    affinity: Affinity = "ipset"
    services: ServicesPolicy | None = None

    @property
    def masquerade(self) -> str:
        return "MASQUERADE --random-fully" if self.random_fully else "MASQUERADE"


class _Piece(NamedTuple):
    """A policy's part, under the names of the instance, and for each of its chains who asked for the rules."""

    policy: Policy
    part: Part
    source: Source
    origins: Mapping[ChainKey, tuple[Source, ...]]


class Renderer:
    """Renders policies of one address family again and again: of a policy that is as it was, the rules are
    the same objects as before, which spares comparing them too. The options are those of `How`."""

    def __init__(
        self, *, random_fully: bool, family: int = 4, instance: str = "", affinity: Affinity = "ipset"
    ) -> None:
        self._instance = instance
        self._how = How(random_fully, family, affinity)
        self._pieces: dict[str, _Piece] = {}
        self._rendered: Rendered | None = None

    def __call__(self, policies: Mapping[str, Policy]) -> Rendered:
        """Everything that these policies want."""
        how = self._how._replace(services=common(policies))
        old = self._pieces if how == self._how else {}
        pieces = {name: self._piece(old.get(name), name, policy, how) for name, policy in policies.items()}
        if self._rendered is None or not _same_objects(pieces, self._pieces):
            self._rendered = _assembled(pieces, self._instance)
        self._how, self._pieces = how, pieces
        return self._rendered

    def _piece(self, old: _Piece | None, name: str, policy: Policy, how: How) -> _Piece:
        if old and (old.policy is policy or old.policy == policy):
            return old
        return _piece(name, policy, renamed(part(policy, how), self._instance))


def render(
    policies: Mapping[str, Policy],
    *,
    random_fully: bool,
    family: int = 4,
    instance: str = "",
    affinity: Affinity = "ipset",
) -> Rendered:
    """Everything the policies want of one address family; the options are those of `How`."""
    renderer = Renderer(random_fully=random_fully, family=family, instance=instance, affinity=affinity)
    return renderer(policies)


def common(policies: Mapping[str, Policy]) -> ServicesPolicy | None:
    """What the services among these policies share, as far as the rules of each depend on it: a virtual IP
    more or less renders none of the others anew."""
    found = next((policy for policy in policies.values() if isinstance(policy, ServicesPolicy)), None)
    return replace(found, networks=(), strays=()) if found else None


def renamed(piece: Part, instance: str) -> Part:
    """The same rules under the names of an instance, so that several agents keep theirs apart."""
    if not instance:
        return piece
    own = f"{CHAIN_PREFIX}{instance}-"

    def name(key: ChainKey) -> ChainKey:
        return (key[0], key[1].replace(CHAIN_PREFIX, own, 1))

    return Part(
        {
            name(key): tuple(_of_instance(text, instance) for text in rules)
            for key, rules in piece.chains.items()
        },
        tuple(Dispatch(d.order, name(d.chain), _of_instance(d.text, instance)) for d in piece.dispatch),
        {known.replace(CHAIN_PREFIX, own, 1): timeout for known, timeout in piece.sets.items()},
        piece.source,
    )


def _of_instance(text: str, instance: str) -> str:
    named = _NAMES.sub(rf"\1{CHAIN_PREFIX}{instance}-", text)
    return named.replace(f'"{COMMENT_PREFIX}', f'"{comment_prefix(instance)}', 1)


def part(policy: Policy, how: How) -> Part:
    """What one policy renders to. A service port without the rules that all services share is nothing."""
    match policy:
        case Masquerade():
            return _masquerade(policy, how)
        case ForwardAccept():
            return _forward_accept(policy, how.family)
        case VxlanGuard():
            return _vxlan_guard(policy, how.family)
        case ServicePortPolicy():
            shared = how.services
            return port_part(policy, shared, family=how.family, affinity=how.affinity) if shared else Part()
        case ServicesPolicy():
            return services_part(
                policy,
                family=how.family,
                masquerade=how.masquerade,
                postrouting=POSTROUTING,
                forward=FORWARD,
            )
        case _:
            assert_never(policy)


def assemble(parts: Mapping[str, Part]) -> Rendered:
    """Join parts, by the names of their policies. Raises ValueError if two of them claim one chain."""
    nothing = ForwardAccept(())
    return _assembled({name: _piece(name, nothing, piece) for name, piece in parts.items()}, "")


def _piece(name: str, policy: Policy, piece: Part) -> _Piece:
    source = piece.source or Source("policy", name)
    return _Piece(policy, piece, source, {key: (source,) * len(rules) for key, rules in piece.chains.items()})


def _same_objects(some: Mapping[str, _Piece], others: Mapping[str, _Piece]) -> bool:
    return len(some) == len(others) and all(others.get(name) is piece for name, piece in some.items())


def _assembled(pieces: Mapping[str, _Piece], instance: str) -> Rendered:
    chains: dict[ChainKey, Rules] = {}
    origins: dict[ChainKey, tuple[Source, ...]] = {}
    for name in sorted(pieces):
        before = len(chains)
        chains.update(pieces[name].part.chains)
        origins.update(pieces[name].origins)
        if len(chains) != before + len(pieces[name].part.chains):
            raise ValueError(_claimed_twice(pieces, name))
    for key, rules in _dispatched(pieces).items():
        chains[key] = (*chains.get(key, ()), *(text for text, _ in rules))
        origins[key] = (*origins.get(key, ()), *(source for _, source in rules))
    sets = {name: timeout for piece in pieces.values() for name, timeout in piece.part.sets.items()}
    return Rendered(chains, _hooks(chains, instance), origins, instance, sets)


def _claimed_twice(pieces: Mapping[str, _Piece], name: str) -> str:
    claims = Counter(key for piece in pieces.values() for key in piece.part.chains)
    chains = sorted(key[1] for key in pieces[name].part.chains if claims[key] > 1)
    return f"two policies render the chain {chains[0]}"


def _dispatched(pieces: Mapping[str, _Piece]) -> Mapping[ChainKey, list[tuple[str, Source]]]:
    named = [(d, pieces[name].source) for name in sorted(pieces) for d in pieces[name].part.dispatch]
    found: dict[ChainKey, list[tuple[str, Source]]] = {}
    for dispatch, source in sorted(named, key=lambda pair: pair[0].order):
        found.setdefault(dispatch.chain, []).append((dispatch.text, source))
    return found


def _hooks(chains: Collection[ChainKey], instance: str) -> dict[ChainKey, Rules]:
    found: dict[ChainKey, Rules] = {}
    for hook in HOOKS:
        key = (hook.chain[0], hook.chain[1].replace(CHAIN_PREFIX, f"{CHAIN_PREFIX}{instance}-", 1))
        if (key if instance else hook.chain) in chains:
            text = _of_instance(hook.text, instance) if instance else hook.text
            found[hook.builtin] = (*found.get(hook.builtin, ()), text)
    return found


def _masquerade(policy: Masquerade, how: How) -> Part:
    overlay, own = _of(policy.overlay, how.family), _of(policy.own, how.family)
    if not overlay:
        return Part()
    texts = _masquerade_rules(overlay, own, MULTICAST[how.family], how.masquerade)
    dispatch = [Dispatch(MASQUERADE_ORDER, POSTROUTING, text) for text in texts]
    if how.services is None:
        foreign = rule("a service proxy masquerades these itself", "RETURN", matches=[MARKED])
        dispatch.insert(0, Dispatch(MARKED_ORDER, POSTROUTING, foreign))
    return Part(dispatch=tuple(dispatch))


def _masquerade_rules(
    overlay: list[IPNetwork], own: list[IPNetwork], multicast: IPNetwork, masquerade: str
) -> Iterator[str]:
    for src in overlay:
        for dst in overlay:
            yield rule("no NAT inside the overlay", "RETURN", src=src, dst=dst)
    for src in overlay:
        yield rule("containers to the outside", masquerade, src=src, not_dst=multicast)
    for dst in own:
        yield rule("containers here see the address of an outside client", "RETURN", dst=dst)
    for dst in overlay:
        yield rule("outside to a container elsewhere: the reply must pass here", masquerade, dst=dst)


def _forward_accept(policy: ForwardAccept, family: int) -> Part:
    overlay = _of(policy.overlay, family)
    texts = [rule("from containers", "ACCEPT", src=network) for network in overlay]
    texts += [rule("to containers", "ACCEPT", dst=network) for network in overlay]
    return Part(dispatch=tuple(Dispatch(ACCEPT_ORDER, FORWARD, text) for text in texts))


def _vxlan_guard(policy: VxlanGuard, family: int) -> Part:
    overlay = _of(policy.overlay, family)
    peers = None if policy.peers is None else [ip for ip in policy.peers if ip.version == family]
    if not overlay and not peers:
        return Part()
    drops = list(_forged(policy, overlay))
    dispatch = [Dispatch(GUARD_ORDER, chain, text) for chain in (INPUT, FORWARD) for text in drops]
    if peers is None:
        return Part(dispatch=tuple(dispatch))
    key = chain_key("filter", f"OVL-VXLAN-{policy.port}")
    jump = rule("who may send VXLAN frames to this host", key[1], udp_port=policy.port)
    return Part({key: _peer_rules(peers)}, (*dispatch, Dispatch(GUARD_ORDER, INPUT, jump)))


def _forged(policy: VxlanGuard, overlay: list[IPNetwork]) -> Iterator[str]:
    why = "a container must not forge VXLAN frames"
    for src in overlay:
        yield rule(why, "DROP", src=src, udp_port=policy.port)
    for device in policy.devices:
        yield rule(f"{why}, whatever source it names", "DROP", device=device, udp_port=policy.port)


def _peer_rules(peers: Iterable[IPAddress]) -> Rules:
    accepts = [rule("a VXLAN peer", "ACCEPT", src=ip_network(peer)) for peer in peers]
    return (*accepts, rule("no VXLAN peer", "DROP"))


def _of(networks: Iterable[IPNetwork], family: int) -> list[IPNetwork]:
    return [network for network in networks if network.version == family]
