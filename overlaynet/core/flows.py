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
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from overlaynet.addr import IPAddress, IPNetwork
from overlaynet.state import Endpoint, Flow, Policy, ServicePortPolicy, ServicesPolicy

PROTOCOLS = frozenset({"tcp", "udp", "sctp"})


class Frontend(NamedTuple):
    """Where a client sends to, in the order in which a flow has it."""

    protocol: str
    ip: IPAddress
    port: int


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a flow is judged by: the endpoints that serve each frontend; frontends of services that went; and
    addresses that belong to services alone."""

    serving: Mapping[Frontend, frozenset[Endpoint]]
    departed: frozenset[Frontend] = frozenset()
    networks: tuple[IPNetwork, ...] = ()
    strays: frozenset[IPAddress] = frozenset()

    def stale(self, flows: Iterable[Flow]) -> Iterator[Flow]:
        """Those to be forgotten."""
        return (flow for flow in flows if self.is_stale(flow))

    def is_stale(self, flow: Flow) -> bool:
        if flow.protocol == "tcp" and (flow.replied or flow.state != "SYN_SENT"):
            return False
        frontend = Frontend(flow.protocol, flow.dst, flow.dport)
        leads_to = (flow.reply_src, flow.reply_sport)
        translated = leads_to != frontend[1:]
        serving = self.serving.get(frontend)
        if serving is not None:
            return leads_to not in serving and (translated or bool(serving))
        return translated and (frontend in self.departed or self._services_own(flow.dst))

    def _services_own(self, ip: IPAddress) -> bool:
        return ip in self.strays or any(ip in network for network in self.networks)


@dataclass(slots=True)
class Cleanup:
    """What is to be remembered from one cleanup to the next. `done` is what the last one that succeeded went
    by, None before the first; `known` are all frontends since then; `owed` protocols whose cleanup failed."""

    done: Mapping[str, Policy] | None = None
    local: frozenset[IPAddress] = frozenset()
    known: frozenset[Frontend] = frozenset()
    owed: frozenset[str] = field(default=PROTOCOLS)

    def due(self, policies: Mapping[str, Policy], local: Collection[IPAddress]) -> frozenset[str]:
        """The protocols whose flows have to be judged again, because what they are judged by has changed.
        `local` are this host's own addresses."""
        if self.done is None or self.owed:
            return self.owed
        changed = _service_ports(policies, but=self.done) + _service_ports(self.done, but=policies)
        if self.local != frozenset(local) or _node_ports_at(policies) != _node_ports_at(self.done):
            changed += [policy for policy in _service_ports({**self.done, **policies}) if policy.node_port]
        return frozenset(policy.protocol for policy in changed)

    def verdicts(
        self,
        policies: Mapping[str, Policy],
        local: Collection[IPAddress],
        networks: tuple[IPNetwork, ...] = (),
    ) -> Verdicts:
        """`networks` are the service networks, which are known also where there is no service."""
        shared = _shared(policies)
        serving = frontends(policies, local)
        return Verdicts(
            serving,
            self.known - serving.keys(),
            tuple({*networks, *(shared.networks if shared else ())}),
            frozenset(shared.strays if shared else ()),
        )

    def succeeded(self, policies: Mapping[str, Policy], local: Collection[IPAddress]) -> None:
        """All that was stale under these is forgotten."""
        self.done, self.local, self.owed = policies, frozenset(local), frozenset()
        self.known = frozenset(frontends(policies, local))

    def failed(
        self, policies: Mapping[str, Policy], local: Collection[IPAddress], protocols: frozenset[str]
    ) -> None:
        """Not all of it: these protocols' flows have to be judged again, whatever is wanted then."""
        self.known |= frontends(policies, local).keys()
        self.owed |= protocols


def frontends(
    policies: Mapping[str, Policy], local: Collection[IPAddress]
) -> dict[Frontend, frozenset[Endpoint]]:
    """Every frontend with all endpoints that serve it; what two services share, both serve."""
    found: dict[Frontend, frozenset[Endpoint]] = {}
    at = _node_ips(_shared(policies), local)
    for policy in _service_ports(policies):
        for frontend in _frontends_of(policy, at):
            before = found.get(frontend)
            found[frontend] = before | policy.serving if before else policy.serving
    return found


def _frontends_of(policy: ServicePortPolicy, node_ips: Collection[IPAddress]) -> Iterator[Frontend]:
    protocol = policy.protocol
    for ip in (*policy.cluster_ips, *policy.external_ips, *policy.ingress_ips):
        yield Frontend(protocol, ip, policy.port)
    if policy.node_port:
        for ip in node_ips:
            yield Frontend(protocol, ip, policy.node_port)


def _node_ips(shared: ServicesPolicy | None, local: Collection[IPAddress]) -> list[IPAddress]:
    """The addresses of this host that nodePorts are open on."""
    if shared is None:
        return []
    chosen = local if shared.node_ips is None else [ip for ip in shared.node_ips if ip in local]
    return [ip for ip in chosen if not ip.is_loopback or shared.localhost_node_ports]


def _shared(policies: Mapping[str, Policy]) -> ServicesPolicy | None:
    return next((policy for policy in policies.values() if isinstance(policy, ServicesPolicy)), None)


def _node_ports_at(policies: Mapping[str, Policy]) -> object:
    """What decides, beside its own addresses, where a host's nodePorts are open."""
    shared = _shared(policies)
    return shared and (shared.node_ips, shared.localhost_node_ports)


def _service_ports(
    policies: Mapping[str, Policy], *, but: Mapping[str, Policy] | None = None
) -> list[ServicePortPolicy]:
    """Policies of service ports; without those by which flows are judged as they are by another's."""
    but = but or {}
    return [
        policy
        for name, policy in policies.items()
        if isinstance(policy, ServicePortPolicy) and not _judges_alike(policy, but.get(name))
    ]


def _judges_alike(one: ServicePortPolicy, other: Policy | None) -> bool:
    if one is other:
        return True
    return isinstance(other, ServicePortPolicy) and _judged_by(one) == _judged_by(other)


def _judged_by(policy: ServicePortPolicy) -> tuple[object, ...]:
    return (
        policy.protocol, policy.port, policy.node_port, policy.serving,
        policy.cluster_ips, policy.external_ips, policy.ingress_ips,
    )  # fmt: skip
