"""Everything that can go wrong, each with a stable code, its evidence and the next command to type.

    OverlayError                  exit  code
    ├── UsageError                2     OVL-1xx  the words given were wrong; nothing was touched
    │   ├── ConfigError                 OVL-101  a setting of a file, variable or flag
    │   ├── TopologyError               OVL-102  a topology file
    │   ├── NameInvalid                 OVL-103  a name that could not be a namespace, key or path
    │   ├── LabChoice                   OVL-104  which of several labs is meant, or there is none
    │   ├── NotFound                    OVL-105  no object of that name
    │   ├── ObjectInvalid               OVL-106  a Kubernetes object that is not as it must be
    │   │   └── AllocationTaken         OVL-107  a VIP or nodePort that belongs to another service
    │   ├── ProbeInvalid                OVL-108  a readiness probe that cannot be understood
    │   ├── BundleInvalid               OVL-109  a file that is no trace bundle that could be read
    │   ├── PredictFirst                OVL-110  a lesson is checked before its values are predicted
    │   └── ReportInvalid               OVL-111  a file that is no report of a learner that could be read
    ├── EnvironmentProblem        3     OVL-2xx  this machine lacks something
    │   ├── NotPermitted                OVL-201  a capability is missing
    │   ├── ToolMissing                 OVL-202  a program is missing
    │   ├── LabFailed                   OVL-203  a namespace, link or process of the lab could not be made
    │   ├── AgentUnreachable            OVL-204  no agent answers on its socket
    │   ├── FlannelRunning              OVL-205  flanneld is at work on this host
    │   ├── MachineUnreachable          OVL-206  a machine cannot be reached by ssh, or refuses
    │   ├── InstallFailed               OVL-207  the agent cannot be made a service of this machine
    │   ├── SandboxRefused              OVL-208  this machine gives an ordinary user no lab
    │   ├── LessonUnavailable           OVL-209  a lesson needs what this machine does not have
    │   └── LessonFailed                OVL-210  a lesson's own code cannot be used, or ended in an error
    ├── StoreError                3     OVL-3xx  etcd
    │   ├── StoreUnavailable            OVL-301  cannot be reached, or did not answer in time (transient)
    │   │   └── CertificateRefused      OVL-307  etcd refuses our certificate, or we its (transient)
    │   ├── StoreRefused                OVL-302  refused us: credentials, permission, bad request
    │   ├── Compacted                   OVL-303  the revision asked for is gone: list again (transient)
    │   │   └── AnotherHistory          OVL-306  etcd was emptied or restored from a backup (transient)
    │   ├── LeaseNotFound               OVL-304  an etcd lease has run out or was revoked
    │   └── ValueInvalid                OVL-305  a key or value there that cannot be understood
    ├── NetworkError              3     OVL-4xx  the overlay as a whole
    │   ├── NetworkNotConfigured        OVL-401  no network config in etcd yet (transient)
    │   ├── NetworkConfigInvalid        OVL-402  a network config that cannot work, or has no backend type
    │   ├── PoolExhausted               OVL-403  no subnet is free (transient)
    │   ├── Conflict                    OVL-404  another node holds what we would claim
    │   ├── UnderlayProblem             OVL-405  no usable underlay interface or address
    │   ├── ChangePending               OVL-406  the network config in etcd is not the one in force
    │   ├── ForeignObject               OVL-407  something that is not ours stands where ours should
    │   ├── Unconfirmed                 OVL-408  etcd does not vouch for this host's subnet now (transient)
    │   ├── StalePeers                  OVL-409  many peers vanished at once and stay in use (transient)
    │   ├── Contested                   OVL-410  another program keeps undoing what is ours
    │   ├── MtuProblem                  OVL-412  packets of some containers are larger than the path carries
    │   ├── ServicesFull                OVL-413  no VIP or nodePort is left
    │   ├── StaleEndpoints              OVL-415  endpoints vanished by expiry and stay in use (transient)
    │   └── ServiceNotServed            OVL-414  a service, or an address of it, that cannot be served as asked
    ├── KernelError               3     OVL-5xx  the kernel refused a request; carries errno
    │   └── NoConntrack                 OVL-501  the kernel does not let anybody read its connections
    ├── FirewallError             3     OVL-6xx  iptables refused a ruleset; carries the line
    │   ├── FirewallBusy                OVL-601  another program holds the rules, or changed them (transient)
    │   └── NoIpset                     OVL-602  the kernel has no ipsets
    └── WorkloadError             2     OVL-7xx  attach and detach
        ├── WorkloadExists              OVL-701
        ├── AddressTaken                OVL-702
        ├── SubnetFull                  OVL-703
        └── NotReady                    OVL-704  no lease yet, so no address to give (transient)

`transient` says whether trying again later can help; it drives retry. Adapters turn foreign exceptions
into these and never let one through.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import ClassVar


class OverlayError(Exception):
    """One sentence saying what happened, the evidence for it, and commands to type next."""

    code: ClassVar[str] = "OVL-000"
    exit_code: ClassVar[int] = 3
    transient: ClassVar[bool] = False

    def __init__(self, message: str, *, evidence: str = "", next: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.evidence = evidence
        self.next = tuple(next)

    def as_json(self) -> dict[str, object]:
        """The `error` member of a failure document."""
        return {
            "code": self.code,
            "message": self.message,
            "evidence": self.evidence,
            "next": list(self.next),
        }


class UsageError(OverlayError):
    code = "OVL-100"
    exit_code = 2


class ConfigError(UsageError):
    code = "OVL-101"


class TopologyError(UsageError):
    code = "OVL-102"


class NameInvalid(UsageError):
    code = "OVL-103"


class LabChoice(UsageError):
    code = "OVL-104"


class NotFound(UsageError):
    code = "OVL-105"


class ObjectInvalid(UsageError):
    """A Kubernetes object (`subject`: kind, namespace and name) with mistakes: each a path of keys and
    positions, and what is wrong there."""

    code = "OVL-106"
    mistakes: Sequence[tuple[tuple[str | int, ...], str]] = ()
    subject = ""

    def __init__(
        self,
        message: str,
        *,
        mistakes: Sequence[tuple[tuple[str | int, ...], str]] = (),
        subject: str = "",
        evidence: str = "",
        next: Sequence[str] = (),
    ) -> None:
        super().__init__(message, evidence=evidence, next=next)
        self.mistakes = mistakes
        self.subject = subject


class AllocationTaken(ObjectInvalid):
    code = "OVL-107"


class ProbeInvalid(UsageError):
    """A readiness probe. `place` leads from the probe to the member that is wrong; `problem` is about it."""

    code = "OVL-108"

    def __init__(self, place: Sequence[str | int], problem: str, *, evidence: str = "") -> None:
        super().__init__(f"{'.'.join(map(str, ('probe', *place)))} {problem}", evidence=evidence)
        self.place = tuple(place)
        self.problem = problem


class BundleInvalid(UsageError):
    code = "OVL-109"


class PredictFirst(UsageError):
    code = "OVL-110"


class ReportInvalid(UsageError):
    code = "OVL-111"


class EnvironmentProblem(OverlayError):
    code = "OVL-200"


class NotPermitted(EnvironmentProblem):
    code = "OVL-201"


class ToolMissing(EnvironmentProblem):
    code = "OVL-202"


class LabFailed(EnvironmentProblem):
    code = "OVL-203"


class AgentUnreachable(EnvironmentProblem):
    code = "OVL-204"


class FlannelRunning(EnvironmentProblem):
    code = "OVL-205"


class MachineUnreachable(EnvironmentProblem):
    code = "OVL-206"


class InstallFailed(EnvironmentProblem):
    code = "OVL-207"


class SandboxRefused(EnvironmentProblem):
    code = "OVL-208"


class LessonUnavailable(EnvironmentProblem):
    code = "OVL-209"


class LessonFailed(EnvironmentProblem):
    code = "OVL-210"


class StoreError(OverlayError):
    code = "OVL-300"


class StoreUnavailable(StoreError):
    code = "OVL-301"
    transient = True


class CertificateRefused(StoreUnavailable):
    """No TLS connection. Passing, for certificates are read again before each attempt."""

    code = "OVL-307"


class StoreRefused(StoreError):
    code = "OVL-302"


class Compacted(StoreError):
    """The watch asked for a revision that etcd has compacted away: list again from the present."""

    code = "OVL-303"
    transient = True


class LeaseNotFound(StoreError):
    code = "OVL-304"


class ValueInvalid(StoreError):
    code = "OVL-305"


class AnotherHistory(Compacted):
    """The watch was following a history that etcd no longer has: list again, and doubt what is missing."""

    code = "OVL-306"


class NetworkError(OverlayError):
    code = "OVL-400"


class NetworkNotConfigured(NetworkError):
    code = "OVL-401"
    transient = True


class NetworkConfigInvalid(NetworkError):
    code = "OVL-402"


class PoolExhausted(NetworkError):
    code = "OVL-403"
    transient = True


class Conflict(NetworkError):
    code = "OVL-404"


class UnderlayProblem(NetworkError):
    code = "OVL-405"


class ChangePending(NetworkError):
    code = "OVL-406"


class ForeignObject(NetworkError):
    code = "OVL-407"


class Unconfirmed(NetworkError):
    """Our subnet's lease is not in etcd, or may have run out there while etcd could not be reached."""

    code = "OVL-408"
    transient = True


class StalePeers(NetworkError):
    """Leases that etcd no longer has and that stay in use for a while, since their absence is not believed."""

    code = "OVL-409"
    transient = True


class Contested(NetworkError):
    code = "OVL-410"


class MtuProblem(NetworkError):
    code = "OVL-412"


class ServicesFull(NetworkError):
    code = "OVL-413"


class ServiceNotServed(NetworkError):
    code = "OVL-414"


class StaleEndpoints(NetworkError):
    code = "OVL-415"
    transient = True


class KernelError(OverlayError):
    """The kernel refused one request. `errno` is positive; `text` is the kernel's own word, if it had one."""

    code = "OVL-500"

    def __init__(self, target: str, errno: int, text: str = "", *, next: Sequence[str] = ()) -> None:
        said = f": {text}" if text else ""
        super().__init__(
            f"the kernel refused {target}: {os.strerror(errno)}{said}",
            evidence=f"errno {errno}",
            next=next,
        )
        self.target = target
        self.errno = errno
        self.text = text


class NoConntrack(KernelError):
    """Connections can be neither read nor forgotten. Rules work all the same."""

    code = "OVL-501"

    def __init__(self, errno: int) -> None:
        super().__init__("a look at its connections", errno, "it has no nf_conntrack_netlink")
        self.next = ("modprobe nf_conntrack_netlink",)


class FirewallError(OverlayError):
    """iptables-restore refused a ruleset. `line` is the refused line where the tool named one."""

    code = "OVL-600"

    def __init__(self, message: str, *, line: str = "", evidence: str = "", next: Sequence[str] = ()) -> None:
        super().__init__(message, evidence=evidence or line, next=next)
        self.line = line


class FirewallBusy(FirewallError):
    """Another program holds the lock of the rules, or changed them while we wrote."""

    code = "OVL-601"
    transient = True


class NoIpset(FirewallError):
    """Timed sets of addresses cannot be made; session affinity makes do with the match `recent`."""

    code = "OVL-602"


class WorkloadError(OverlayError):
    code = "OVL-700"
    exit_code = 2


class WorkloadExists(WorkloadError):
    code = "OVL-701"


class AddressTaken(WorkloadError):
    code = "OVL-702"


class SubnetFull(WorkloadError):
    code = "OVL-703"
    exit_code = 3


class NotReady(WorkloadError):
    code = "OVL-704"
    exit_code = 3
    transient = True


def all_errors() -> Mapping[str, type[OverlayError]]:
    """Every error class by its code; the documentation and its test are made from this."""
    found: dict[str, type[OverlayError]] = {}
    todo: list[type[OverlayError]] = [OverlayError]
    while todo:
        cls = todo.pop()
        found[cls.code] = cls
        todo.extend(cls.__subclasses__())
    return dict(sorted(found.items()))


def from_json(said: Mapping[str, object]) -> OverlayError:
    """The error that another process told of in its `error` member: same class, code and words.

    What a class carries beside them (an errno, a line) is only in the words."""
    found = all_errors().get(str(said.get("code")), OverlayError)
    error = found.__new__(found)
    if isinstance(error, KernelError):
        error.target, error.errno, error.text = "", 0, ""
    elif isinstance(error, FirewallError):
        error.line = ""
    steps = said.get("next")
    OverlayError.__init__(
        error,
        str(said.get("message", "")),
        evidence=str(said.get("evidence", "")),
        next=[str(step) for step in steps] if isinstance(steps, list) else [],
    )
    return error
