"""Can every container reach every other? Pure: probes to send, and what their answers prove.

Every ordered pair is one ping, sent from the first container's network namespace by a probe on its host.
A pair *fails* if the probe was sent and no reply came back, or if the sender's own kernel would not send
it: either proves that the two cannot talk. It is *inconclusive* if nothing was proved: the probe on that
host did not run or did not report, or the namespace could not be entered.

Three requests, a third of a second apart, the first reply ends it: a pair that works costs one round trip,
and one lost packet of three fails nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Any, NamedTuple

from overlaynet.addr import IPAddress
from overlaynet.errors import OverlayError

REQUESTS = 3
INTERVAL_S = 0.3
TIMEOUT_S = 1.0

DIFFERENCES_SHOWN = 4

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"


class Member(NamedTuple):
    """A container: where it runs, how its namespace is entered, and its address if it has one."""

    name: str
    host: str
    netns: str
    ip: IPAddress | None


@dataclass(frozen=True, slots=True)
class Check:
    """One ordered pair and what is known about it. `rtt_ms` is None unless it passed."""

    sender: Member
    target: Member
    verdict: str
    reason: str | None = None
    evidence: str = ""
    rtt_ms: float | None = None

    @property
    def id(self) -> str:
        return f"{self.sender.name}:{self.target.name}"


class Difference(NamedTuple):
    """Something that is not as it should be on a host: for which source it is wanted, and what to say of it."""

    host: str
    source: Mapping[str, Any]
    text: str

    def concerns(self, sender: Member, target: Member) -> bool:
        """Whether it can matter between these two: not if it is there for a third host or container."""
        if self.host not in (sender.host, target.host):
            return False
        match self.source["kind"]:
            case "lease":
                subnets = [ip_network(key.replace("-", "/")) for key in self.source["name"].split("&")]
                return any(m.ip in subnet for m in (sender, target) if m.ip for subnet in subnets)
            case "workload":
                return self.source["name"].rpartition("/")[2] in (sender.name, target.name)
        return True


@dataclass(frozen=True, slots=True)
class Report:
    """Every check, in the order of names."""

    checks: tuple[Check, ...]

    def having(self, verdict: str) -> list[Check]:
        return [check for check in self.checks if check.verdict == verdict]

    def with_differences(self, found: Iterable[Difference]) -> Report:
        """The same, with what differs on the two hosts of a failed pair among its evidence."""
        known = list(found)
        return Report(tuple(_with_differences(c, known) if c.verdict == FAIL else c for c in self.checks))

    @property
    def summary(self) -> str:
        """``30/30 pairs reachable``, with the number of those that are not."""
        failed, unknown = len(self.having(FAIL)), len(self.having(INCONCLUSIVE))
        more = (f", {failed} failed" if failed else "") + (f", {unknown} inconclusive" if unknown else "")
        return f"{len(self.having(PASS))}/{len(self.checks)} pairs reachable{more}"


def pairs(members: Iterable[Member]) -> list[tuple[Member, Member]]:
    """Every ordered pair of different containers, by name."""
    ordered = sorted(members, key=_by_number)
    return [(a, b) for a in ordered for b in ordered if a is not b]


def _by_number(member: Member) -> tuple[str, int, str]:
    """Sorts ``web-10`` behind ``web-9``."""
    stem = member.name.rstrip("0123456789")
    return (stem, int(member.name[len(stem) :] or 0), member.name)


def jobs(members: Sequence[Member]) -> dict[str, dict[str, Any]]:
    """One job for the probe on each host that has something to send."""
    found: dict[str, dict[str, Any]] = {}
    for sender, target in pairs(members):
        if target.ip is not None:
            found.setdefault(sender.host, {"op": "ping", "pings": []})["pings"].append(_ping(sender, target))
    return found


def _ping(sender: Member, target: Member) -> dict[str, Any]:
    return {
        "id": f"{sender.name}:{target.name}",
        "netns": sender.netns,
        "target": str(target.ip),
        "count": REQUESTS,
        "enough": 1,
        "interval_s": INTERVAL_S,
        "timeout_s": TIMEOUT_S,
    }


def judge(members: Sequence[Member], answers: Mapping[str, Mapping[str, Any] | OverlayError]) -> Report:
    """What the probes' answers (or why there is none), by host, prove of every pair."""
    results = {
        result["id"]: result
        for answer in answers.values()
        if not isinstance(answer, OverlayError)
        for result in answer["results"]
    }
    return Report(
        tuple(
            _check(sender, target, results.get(f"{sender.name}:{target.name}"), answers.get(sender.host))
            for sender, target in pairs(members)
        )
    )


def _with_differences(check: Check, found: Iterable[Difference]) -> Check:
    texts = [f"{d.host}: {d.text}" for d in found if d.concerns(check.sender, check.target)]
    if len(texts) > DIFFERENCES_SHOWN:
        texts[DIFFERENCES_SHOWN:] = [f"and {len(texts) - DIFFERENCES_SHOWN} more differences"]
    return replace(check, evidence="\n".join([check.evidence, *texts]))


def _check(
    sender: Member,
    target: Member,
    result: Mapping[str, Any] | None,
    answer: Mapping[str, Any] | OverlayError | None,
) -> Check:
    if target.ip is None:
        return Check(sender, target, FAIL, "no_address", f"{target.name} has no address: it is not wired")
    if isinstance(answer, OverlayError):
        evidence = ": ".join(filter(None, [answer.message, answer.evidence]))
        return Check(sender, target, INCONCLUSIVE, "probe_failed", evidence)
    if result is None:
        return Check(
            sender, target, INCONCLUSIVE, "not_reported", f"the probe on {sender.host} did not report it"
        )
    if result["error"] is None:
        return Check(sender, target, PASS, rtt_ms=result["rtt_ms"])
    verdict = INCONCLUSIVE if result["error"] == "setup_error" else FAIL
    return Check(sender, target, verdict, result["error"], result["evidence"])
