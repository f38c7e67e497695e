"""The four narrow doors to the world: Store, Kernel, Firewall, Clock.

The reconciler and the agent know only these protocols. Each has a real adapter and a fake in
`overlaynet.testing`, and one contract suite (`tests/contract/`) that both must pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

from overlaynet.addr import IPAddress, IPInterface, IPNetwork, Mac
from overlaynet.errors import OverlayError
from overlaynet.state import Change, Flow, KernelState, Key, Object, Policy, RuleChange, RuleSet

# --- store ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as etcd has it. `lease_id` 0: no lease."""

    key: str
    value: bytes
    create_revision: int = 0
    mod_revision: int = 0
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """Every key under some prefixes at one revision. `cluster_id` tells a restored cluster from the old."""

    revision: int
    cluster_id: int
    items: tuple[KeyValue, ...]


class Compare(NamedTuple):
    """Holds if the key's mod revision is this; 0 means the key is absent."""

    key: str
    mod_revision: int


class Put(NamedTuple):
    key: str
    value: bytes
    lease_id: int = 0


class Delete(NamedTuple):
    key: str


@dataclass(frozen=True, slots=True)
class Commit:
    """What became of a transaction. If `ok` is False nothing was written and `current` holds the
    compared keys that exist, as they are now."""

    ok: bool
    revision: int
    current: tuple[KeyValue, ...] = ()


class Grant(NamedTuple):
    """An etcd lease and the seconds it was granted for."""

    lease_id: int
    ttl_s: int


class KeyPut(NamedTuple):
    """A watch saw a key created or changed."""

    item: KeyValue


class KeyGone(NamedTuple):
    """A watch saw a key deleted or expired."""

    key: str
    revision: int


class WatchEnded(NamedTuple):
    """The watch is over for good: `error` says why (`Compacted` asks for a new listing)."""

    error: OverlayError


Notice: TypeAlias = KeyPut | KeyGone | WatchEnded


class Watch(Protocol):
    def cancel(self) -> None:
        """Stop; the sink is not called again. Harmless when repeated."""


class Store(Protocol):
    """etcd, as far as we need it. Every call has a deadline and raises only `StoreError`s."""

    def read(self, prefixes: Sequence[str]) -> Listing:
        """All keys under the prefixes, at one revision."""

    def watch(self, prefixes: Sequence[str], revision: int, sink: Callable[[Notice], None]) -> Watch:
        """Tell `sink`, from another thread, of every change from `revision` on.

        In order of revisions; but what happened before the watch was there, or while it was cut off, comes
        prefix by prefix, in order within each."""

    def commit(self, compares: Sequence[Compare], writes: Sequence[Put | Delete]) -> Commit:
        """Write all or, if a comparison fails, nothing."""

    def grant(self, ttl_s: int) -> Grant:
        """A new etcd lease."""

    def keep_alive(self, lease_id: int) -> int:
        """Renew; answer the seconds it now lives. Raises LeaseNotFound."""

    def time_to_live(self, lease_id: int) -> int:
        """Seconds an etcd lease still lives, without renewing it. Raises LeaseNotFound."""

    def revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys. One that is gone already is no error."""

    def close(self) -> None:
        """Drop connections and watches."""


# --- kernel ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Failure:
    """A change the kernel refused, and why."""

    change: Change
    error: OverlayError


@dataclass(frozen=True, slots=True)
class Wiring:
    """How to connect one container. The descriptors stay the caller's to close.

    `netns_fd` is the container's network namespace; `netlink_fd` a bound NETLINK_ROUTE socket opened
    inside it, so that whoever wires needs no right to enter it."""

    host_device: str
    tag: str
    container_device: str
    mac: Mac
    addresses: tuple[IPInterface, ...]
    gateways: tuple[IPAddress, ...]
    mtu: int
    netns_fd: int
    netlink_fd: int


class Kernel(Protocol):
    """One network namespace's links, addresses, tables and sysctls. For one thread; another one, of the same
    namespace, may `observe` at the same time."""

    def observe(self, sysctls: Sequence[str] = ()) -> KernelState:
        """All of it, ours and foreign; and the named sysctls (None where one does not exist)."""

    def glance(self) -> KernelState:
        """Links and addresses alone: cheap, however long the tables are."""

    def read_sysctls(self, names: Sequence[str]) -> Mapping[str, str | None]:
        """The named settings; None for one that does not exist."""

    def apply(self, changes: Sequence[Change]) -> list[Failure]:
        """Carry out changes in the order given, all of them; one that fails does not stop the rest.

        Idempotent: putting what is there and dropping what is not are successes."""

    def attach(self, wiring: Wiring) -> None:
        """Make a veth pair into a container's namespace and configure the inner end. All or nothing:
        on error no device is left. Raises KernelError."""

    def detach(self, host_device: str) -> None:
        """Delete a veth pair by its host end. One that is gone already is no error."""

    def close(self) -> None: ...


class Sighting(NamedTuple):
    """One entry as the kernel has just announced it: `obj` is what is there now, None if it is gone.

    `ifindex` tells its device from a later one of the same name (0: no device); `by` is who did it, as far
    as that can be told."""

    obj: Object | None
    ifindex: int = 0
    by: str = ""


@dataclass(frozen=True, slots=True)
class Noticed:
    """What the kernel announced in one moment, but for our own writes: entries as they are now, and devices
    to look at again. `overrun`: announcements were lost, so everything has to be looked at. `on_wire`: others'
    routes have changed by which hosts are reached without a gateway."""

    entries: Mapping[Key, Sighting] = field(default_factory=dict)
    devices: frozenset[str] = frozenset()
    overrun: bool = False
    on_wire: bool = False


class Watched(NamedTuple):
    """Names of devices whose announcements matter: `tunnels` are those whose neighbours are ours. `wire` is the
    device whose routes matter, whoever made them, and `direct` the networks that it reaches without a gateway;
    nothing where no peer is reached so."""

    tunnels: frozenset[str] = frozenset()
    devices: frozenset[str] = frozenset()
    wire: str | None = None
    direct: tuple[IPNetwork, ...] = ()


# --- firewall -------------------------------------------------------------------------------------


class Firewall(Protocol):
    """One network namespace's packet filter."""

    @property
    def flavour(self) -> str:
        """ "legacy" or "nft": which of the kernel's two packet filters the rules go to."""

    def observe(self) -> RuleSet:
        """Every table's rules with counters, ours and foreign."""

    def recall(self) -> RuleSet | None:
        """The rules as they were last read or written, if their generation has not changed since; counters
        are as old as that. Costs next to nothing."""

    def pending(self, want: Mapping[str, Policy], have: RuleSet) -> tuple[RuleChange, ...]:
        """What differs, of what is ours. Pure."""

    def blockers(self, want: Mapping[str, Policy], have: RuleSet) -> tuple[str, ...]:
        """Foreign rules in front of our hooks that may end a packet's walk before it: to be told, never
        fought. Pure."""

    def strangers(self, want: Mapping[str, Policy]) -> tuple[str, ...] | None:
        """Rules of others that `observe` does not show, in a packet filter beside this one, and that stop what
        ours accept: to be told. None where they cannot be read. Takes some hundredths of a second."""

    def apply(self, changes: Sequence[RuleChange], have: RuleSet) -> RuleSet:
        """Make it so, each table in one atomic commit; chains that do not differ are not named. Answers the
        rules as they are read back."""

    def affinity_sets(self, want: Mapping[str, Policy]) -> Mapping[str, int]:
        """The sets of client addresses that the rules for these policies use, with the seconds that an address
        stays in each. They must be there before the rules, and can only go after them. Pure."""

    def generation(self) -> object:
        """Something that differs once anybody has changed rules, and costs next to nothing to ask for; a
        RuleSet carries the one from just before it was read. None where it cannot be told. The legacy
        filter's does not differ after an edit that keeps the number and size of the rules."""


# --- services -------------------------------------------------------------------------------------


class AffinitySets(Protocol):
    """Timed sets of client addresses in one network namespace (ipset, hash:ip)."""

    def observe(self) -> Mapping[str, int]:
        """Ours, with the seconds an address stays in each. Raises FirewallError where the kernel has none."""

    def create(self, name: str, timeout_s: int) -> None:
        """An empty set. One that is there already is no error."""

    def destroy(self, name: str) -> None:
        """Remove a set that no rule uses. One that is gone already is no error."""


class Conntrack(Protocol):
    """One network namespace's table of connections."""

    def flows(self, protocols: Collection[str], *, unanswered: bool = False) -> Iterable[Flow]:
        """Those of these protocols; with `unanswered` only where no packet came back yet. Raises NoConntrack,
        or another KernelError."""

    def delete(self, flow: Flow) -> None:
        """Forget a flow; its next packet begins a new one. One that is gone already is no error, and a TCP flow
        that is not any more as it was read is left. Raises KernelError."""


class Clock(Protocol):
    def now(self) -> float:
        """Seconds on a clock that never goes back; meaningless but for differences."""
