"""Readiness probes: how they are written, and what a row of results comes to. Pure.

A probe is a JSON object with exactly one of ``tcp: {port}``, ``http: {port, path, headers}`` and ``exec:
{command: []}``, and the times and thresholds beside it. It never names a host: what is asked is the container
that has the probe, and nobody else.

A container with a probe begins as not ready. What it is changes only when as many results in a row as the
threshold asks for say so, as the kubelet counts them (pkg/kubelet/prober/worker.go).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from overlaynet.errors import ProbeInvalid
from overlaynet.model import Check, ExecCheck, HttpCheck, Probe, TcpCheck

Place: TypeAlias = tuple[str | int, ...]

TIMES = {"period_s": 0.1, "timeout_s": 0.1, "initial_delay_s": 0.0}
"""The least that each time may be, in seconds; a tenth, so that a lab need not wait."""
MAX_S = 86_400.0
THRESHOLDS = ("success_threshold", "failure_threshold")
CHECKS = ("tcp", "http", "exec")

_HEADER_NAME = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
"""RFC 9110 section 5.6.2, token."""
_PATH = re.compile(r"/[\x21-\x7e]*")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\t]*")


def parse_probe(value: Any) -> Probe:
    """A probe from its JSON object. Raises ProbeInvalid with the place of the fault."""
    members = _object(value, (), {*CHECKS, *TIMES, *THRESHOLDS})
    named = [name for name in CHECKS if members.get(name) is not None]
    if len(named) != 1:
        raise ProbeInvalid((), "wants exactly one of tcp, http and exec", evidence=f"it has {len(named)}")
    usual = Probe(_PARSERS[named[0]](members[named[0]]))
    return Probe(
        usual.check,
        period_s=_seconds(members, "period_s", usual.period_s),
        timeout_s=_seconds(members, "timeout_s", usual.timeout_s),
        initial_delay_s=_seconds(members, "initial_delay_s", usual.initial_delay_s),
        success_threshold=_count(members, "success_threshold", usual.success_threshold),
        failure_threshold=_count(members, "failure_threshold", usual.failure_threshold),
    )


def probe_document(probe: Probe) -> dict[str, Any]:
    """The JSON object of a probe, all members in it; `parse_probe` is the inverse."""
    rest = {name: getattr(probe, name) for name in (*TIMES, *THRESHOLDS)}
    match probe.check:
        case TcpCheck(port):
            return {"tcp": {"port": port}, **rest}
        case HttpCheck(port, path, headers):
            return {"http": {"port": port, "path": path, "headers": dict(headers)}, **rest}
        case ExecCheck(command):
            return {"exec": {"command": list(command)}, **rest}


@dataclass(slots=True)
class Tally:
    """The results of one probe in a row: the last one, and how many like it there were."""

    passed: bool | None = None
    run: int = 0

    def take(self, passed: bool, probe: Probe) -> bool | None:
        """What the results up to this one come to; None if there are too few of the same."""
        self.run = self.run + 1 if passed == self.passed else 1
        self.passed = passed
        enough = probe.success_threshold if passed else probe.failure_threshold
        return passed if self.run >= enough else None


# --- parts ----------------------------------------------------------------------------------------


def _tcp(value: Any) -> Check:
    return TcpCheck(_port(_object(value, ("tcp",), {"port"}), "tcp"))


def _http(value: Any) -> Check:
    members = _object(value, ("http",), {"port", "path", "headers"})
    path = members.get("path", "/")
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise _wrong(("http", "path"), "must begin with / and hold neither blanks nor line ends", path)
    headers = _object(members.get("headers") or {}, ("http", "headers"), None)
    for name, text in headers.items():
        if not _HEADER_NAME.fullmatch(name) or not isinstance(text, str) or not _HEADER_VALUE.fullmatch(text):
            raise _wrong(("http", "headers", name), "is no header of HTTP", text)
    return HttpCheck(_port(members, "http"), path, headers)


def _exec(value: Any) -> Check:
    command = _object(value, ("exec",), {"command"}).get("command")
    if not isinstance(command, list) or not command or not all(_is_argument(word) for word in command):
        raise _wrong(("exec", "command"), "must be a list of words, the program first", command)
    return ExecCheck(tuple(command))


_PARSERS: Mapping[str, Callable[[Any], Check]] = {"tcp": _tcp, "http": _http, "exec": _exec}


def _is_argument(word: object) -> bool:
    return isinstance(word, str) and "\0" not in word


def _port(members: Mapping[str, Any], check: str) -> int:
    port = members.get("port")
    if type(port) is not int or not 1 <= port <= 65_535:
        raise _wrong((check, "port"), "must be a port from 1 to 65535", port)
    return port


def _seconds(members: Mapping[str, Any], name: str, usual: float) -> float:
    value, least = members.get(name, usual), TIMES[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= MAX_S:
        raise _wrong((name,), f"must be a number of seconds from {least:g} to {MAX_S:g}", value)
    return float(value)


def _count(members: Mapping[str, Any], name: str, usual: int) -> int:
    value = members.get(name, usual)
    if type(value) is not int or not 1 <= value <= 1000:
        raise _wrong((name,), "must be a whole number from 1 to 1000", value)
    return value


def _object(value: Any, place: Place, known: set[str] | None) -> dict[str, Any]:
    """`known` None: whatever members there are."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _wrong(place, "must be an object", value)
    unknown = sorted(value.keys() - known) if known is not None else []
    if unknown:
        raise ProbeInvalid((*place, unknown[0]), "is unknown", evidence=f"known here: {_list(known)}")
    return value


def _list(names: Iterable[str] | None) -> str:
    return ", ".join(sorted(names or ()))


def _wrong(place: Place, problem: str, value: object) -> ProbeInvalid:
    return ProbeInvalid(place, problem, evidence=f"it is {value!r:.80}")
