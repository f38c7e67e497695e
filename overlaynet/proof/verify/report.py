"""What a suite found out: checks with verdicts, and their sum; as a document, and as JUnit's XML.

A check *fails* if something was seen that proves it wrong. It is *inconclusive* if nothing was proved: a probe
did not run, a point was not watched all the time, it is not known what should be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from overlaynet.probe import mesh
from overlaynet.probe.mesh import FAIL, INCONCLUSIVE, PASS

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd]")
"""Characters that no XML document may hold (XML 1.0, section 2.2)."""


@dataclass(frozen=True, slots=True)
class Check:
    """One claim and what is known about it. `sender`, `target`: the two ends, in names. `reason` is a word for
    programs, None if it passed; `note` says in a few words what was seen; `next` is a command without the
    program's name."""

    id: str
    sender: str
    target: str
    verdict: str
    reason: str | None = None
    evidence: str = ""
    target_ip: str | None = None
    rtt_ms: float | None = None
    note: str = ""
    next: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "from": self.sender,
            "to": self.target,
            "target_ip": self.target_ip,
            "verdict": self.verdict,
            "reason": self.reason,
            "evidence": self.evidence,
            "rtt_ms": self.rtt_ms,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite's checks, and the seconds it took. `skipped`: why there is nothing to check here."""

    name: str
    checks: tuple[Check, ...]
    duration_s: float = 0.0
    skipped: str = ""

    def having(self, verdict: str) -> list[Check]:
        return [check for check in self.checks if check.verdict == verdict]

    @property
    def summary(self) -> str:
        """``12/12 passed``, with the number of those that did not."""
        if self.skipped:
            return self.skipped
        failed, unknown = len(self.having(FAIL)), len(self.having(INCONCLUSIVE))
        more = (f", {failed} failed" if failed else "") + (f", {unknown} inconclusive" if unknown else "")
        return f"{len(self.having(PASS))}/{len(self.checks)} passed{more}"

    def as_json(self) -> dict[str, Any]:
        return {
            "suite": self.name,
            "total": len(self.checks),
            "passed": len(self.having(PASS)),
            "failed": len(self.having(FAIL)),
            "inconclusive": len(self.having(INCONCLUSIVE)),
            "duration_s": round(self.duration_s, 3),
            "checks": [check.as_json() for check in self.checks],
        }


def of_mesh(pairs: mesh.Report, duration_s: float) -> Suite:
    """The mesh's pairs as a suite."""
    checks = (
        Check(
            id=pair.id,
            sender=pair.sender.name,
            target=pair.target.name,
            verdict=pair.verdict,
            reason=pair.reason,
            evidence=pair.evidence,
            target_ip=None if pair.target.ip is None else str(pair.target.ip),
            rtt_ms=pair.rtt_ms,
        )
        for pair in pairs.checks
    )
    return Suite("mesh", tuple(checks), duration_s)


def exit_code(suites: Iterable[Suite]) -> int:
    """0 if everything passed, 1 if anything failed, else 4: nothing proved it broken, nothing whole."""
    verdicts = {check.verdict for suite in suites for check in suite.checks}
    if FAIL in verdicts:
        return 1
    return 4 if INCONCLUSIVE in verdicts or not verdicts else 0


def document(suites: Sequence[Suite]) -> dict[str, Any]:
    """One suite as it is; several as their sum, each check's id behind its suite's name."""
    if len(suites) == 1:
        return suites[0].as_json()
    each = [suite.as_json() for suite in suites]
    sums = {name: sum(one[name] for one in each) for name in ("total", "passed", "failed", "inconclusive")}
    checks = [{**check, "id": f"{one['suite']}/{check['id']}"} for one in each for check in one["checks"]]
    duration_s = round(sum(one["duration_s"] for one in each), 3)
    return {"suite": "all", **sums, "duration_s": duration_s, "checks": checks, "suites": each}


def junit(suites: Sequence[Suite]) -> bytes:
    """The same for programs that collect test results: a failure for each check that failed, an error for one
    that is inconclusive."""
    root = ElementTree.Element("testsuites")
    for suite in suites:
        element = ElementTree.SubElement(
            root,
            "testsuite",
            name=f"overlaynet.verify.{suite.name}",
            tests=str(len(suite.checks)),
            failures=str(len(suite.having(FAIL))),
            errors=str(len(suite.having(INCONCLUSIVE))),
            skipped="0",
            time=f"{suite.duration_s:.3f}",
        )
        for check in suite.checks:
            _testcase(element, suite.name, check)
    ElementTree.indent(root)
    written: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def _testcase(parent: ElementTree.Element, suite: str, check: Check) -> None:
    case = ElementTree.SubElement(
        parent, "testcase", classname=f"overlaynet.verify.{suite}", name=_xml(check.id)
    )
    if check.rtt_ms is not None:
        case.set("time", f"{check.rtt_ms / 1000:.6f}")
    if check.verdict != PASS:
        kind = "failure" if check.verdict == FAIL else "error"
        told = ElementTree.SubElement(case, kind, type=check.reason or "", message=_xml(_first(check)))
        told.text = _xml(check.evidence)


def _first(check: Check) -> str:
    return f"{check.sender} → {check.target}: {check.note or check.reason}"


def _xml(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
