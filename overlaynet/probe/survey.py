"""One host as it is, beside what it should be. Pure.

What is wanted follows from etcd and the host's own settings, what is there from a probe; neither asks the
agent, so a host can be judged whose agent is dead. The planner and the comparison are the agent's own
(`core`, `firewall`), so the two cannot disagree.

Every entry of a kernel table then has an *owner* (ours or foreign), a *source* (the lease, container or
policy it was made for) and a *state*: ``ok``, ``changed``, ``extra``, or ``missing`` for one that is not
there. Without etcd, source and state are unknown, and the tables can still be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Literal

from overlaynet.config import AgentConfig
from overlaynet.core.diff import changes, satisfied
from overlaynet.core.jsonstate import (
    change_to_json,
    kernel_from_json,
    rule_change_to_json,
    rules_from_json,
    source_to_json,
)
from overlaynet.core.leasing import own_lease
from overlaynet.core.overlay import vxlan_device
from overlaynet.core.ownership import Have, have, owned
from overlaynet.core.plan import Desired, desired
from overlaynet.core.underlay import local_host
from overlaynet.core.view import View
from overlaynet.errors import NetworkNotConfigured, NotReady
from overlaynet.firewall.chains import Rendered, is_ours
from overlaynet.firewall.compare import hooks_in
from overlaynet.firewall.iptables import Iptables
from overlaynet.model import DEFAULT_VNI, Identity, Workload
from overlaynet.state import (
    Change,
    Fdb,
    KernelState,
    Key,
    Neigh,
    Object,
    Route,
    RuleChange,
    RuleLine,
    RuleSet,
    Source,
)

LOCAL_TABLE = 255
"""The kernel's table of its own addresses; nobody adds to it, `ip route` does not show it, nor do we."""

_TABLES = {253: "default", 254: "main", 255: "local"}
_PROTOCOLS = {
    0: "unspec",
    1: "redirect",
    2: "kernel",
    3: "boot",
    4: "static",
    9: "ra",
    16: "dhcp",
    111: "overlaynet",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What one host should hold, and how that compares."""

    desired: Desired
    have: Have
    rendered: Rendered
    changes: tuple[Change, ...]
    rule_changes: tuple[RuleChange, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """One host. `plan` is None where etcd did not say what is wanted; `ours`: keys that carry our mark."""

    host: str
    kernel: KernelState
    rules: RuleSet
    ours: frozenset[Key]
    plan: Plan | None

    def changes_json(self) -> list[dict[str, Any]]:
        """Every difference, kernel first. Raises NotReady if nothing is known of what is wanted."""
        if self.plan is None:
            raise NotReady(f"it is not known what {self.host} should hold")
        sources = self.plan.desired.sources
        nobody = Source("none", "")
        found = [change_to_json(c, sources.get(c.obj.key, nobody)) for c in self.plan.changes]
        return found + [rule_change_to_json(c) for c in self.plan.rule_changes]


def job(view: View | None, config: AgentConfig) -> dict[str, Any]:
    """What to ask the probe on a host for."""
    vni = view.network.backend.vni if view and view.network else DEFAULT_VNI
    devices = (vxlan_device(vni), config.bridge.name)
    sysctls = ["net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"]
    sysctls += [f"net/ipv4/conf/{dev}/rp_filter" for dev in devices]
    if config.service.localhost_node_ports:
        underlays = {item.value.interface for item in view.nodes.values()} if view else set()
        sysctls += [f"net/ipv4/conf/{dev}/route_localnet" for dev in (*devices, *sorted(underlays))]
    return {"op": "observe", "sysctls": sysctls, "firewall": True, "instance": config.node.instance}


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a host besides what is seen on it. `view` None: etcd could not be asked;
    `workloads` None: its agent left no list, so etcd's counts."""

    host: str
    config: AgentConfig
    identity: Identity | None
    view: View | None
    workloads: Sequence[Workload] | None = None


def survey(known: Known, answer: Mapping[str, Any]) -> Survey:
    """Judge a probe's answer.

    Raises NetworkNotConfigured, NotReady (the host has no lease), UnderlayProblem or ValueInvalid."""
    return surveyed(known, kernel_from_json(answer["kernel"]), rules_from_json(answer["rules"]))


def surveyed(known: Known, kernel: KernelState, rules: RuleSet) -> Survey:
    """Judge what was seen on a host. Raises as `survey`, but for ValueInvalid."""
    networks = known.view.network.networks if known.view and known.view.network else ()
    ours = frozenset(obj.key for obj in owned(kernel, networks))
    plan = None if known.view is None else _plan(known, known.view, kernel, rules)
    return Survey(known.host, kernel, rules, ours, plan)


def _plan(known: Known, view: View, kernel: KernelState, rules: RuleSet) -> Plan:
    if view.network is None:
        raise NetworkNotConfigured(
            "no network is configured in etcd", next=["overlaynet network set FILE", "overlaynet network show"]
        )
    if known.identity is None:
        raise _no_lease(known.host, "its agent never ran: it has no identity")
    local = replace(local_host(known.config, known.identity, kernel), name=known.host)
    own = own_lease(view, local)
    if own is None:
        raise _no_lease(known.host, "no lease in etcd carries its node id")
    workloads = list(view.workloads_of(known.host)) if known.workloads is None else known.workloads
    want = desired(view, local, own.value, workloads)
    there = have(want.objects, kernel, view.network.networks)
    instance = known.config.node.instance
    affinity: Literal["ipset", "recent"] = "recent" if _remembers_in_lists(rules, instance) else "ipset"
    firewall = Iptables(random_fully=True, affinity=affinity, instance=instance)
    return Plan(
        desired=want,
        have=there,
        rendered=firewall.rendered(want.policies),
        changes=changes(want.objects, there.objects, there.refused),
        rule_changes=firewall.pending(want.policies, rules),
    )


def _remembers_in_lists(rules: RuleSet, instance: str) -> bool:
    """Whether services here know their clients by the match `recent`: hosts without ipset do, and are right."""
    return any(
        "-m recent --set " in line.text
        for key, lines in rules.chains.items()
        if is_ours(key[1], instance)
        for line in lines
    )


def _no_lease(host: str, evidence: str) -> NotReady:
    return NotReady(
        f"{host} holds no lease, so nothing says what it should hold",
        evidence=evidence,
        next=["overlaynet get leases", f"overlaynet logs {host}"],
    )


# --- kernel tables --------------------------------------------------------------------------------


def routes(survey: Survey) -> list[dict[str, Any]]:
    """Routes of every table but the kernel's own, as items of `get`."""
    shown = [r for r in survey.kernel.routes if r.table != LOCAL_TABLE]
    ordered = sorted(shown, key=lambda r: (r.dst.version, r.table, r.dst, r.metric))
    return list(_items(survey, ordered, Route, _route))


def neighs(survey: Survey) -> list[dict[str, Any]]:
    """Neighbour entries, as items of `get`."""
    ordered = sorted(survey.kernel.neighs, key=lambda n: (n.dev, n.ip.version, int(n.ip)))
    return list(_items(survey, ordered, Neigh, _neigh))


def fdb(survey: Survey) -> list[dict[str, Any]]:
    """Forwarding entries of bridges and VXLAN devices, as items of `get`."""
    ordered = sorted(survey.kernel.fdb, key=lambda f: (f.key not in survey.ours, f.dev, f.mac))
    return list(_items(survey, ordered, Fdb, _fdb))


def _items(
    survey: Survey, present: Iterable[Object], kind: type[Object], show: Callable[[Any], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    for obj in present:
        yield {"host": survey.host, **show(obj), **_judged(survey, obj)}
    if survey.plan is not None:
        for key, obj in survey.plan.desired.objects.items():
            if isinstance(obj, kind) and key not in survey.plan.have.objects:
                source = source_to_json(survey.plan.desired.sources[key])
                yield {"host": survey.host, **show(obj), **_about("overlaynet", source, "missing")}


def _judged(survey: Survey, obj: Object) -> dict[str, Any]:
    """Owner, source and state of an entry that is there."""
    plan, key = survey.plan, obj.key
    if key not in survey.ours and (plan is None or key not in plan.have.objects):
        return _about("foreign", None, "ok")
    if plan is None:
        return _about("overlaynet", None, None)
    want = plan.desired.objects.get(key)
    if want is None:
        return _about("overlaynet", None, "extra" if key in plan.have.objects else "ok")
    state = "ok" if satisfied(want, obj) else "changed"
    return _about("overlaynet", source_to_json(plan.desired.sources[key]), state)


def _about(owner: str, source: dict[str, Any] | None, state: str | None) -> dict[str, Any]:
    return {"owner": owner, "source": source, "state": state}


def _route(route: Route) -> dict[str, Any]:
    return {
        "dst": "default" if route.dst.prefixlen == 0 else str(route.dst),
        "via": _text(route.via),
        "dev": route.dev,
        "table": _TABLES.get(route.table, str(route.table)),
        "metric": route.metric,
        "proto": _PROTOCOLS.get(route.protocol, str(route.protocol)),
        "onlink": route.onlink,
        "type": route.type,
    }


def _neigh(entry: Neigh) -> dict[str, Any]:
    return {"ip": str(entry.ip), "dev": entry.dev, "mac": _text(entry.mac), "nud": entry.state}


def _fdb(entry: Fdb) -> dict[str, Any]:
    where = {"mac": str(entry.mac), "dev": entry.dev, "dst": _text(entry.dst)}
    return {**where, "master": entry.master, "entry_state": entry.state}


def _text(value: object) -> str | None:
    return None if value is None else str(value)


# --- rules ----------------------------------------------------------------------------------------


def rules(survey: Survey) -> list[dict[str, Any]]:
    """Every rule with its counters, as items of `get`; those that are missing have no position."""
    found = [item for key in survey.rules.chains for item in _chain(survey, key)]
    if survey.plan is not None:
        for key, wanted in survey.plan.rendered.chains.items():
            if key not in survey.rules.chains:
                found += [_missing(survey, key, text) for text in wanted]
    return found


def _chain(survey: Survey, key: tuple[str, str]) -> Iterator[dict[str, Any]]:
    lines = survey.rules.chains[key]
    ours = {line.text for line in lines} if is_ours(key[1]) else set(hooks_in(lines))
    wanted = _wanted(survey, key)
    right = tuple(line.text for line in lines if line.text in ours) == wanted
    for position, line in enumerate(lines, start=1):
        if line.text in ours:
            yield _rule(survey, key, position, line, _rule_about(survey, key, line.text, wanted, right=right))
        else:
            yield _rule(survey, key, position, line, _about("foreign", None, "ok"))
    for text in wanted:
        if text not in ours:
            yield _missing(survey, key, text)


def _wanted(survey: Survey, key: tuple[str, str]) -> tuple[str, ...]:
    if survey.plan is None:
        return ()
    rendered = survey.plan.rendered
    return (rendered.chains if is_ours(key[1]) else rendered.hooks).get(key, ())


def _rule_about(
    survey: Survey, key: tuple[str, str], text: str, wanted: tuple[str, ...], *, right: bool
) -> dict[str, Any]:
    if survey.plan is None:
        return _about("overlaynet", None, None)
    if text not in wanted:
        return _about("overlaynet", None, "extra")
    return _about("overlaynet", _rule_source(survey.plan, key, text), "ok" if right else "changed")


def _rule_source(plan: Plan, key: tuple[str, str], text: str) -> dict[str, Any]:
    origins = plan.rendered.origins.get(key, ())
    for wanted, origin in zip_longest(plan.rendered.chains.get(key, ()), origins):
        if wanted == text and origin is not None:
            return source_to_json(origin)
    return {"kind": "policy", "name": "hooks"}


def _missing(survey: Survey, key: tuple[str, str], text: str) -> dict[str, Any]:
    assert survey.plan is not None
    about = _about("overlaynet", _rule_source(survey.plan, key, text), "missing")
    return {**_rule(survey, key, None, RuleLine(text), about), "packets": None, "bytes": None}


def _rule(
    survey: Survey, key: tuple[str, str], position: int | None, line: RuleLine, about: dict[str, Any]
) -> dict[str, Any]:
    return {
        "host": survey.host,
        "table": key[0],
        "chain": key[1],
        "position": position,
        "text": line.text,
        "packets": line.packets,
        "bytes": line.octets,
        **about,
    }
