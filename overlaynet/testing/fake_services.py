"""Sets of clients and a table of connections in memory: `ports.AffinitySets` and `ports.Conntrack`."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Collection, Iterable, Mapping

from overlaynet.errors import FirewallBusy, FirewallError, NoConntrack, NoIpset, OverlayError
from overlaynet.state import Flow


class FakeSets:
    """`used` are the names that rules refer to; `missing` stands for a kernel without ipsets; `sets` holds
    others' too. `log` says what was written."""

    def __init__(self, prefix: str = "OVL-") -> None:
        self._prefix = prefix
        self._failures: deque[OverlayError] = deque()
        self.sets: dict[str, int] = {}
        self.used: set[str] = set()
        self.missing = False
        self.log: list[str] = []

    def observe(self) -> Mapping[str, int]:
        if self.missing:
            raise NoIpset("the kernel has no ipsets")
        return {name: timeout_s for name, timeout_s in self.sets.items() if name.startswith(self._prefix)}

    def create(self, name: str, timeout_s: int) -> None:
        self._fail()
        if self.sets.get(name, timeout_s) != timeout_s:
            raise FirewallError(f"the kernel refused ipset {name}", evidence="there is another one")
        self.log += [] if name in self.sets else [f"create {name}"]
        self.sets[name] = timeout_s

    def destroy(self, name: str) -> None:
        self._fail()
        if name in self.used:
            raise FirewallBusy(f"ipset {name} is still used by a rule")
        self.log += [f"destroy {name}"] if name in self.sets else []
        self.sets.pop(name, None)

    def fail(self, *errors: OverlayError) -> None:
        """Let the next writes fail with these, one each."""
        self._failures.extend(errors)

    def _fail(self) -> None:
        if self._failures:
            raise self._failures.popleft()


class FakeConntrack:
    """`table` are all connections; `deleted` those that were forgotten on request, `dumps` what was asked for;
    `missing` stands for a kernel without ctnetlink."""

    def __init__(self, table: Iterable[Flow] = ()) -> None:
        self._failures: deque[OverlayError] = deque()
        self.table = list(table)
        self.deleted: list[Flow] = []
        self.dumps: list[frozenset[str]] = []
        self.missing = False

    def flows(self, protocols: Collection[str], *, unanswered: bool = False) -> Iterable[Flow]:
        if self.missing:
            raise NoConntrack(errno.EINVAL)
        self.dumps.append(frozenset(protocols))
        return [f for f in self.table if f.protocol in protocols and not (unanswered and f.replied)]

    def delete(self, flow: Flow) -> None:
        if self._failures:
            raise self._failures.popleft()
        if flow.protocol == "tcp" and flow not in self.table:
            return
        gone = [known for known in self.table if known[:5] == flow[:5]]
        self.table = [known for known in self.table if known not in gone]
        self.deleted += gone

    def fail(self, *errors: OverlayError) -> None:
        """Let the next deletions fail with these, one each."""
        self._failures.extend(errors)
