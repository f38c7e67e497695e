"""Which connections of the kernel's table lead to an endpoint that has gone, and so must be forgotten.

Rules of NAT are asked for a connection's first packet only; the table (conntrack) has the answer for all that
follow. A UDP sender that stays on one socket never begins a new connection, so it goes on sending to an
endpoint that is gone, or past a service that came later, until its entry is deleted.

Judged is what is there against what is wanted now, so a restart with nothing changed deletes nothing, and a
change that was missed is made up for. A connection *leads* where its replies come from:

    first packet went to              leads to                       forgotten
    an address and port of a service  an endpoint that still serves  never
                                      anything else                  yes
                                      itself, not translated         if the service has endpoints now
    the service network or a stray    anything else                  yes: no service has this port any more
    what a service had until lately   anything else                  yes
    anything else                                                    never

That an endpoint is not ready, or not chosen by a policy or for its zone, is no reason: connections that exist
may end in peace. TCP ends by itself when an endpoint goes, and blindly forgetting it would cut what an
endpoint that is going wants to finish; only an attempt that nobody answered is forgotten (SYN_SENT), which
would else be repeated to where nobody is. A nodePort is one only at this host's own addresses: another
host's may be just passing.

Where a service outside the service network, or a nodePort, has gone altogether, nothing in the present tells
its connections from somebody else's; so `Cleanup` remembers what was, until the deletion succeeded.

`Cleanup` is kept up from one set of policies to the next at the cost of what changed between them: a policy
that is the same object is not looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from overlaynet.addr import IPAddress, IPNetwork
from overlaynet.state import Endpoint, Flow, Policy, ServicePortPolicy, ServicesPolicy

PROTOCOLS = frozenset({"tcp", "udp", "sctp"})
NOBODY: frozenset[Endpoint] = frozenset()


class Frontend(NamedTuple):
    """Where a client sends to, in the order in which a flow has it."""

    protocol: str
    ip: IPAddress
    port: int


@dataclass(slots=True)
class Cleanup:
    """What flows are judged by. `owed` are the protocols whose flows have to be judged: all at first, then
    those of service ports that changed since the last cleanup that succeeded. `departed` are frontends that
    went since then. `networks` are the service networks, known also where there is no service."""

    networks: tuple[IPNetwork, ...] = ()
    owed: frozenset[str] = PROTOCOLS
    departed: set[Frontend] = field(default_factory=set)
    _strays: frozenset[IPAddress] = frozenset()
    _node_ips: frozenset[IPAddress] = frozenset()
    _policies: Mapping[str, Policy] = field(default_factory=dict)
    _serving: dict[Frontend, dict[str, frozenset[Endpoint]]] = field(default_factory=dict)

    def follow(
        self,
        policies: Mapping[str, Policy],
        local: Collection[IPAddress],
        networks: tuple[IPNetwork, ...] = (),
    ) -> frozenset[str]:
        """From now on these policies hold, on a host with these own addresses; answer what is owed."""
        before, shared = self._policies, _shared(policies)
        node_ips, old_node_ips = _open_at(shared, local), self._node_ips
        gone = [name for name in before if name not in policies]
        changed = [name for name, policy in policies.items() if before.get(name) is not policy]
        if node_ips != old_node_ips:
            changed = [*changed, *(name for name, policy in before.items() if _has_node_port(policy))]
        self.networks = tuple({*networks, *(shared.networks if shared else ())})
        self._strays = frozenset(shared.strays if shared else ())
        for name in dict.fromkeys([*gone, *changed]):
            self._replace(name, before.get(name), old_node_ips, policies.get(name), node_ips)
        self._policies, self._node_ips = policies, node_ips
        return self.owed

    def stale(self, flows: Iterable[Flow]) -> Iterator[Flow]:
        """Those to be forgotten."""
        return (flow for flow in flows if self.is_stale(flow))

    def is_stale(self, flow: Flow) -> bool:
        if flow.protocol == "tcp" and (flow.replied or flow.state != "SYN_SENT"):
            return False
        frontend = Frontend(flow.protocol, flow.dst, flow.dport)
        leads_to = (flow.reply_src, flow.reply_sport)
        translated = leads_to != frontend[1:]
        serving = self._serving.get(frontend)
        if serving is not None:
            served = NOBODY.union(*serving.values())
            return leads_to not in served and (translated or bool(served))
        return translated and (frontend in self.departed or self._services_own(flow.dst))

    def done(self) -> None:
        """All that was stale is forgotten."""
        self.owed = frozenset()
        self.departed.clear()

    def frontends(self) -> Mapping[Frontend, frozenset[Endpoint]]:
        """Every frontend with all endpoints that serve it; what two services share, both serve."""
        return {frontend: NOBODY.union(*by.values()) for frontend, by in self._serving.items()}

    def _services_own(self, ip: IPAddress) -> bool:
        return ip in self._strays or any(ip in network for network in self.networks)

    def _replace(
        self,
        name: str,
        old: Policy | None,
        old_node_ips: Collection[IPAddress],
        new: Policy | None,
        node_ips: Collection[IPAddress],
    ) -> None:
        left, came = set(_frontends_of(old, old_node_ips)), set(_frontends_of(new, node_ips))
        if left == came and _serving(old) == _serving(new):
            return
        for frontend in left - came:
            self._leave(frontend, name)
        for frontend in came:
            self.departed.discard(frontend)
            self._serving.setdefault(frontend, {})[name] = _serving(new)
        self.owed |= {frontend.protocol for frontend in left | came}

    def _leave(self, frontend: Frontend, name: str) -> None:
        by = self._serving[frontend]
        del by[name]
        if not by:
            del self._serving[frontend]
            self.departed.add(frontend)


def _frontends_of(policy: Policy | None, node_ips: Collection[IPAddress]) -> Iterator[Frontend]:
    if not isinstance(policy, ServicePortPolicy):
        return
    protocol = policy.protocol
    for ip in (*policy.cluster_ips, *policy.external_ips, *policy.ingress_ips):
        yield Frontend(protocol, ip, policy.port)
    if policy.node_port:
        for ip in node_ips:
            yield Frontend(protocol, ip, policy.node_port)


def _serving(policy: Policy | None) -> frozenset[Endpoint]:
    return policy.serving if isinstance(policy, ServicePortPolicy) else NOBODY


def _has_node_port(policy: Policy) -> bool:
    return isinstance(policy, ServicePortPolicy) and bool(policy.node_port)


def _shared(policies: Mapping[str, Policy]) -> ServicesPolicy | None:
    return next((policy for policy in policies.values() if isinstance(policy, ServicesPolicy)), None)


def _open_at(shared: ServicesPolicy | None, local: Collection[IPAddress]) -> frozenset[IPAddress]:
    """The addresses of this host that nodePorts are open on."""
    if shared is None:
        return frozenset()
    chosen = local if shared.node_ips is None else [ip for ip in shared.node_ips if ip in local]
    return frozenset(ip for ip in chosen if not ip.is_loopback or shared.localhost_node_ports)
