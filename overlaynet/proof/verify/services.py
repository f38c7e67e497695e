"""Is every service answered where it should be, by all of its endpoints, and refused where it should be?

What should become of a call follows from the records in etcd alone, by the oracle that knows nothing of rules
(`overlaynet.trace.servicewalk`); what does become of it is tried. So this finds rules that differ from what is
wanted, and endpoints that are ready and do not answer.

Callers are each host and one container on it; nodePorts are called by the hosts themselves and from outside. A
caller calls so often that an endpoint which is never chosen is found with all but certainty, and one that is
chosen far too rarely or often as well (by 6 standard deviations).

That a call is answered says that the answer came from the called address, since a socket takes no other; what
containers receive is looked at all the same, for answers under an endpoint's own address.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NamedTuple

from overlaynet.addr import IPAddress
from overlaynet.cluster.cluster import read_view
from overlaynet.core.view import View
from overlaynet.errors import OverlayError
from overlaynet.probe import survey as surveying
from overlaynet.probe.calls import NOT_SENT, SILENT, SPOKEN
from overlaynet.probe.mesh import FAIL, INCONCLUSIVE, PASS
from overlaynet.probe.survey import Known
from overlaynet.proof.network import Network
from overlaynet.proof.packets import Packets
from overlaynet.proof.points import CONTAINER_DEVICE, where_is
from overlaynet.proof.predicates import tcp
from overlaynet.proof.verify.report import Check, Suite
from overlaynet.state import Policy, ServicePortPolicy
from overlaynet.trace.model import OUTSIDE
from overlaynet.trace.servicewalk import Outcome, Packet, Verdict, walk

NAME = "services"
MOST_HOSTS = 5
MOST_CALLS = 200
MISSED_BY_CHANCE = 1e-6
"""How likely it may be that an endpoint is not chosen although it could be."""
DEVIATIONS = 6
WAIT_S = 0.5
CALLERS_A_JOB = 12
COOKIE = "a5" * 8
TCP, UDP = "tcp", "udp"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Here:
    """A host that translates calls: what it should do, its addresses (`ip`: on the underlay), and by which
    devices containers and others come to it."""

    host: str
    ip: IPAddress
    netns: str | None
    policies: tuple[Policy, ...]
    own: frozenset[IPAddress]
    bridge: str
    underlay: str

    @property
    def ports(self) -> list[ServicePortPolicy]:
        return [p for p in self.policies if isinstance(p, ServicePortPolicy)]


class Caller(NamedTuple):
    """Who calls, and by which device its packets come to the host that translates; None: it is that host."""

    name: str
    ip: IPAddress
    device: str | None


@dataclass(frozen=True, slots=True)
class Call:
    """One caller and one address of one service port, with all that may become of it."""

    caller: Caller
    here: Here
    port: ServicePortPolicy
    dst: IPAddress
    dst_port: int
    outcomes: frozenset[Outcome]

    @property
    def id(self) -> str:
        return f"{self.caller.name}:{self.port.name}/{self.port.protocol}:{self.dst}:{self.dst_port}"

    @property
    def endpoints(self) -> set[str]:
        """Those that may answer."""
        return {f"{o.endpoint.ip}:{o.endpoint.port}" for o in self.outcomes if o.endpoint is not None}

    @property
    def count(self) -> int:
        return min(MOST_CALLS, calls_needed(len(self.endpoints))) if self.endpoints else 1


def calls_needed(endpoints: int) -> int:
    """So many that an endpoint which is chosen with equal chance is hardly ever left out."""
    if endpoints == 1:
        return 3
    return math.ceil(math.log(MISSED_BY_CHANCE / endpoints) / math.log(1 - 1 / endpoints))


# --- running it -----------------------------------------------------------------------------------


def run(net: Network, say: Say) -> Suite:
    """Call every service. Raises StoreError without etcd, and what a probe raises that reaches nobody."""
    say("services: what should become of calls")
    view = read_view(net.cluster)
    if not view.services:
        return Suite(NAME, (), skipped="no service to call")
    heres, unknown = _heres(net, view)
    calls = [call for here in heres for call in plan(here, _callers(net, here))]
    say(f"services: {sum(call.count for call in calls)} calls")
    lookouts = sorted({c.caller.name for c in calls if c.caller.device == c.here.bridge})
    with net.capture([f"{name}:{CONTAINER_DEVICE}" for name in lookouts], "tcp", dead=True) as packets:
        results = _carry_out(net, calls)
    names = _names(net)
    checks = [judge(call, results.get(call.id), _senders(call, packets, names), names) for call in calls]
    return Suite(NAME, (*checks, *unknown))


def _heres(net: Network, view: View) -> tuple[list[Here], list[Check]]:
    """Hosts of which it is known what they should do, and a check for each other one."""
    heres, unknown = [], []
    for host in net.hosts[:MOST_HOSTS]:
        try:
            heres.append(_here(net, view, host))
        except OverlayError as error:
            evidence = " ".join(filter(None, [error.message, error.evidence]))
            unknown.append(
                Check(host, host, "services", INCONCLUSIVE, "not_known", evidence, next=f"diff {host}")
            )
    return heres, unknown


def _here(net: Network, view: View, host: str) -> Here:
    cluster, where = net.cluster, where_is(net.directory, host)
    config = cluster.config(host)
    job = {**surveying.job(view, config), "netns": where.netns}
    answer = net.sessions.ask(net.sessions.machine(host), job)
    known = Known(host, config, cluster.identity(host), view, cluster.workloads(host))
    found = surveying.survey(known, answer)
    assert found.plan is not None
    ip, addresses = net.address_of(host), found.kernel.addresses
    return Here(
        host=host,
        ip=ip,
        netns=where.netns,
        policies=tuple(found.plan.desired.policies.values()),
        own=frozenset(address.interface.ip for address in addresses),
        bridge=config.bridge.name,
        underlay=next((address.dev for address in addresses if address.interface.ip == ip), ""),
    )


def _callers(net: Network, here: Here) -> list[Caller]:
    """The host, a container on it (one that is nobody's endpoint, if there is one), and who is outside."""
    behind = {endpoint.ip for port in here.ports for endpoint in (*port.cluster, *port.local)}
    inside = [c for c in net.directory.containers if c.host == here.host and c.ips]
    inside.sort(key=lambda c: ip_address(c.ips[0]) in behind)
    found = [Caller(here.host, here.ip, None)]
    found += [Caller(c.name, ip_address(c.ips[0]), here.bridge) for c in inside[:1]]
    if net.directory.outside:
        found.append(Caller(OUTSIDE, net.address_of(OUTSIDE), here.underlay))
    return found


def plan(here: Here, callers: Sequence[Caller]) -> Iterator[Call]:
    """Every call that a service has a say in."""
    for port in here.ports:
        for caller in callers:
            for dst, number in _frontends(port, here, caller) if port.protocol in (TCP, UDP) else ():
                packet = Packet(caller.ip, dst, port.protocol, number, caller.device)
                outcomes = walk(here.policies, packet, here.own)
                if Verdict.GOES_ON not in {outcome.verdict for outcome in outcomes}:
                    yield Call(caller, here, port, dst, number, outcomes)


def _frontends(port: ServicePortPolicy, here: Here, caller: Caller) -> Iterator[tuple[IPAddress, int]]:
    """Whereto this caller can call it: who is outside knows no way but to hosts."""
    if caller.name != OUTSIDE:
        for ip in (*port.cluster_ips, *port.external_ips, *port.ingress_ips):
            if ip.version == here.ip.version:
                yield ip, port.port
    if port.node_port:
        yield here.ip, port.node_port


def _carry_out(net: Network, calls: Iterable[Call]) -> dict[str, Mapping[str, Any]]:
    """Results by the calls' ids. A machine whose probe fails has none. Silent calls take seconds each, so a
    probe is asked for a few callers at a time: each answer is there long before it would be given up."""
    asked: dict[str, list[dict[str, Any]]] = {}
    for call in calls:
        where = where_is(net.directory, call.caller.name)
        asked.setdefault(net.sessions.machine(where.host), []).append(_job(call, where.netns))
    results: dict[str, Mapping[str, Any]] = {}
    for start in range(0, max(map(len, asked.values()), default=0), CALLERS_A_JOB):
        parts = {machine: some[start : start + CALLERS_A_JOB] for machine, some in asked.items()}
        jobs = {machine: {"op": "calls", "calls": part} for machine, part in parts.items() if part}
        for answer in net.sessions.ask_each(jobs).values():
            if not isinstance(answer, OverlayError):
                results |= {one["id"]: one for one in answer["results"]}
    return results


def _job(call: Call, netns: str | None) -> dict[str, Any]:
    send = {
        "netns": netns,
        "protocol": call.port.protocol,
        "src": str(call.caller.ip),
        "dst": str(call.dst),
        "dst_port": call.dst_port,
        "wait_s": WAIT_S,
        "cookie": COOKIE,
    }
    return {"id": call.id, "count": call.count, "send": send, "translator": call.here.netns}


def _senders(call: Call, packets: Packets, names: Mapping[str, str]) -> set[str]:
    """Endpoints that the caller was answered by under their own address. One that calls itself is its own."""
    point = f"{call.caller.name}:{CONTAINER_DEVICE}"
    if call.port.protocol != TCP or point not in packets.points:
        return set()
    came = packets.at(point).incoming.where(tcp(dst=str(call.caller.ip)))
    senders = {f"{packet.innermost.src}:{packet.innermost.src_port}" for packet in came}
    return {endpoint for endpoint in senders & call.endpoints if names.get(endpoint) != call.caller.name}


def _names(net: Network) -> dict[str, str]:
    """Containers by their addresses."""
    return {ip: c.name for c in net.directory.containers for ip in c.ips}


# --- judging it -----------------------------------------------------------------------------------


class Finding(NamedTuple):
    """What is wrong with a call's results."""

    verdict: str
    reason: str
    evidence: str


def judge(
    call: Call, result: Mapping[str, Any] | None, foreign: Iterable[str], names: Mapping[str, str]
) -> Check:
    """What results prove. `foreign`: endpoints that answered under their own address; `names`: by address."""
    if result is None or (result["error"] and not result["answers"]):
        why = "its probe did not report" if result is None else result["error"]
        return _check(call, Finding(INCONCLUSIVE, "probe_failed", why), None, "")
    answers, endpoints = Counter(result["answers"]), Counter(result["endpoints"])
    told = _told(answers, endpoints, names)
    findings = _answered(call, answers, endpoints, foreign) if call.endpoints else _refused(call, answers)
    finding = next(findings, None)
    if finding is not None and result["error"]:
        finding = finding._replace(evidence=f"{finding.evidence}; {result['error']}")
    return _check(call, finding, result["rtt_ms"], told)


def _answered(
    call: Call, answers: Counter[str], endpoints: Counter[str], foreign: Iterable[str]
) -> Iterator[Finding]:
    """Whatever speaks against its being answered by every endpoint, the gravest first."""
    answered = sum(answers[word] for word in SPOKEN)
    others = {word: n for word, n in answers.items() if word not in SPOKEN}
    if strange := sorted(endpoints.keys() - call.endpoints):
        yield Finding(FAIL, "wrong_endpoint", f"led to {', '.join(strange)}, which is no endpoint of it")
    if others.keys() == {SILENT} and call.port.protocol == UDP and not answered:
        yield Finding(INCONCLUSIVE, "no_answer", "nobody answers the datagrams, which proves nothing of UDP")
    elif others:
        said = ", ".join(f"{n} {word}" for word, n in sorted(others.items()))
        yield Finding(FAIL, _word(others), f"of {answers.total()} calls {answered} were answered: {said}")
    if found := sorted(foreign):
        yield Finding(FAIL, "reply_source", f"answers came under the endpoint's own address {', '.join(found)}")
    if endpoints.total() == answered and answered >= calls_needed(len(call.endpoints)):
        yield from _shares(call, endpoints)


def _word(others: Mapping[str, int]) -> str:
    if SILENT in others:
        return "no_answer"
    return "not_sent" if NOT_SENT in others else "refused"


def _shares(call: Call, endpoints: Counter[str]) -> Iterator[Finding]:
    """Whether the calls fell on the endpoints as chance would have it, or all on one with affinity."""
    if call.port.affinity_s:
        if len(endpoints) > 1:
            seen = ", ".join(sorted(endpoints))
            yield Finding(FAIL, "no_affinity", f"one client was led to several endpoints: {seen}")
        return
    if unused := sorted(call.endpoints - endpoints.keys()):
        said = f"{', '.join(unused)} got none of {endpoints.total()} calls"
        yield Finding(FAIL, "endpoint_unused", said)
    share = 1 / len(call.endpoints)
    fair = endpoints.total() * share
    most = DEVIATIONS * math.sqrt(fair * (1 - share)) + 1
    for endpoint, count in sorted(endpoints.items()):
        if abs(count - fair) > most:
            said = f"{endpoint} got {count} of {endpoints.total()} calls; {fair:.0f} ± {most:.0f} are fair"
            yield Finding(FAIL, "unfair", said)


def _refused(call: Call, answers: Counter[str]) -> Iterator[Finding]:
    """Whether a call that nobody should get is rejected, or dropped where policy Local wants that."""
    rejected = {outcome.verdict for outcome in call.outcomes} == {Verdict.REJECT}
    if any(answers[word] for word in SPOKEN):
        yield Finding(FAIL, "answered", "somebody answers, though no endpoint may")
    elif rejected and answers[SILENT]:
        yield Finding(
            FAIL, "no_answer", "silence, where the caller should be told at once that nobody is there"
        )
    elif not rejected and not answers[SILENT]:
        said = ", ".join(answers)
        yield Finding(FAIL, "refused", f"{said}, where silence should tell a load balancer to try elsewhere")


def _told(answers: Counter[str], endpoints: Counter[str], names: Mapping[str, str]) -> str:
    if endpoints:
        shares = (f"{names.get(at.rpartition(':')[0], at)} {n}" for at, n in sorted(endpoints.items()))
        return f"{endpoints.total()} calls: {', '.join(shares)}"
    return ", ".join(f"{n} {word}" for word, n in sorted(answers.items()))


def _check(call: Call, finding: Finding | None, rtt_ms: float | None, told: str) -> Check:
    service = call.port.service.removeprefix("default/")
    udp = "/udp" if call.port.protocol == UDP else ""
    return Check(
        id=call.id,
        sender=call.caller.name,
        target=f"{call.port.name.removeprefix('default/')} at {call.dst}:{call.dst_port}{udp}",
        verdict=PASS if finding is None else finding.verdict,
        reason=finding.reason if finding else None,
        evidence=finding.evidence if finding else "",
        target_ip=str(call.dst),
        rtt_ms=rtt_ms,
        note=told,
        next=f"trace {call.caller.name} {call.dst} --{call.port.protocol} {call.dst_port}"
        if call.endpoints
        else f"describe svc/{service}",
    )
