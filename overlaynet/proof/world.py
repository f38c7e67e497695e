"""The state of every place on a packet's possible ways, read at one moment: a `World`.

Three sources meet. Probes read each network namespace (kernel tables, sysctls, rules, listening sockets); etcd
says what hosts should hold, by the planner that agents use themselves; agents say how they are. Each may be
silent: a host whose probe fails has no place and a reason, without etcd nothing is known to be wanted, and a
dead agent is a fact like any other.

Which places: those of the packet's sender and of its possible destinations, their hosts, and in a small cluster
all other hosts as well, so that a packet that goes astray is seen there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, NamedTuple

from overlaynet.cluster import known
from overlaynet.cluster.cluster import AGENT_TIMEOUT_S, Cluster, Host, each_host, read_view
from overlaynet.core.jsonstate import kernel_from_json, rules_from_json
from overlaynet.core.view import View
from overlaynet.errors import (
    NetworkError,
    OverlayError,
    StoreError,
    ValueInvalid,
    WorkloadError,
    from_json,
)
from overlaynet.model import DEFAULT_VXLAN_PORT
from overlaynet.probe.survey import Known, surveyed
from overlaynet.proof.question import Directory
from overlaynet.proof.sessions import Sessions
from overlaynet.state import RuleSet
from overlaynet.trace.model import (
    CONTAINER,
    HOST,
    OUTSIDE,
    Listener,
    Node,
    Place,
    Point,
    Wanted,
    World,
)

FEW_HOSTS = 6
"""Up to this many hosts all are looked at; in larger clusters those that the packet concerns."""
DOWN = "down"


class Where(NamedTuple):
    """A place to look at."""

    name: str
    kind: str
    host: str | None
    netns: str | None


@dataclass(frozen=True, slots=True)
class Records:
    """What is known without looking at any kernel. `agents`: each one's state by host; "down" if none answers.
    `error`: why etcd could not be asked."""

    directory: Directory
    agents: Mapping[str, str]
    stale: Mapping[str, Mapping[str, Any]]
    error: OverlayError | None = None


def read_records(cluster: Cluster) -> Records:
    """Names, addresses, etcd's view, agents' states. Raises no StoreError."""
    view, error = None, None
    try:
        view = read_view(cluster)
    except StoreError as refusal:
        error = refusal
    hosts = cluster.hosts()
    agents = each_host(hosts, lambda host: _agent_state(cluster, host))
    stale = each_host(hosts, lambda host: known.kept_leases(cluster, host, view)) if view else {}
    directory = Directory(hosts, known.containers(cluster, view), cluster.outside(), view)
    return Records(
        directory,
        {name: state for name, state in agents.items() if isinstance(state, str)},
        {name: kept for name, kept in stale.items() if not isinstance(kept, OverlayError)},
        error,
    )


def _agent_state(cluster: Cluster, host: Host) -> str:
    try:
        return str(cluster.agent(host.name, AGENT_TIMEOUT_S).get("/v1/status")["agent"]["state"])
    except OverlayError:
        return DOWN


# --- which places ---------------------------------------------------------------------------------


def places_for(directory: Directory, containers: Iterable[str], hosts: Iterable[str] = ()) -> list[Where]:
    """The places to look at for packets between these containers and hosts; ``outside`` is always one."""
    inside = [c for c in directory.containers if c.name in set(containers)]
    concerned = {*hosts, *(c.host for c in inside)}
    everybody = len(directory.hosts) <= FEW_HOSTS
    found = [Where(h.name, HOST, h.name, h.netns) for h in directory.hosts if everybody or h.name in concerned]
    found += [Where(c.name, CONTAINER, c.host, c.netns) for c in inside]
    if directory.outside:
        found.append(Where(OUTSIDE, OUTSIDE, None, directory.outside.netns))
    return found


# --- looking --------------------------------------------------------------------------------------


def look(cluster: Cluster, sessions: Sessions, records: Records, wanted: Sequence[Where]) -> World:
    """Read these places. Never fails because one of them cannot be read."""
    answers = sessions.ask_each(places_jobs(sessions, wanted, firewall=True))
    seen, errors = _sorted_out(answers, wanted, sessions)
    places = {where.name: _place(where, seen[where.name]) for where in wanted if where.name in seen}
    judged = {host: _wanted(cluster, records, places[host]) for host in _hosts_among(places)}
    return World(
        places=places,
        cables=dict(_cables(places)),
        wanted={name: one for name, one in judged.items() if one is not None},
        nodes={host.name: _node(records, host, errors.get(host.name, "")) for host in records.directory.hosts},
        services=records.directory.world_services(),
        unseen=errors,
        vxlan_port=_vxlan_port(records.directory.view),
        one_clock=cluster.one_machine,
        has_faults=cluster.has_faults(),
    )


def places_jobs(sessions: Sessions, wanted: Iterable[Where], *, firewall: bool) -> dict[str, dict[str, Any]]:
    """For each machine the job of reading its places, with their rules or without."""
    jobs: dict[str, dict[str, Any]] = {}
    for where in wanted:
        empty = {"op": "places", "places": [], "firewall": firewall}
        job = jobs.setdefault(sessions.machine(where.host), empty)
        job["places"].append({"name": where.name, "netns": where.netns})
    return jobs


def _sorted_out(
    answers: Mapping[str, Mapping[str, Any] | OverlayError], wanted: Sequence[Where], sessions: Sessions
) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    """Documents by place, and errors by place."""
    seen: dict[str, Mapping[str, Any]] = {}
    errors: dict[str, str] = {}
    for machine, answer in answers.items():
        if isinstance(answer, OverlayError):
            here = (where.name for where in wanted if sessions.machine(where.host) == machine)
            errors |= dict.fromkeys(here, _words(answer))
            continue
        for document in answer["places"]:
            if document["error"] is None:
                seen[document["name"]] = document
            else:
                errors[document["name"]] = _words(from_json(document["error"]))
    return seen, errors


def _words(error: OverlayError) -> str:
    return ": ".join(filter(None, (error.message, error.evidence.partition("\n")[0])))


def _hosts_among(places: Mapping[str, Place]) -> Iterator[str]:
    return (name for name, place in places.items() if place.kind == HOST)


def _place(where: Where, document: Mapping[str, Any]) -> Place:
    rules = document["rules"]
    return Place(
        name=where.name,
        kind=where.kind,
        host=where.host,
        netns=where.netns,
        kernel=kernel_from_json(document["kernel"]),
        rules=None if rules is None else rules_from_json(rules),
        nft=document["nft"],
        listening=frozenset(map(_listener, document["listening"])),
        unread=tuple(document["unread"]),
    )


def _listener(document: Mapping[str, Any]) -> Listener:
    ip = document["ip"]
    return Listener(document["protocol"], None if ip is None else ip_address(ip), document["port"])


def _cables(places: Mapping[str, Place]) -> Iterator[tuple[Point, Point]]:
    """A container's veth and its other end on the container's host: each names the other's ifindex."""
    for place in places.values():
        host = places.get(place.host or "")
        if place.kind != CONTAINER or host is None:
            continue
        ends = {link.ifindex: link for link in host.kernel.links.values()}
        for link in place.kernel.links.values():
            other = ends.get(link.peer) if link.peer is not None else None
            if link.type == "veth" and other and (other.type, other.peer) == ("veth", link.ifindex):
                inner, outer = Point(place.name, link.name), Point(host.name, other.name)
                yield inner, outer
                yield outer, inner


def _node(records: Records, host: Host, error: str) -> Node:
    view = records.directory.view
    return Node(
        name=host.name,
        underlay_ips=(ip_address(host.underlay_ip),) if host.underlay_ip else (),
        agent=records.agents.get(host.name),
        live=None if view is None else any(item.value.name == host.name for item in view.nodes.values()),
        error=error,
    )


def _vxlan_port(view: View | None) -> int:
    return view.network.backend.port if view and view.network else DEFAULT_VXLAN_PORT


# --- what should be there -------------------------------------------------------------------------


def _wanted(cluster: Cluster, records: Records, place: Place) -> Wanted | None:
    """What this host should hold; None where nobody can say."""
    view = records.directory.view
    if view is None:
        return None
    view = replace(view, stale=dict(records.stale.get(place.name, {})))
    try:
        about = Known(
            place.name,
            cluster.config(place.name),
            cluster.identity(place.name),
            view,
            cluster.workloads(place.name),
        )
        plan = surveyed(about, place.kernel, place.rules or RuleSet("legacy")).plan
    except (NetworkError, WorkloadError, ValueInvalid):
        return None
    if plan is None:
        return None
    return Wanted(
        objects=plan.desired.objects,
        sources=plan.desired.sources,
        chains=plan.rendered.chains,
        hooks=plan.rendered.hooks,
        origins=plan.rendered.origins,
    )
