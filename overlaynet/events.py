"""What happens (events, into the engine) and what the engine asks for (intents, out of it).

Both are frozen values. An event says only "look again, here is what I know"; an intent is a request to
the store, answered by another event. The engine never waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from overlaynet.errors import OverlayError
from overlaynet.model import Lease, LocalHost, NodeRecord, Record, Stored, Workload

# --- events: the store ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Synced:
    """A full listing at one revision. Only after one of these may anything be deleted.

    `cluster_id` 0 is not known. `new_history`: the watch, or what is on our disk, has shown that this store did
    not write what we saw before, though neither cluster nor revision may tell."""

    revision: int
    items: tuple[Stored[Record], ...]
    cluster_id: int = 0
    new_history: bool = False


@dataclass(frozen=True, slots=True)
class Before:
    """What the store had when this agent last ran, from our own disk: said before the first listing if that
    is of another history. Nothing is planned by it; it tells who is missing."""

    items: tuple[Stored[Record], ...]


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the store said before this start, from our own disk, since it cannot be asked. Good enough to
    put back what is missing; never a reason to delete or change anything. `lease_id` and `ends`: until when
    our subnet's etcd lease surely lives, as in `Renewed`; None: not known."""

    revision: int
    items: tuple[Stored[Record], ...]
    cluster_id: int = 0
    lease_id: int = 0
    ends: float | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """A key was created or changed."""

    item: Stored[Record]


@dataclass(frozen=True, slots=True)
class Gone:
    """A key was deleted, or its etcd lease ran out."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class StoreLost:
    """The store stopped answering. The dataplane stays as it is."""

    error: OverlayError


@dataclass(frozen=True, slots=True)
class StoreBack:
    """The store answers again."""


# --- events: answers to intents -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Registered:
    """Our node record and claims are in the store, on this etcd lease. `ttl_s` is the time it was asked to
    live, 0 if that is not known."""

    lease_id: int
    ttl_s: int = 0


@dataclass(frozen=True, slots=True)
class Claimed:
    """Our subnet is ours. `ttl_s` is the time its etcd lease was asked to live, 0 if that is not known;
    `ends` as in `Renewed`, None for a lease that never ends."""

    item: Stored[Lease]
    ttl_s: int = 0
    ends: float | None = None


@dataclass(frozen=True, slots=True)
class Raced:
    """Somebody was faster with this subnet: choose again."""

    key: str


@dataclass(frozen=True, slots=True)
class Failed:
    """An intent could not be carried out; the engine decides when to ask again."""

    intent: Intent
    error: OverlayError


@dataclass(frozen=True, slots=True)
class Done:
    """An intent was carried out, and there is nothing else to say."""

    intent: Intent


@dataclass(frozen=True, slots=True)
class LeaseExpired:
    """etcd no longer knows one of our leases."""

    lease_id: int


@dataclass(frozen=True, slots=True)
class Renewed:
    """etcd has renewed one of our leases, which lives `ttl_s` from one renewal to the end. `ends`: until when
    it surely lives, on the clock that events are handled by."""

    lease_id: int
    ttl_s: int
    ends: float


# --- events: this host ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HostChanged:
    """The underlay interface, its address or MTU is different now."""

    local: LocalHost


@dataclass(frozen=True, slots=True)
class Attached:
    """A container was wired."""

    workload: Workload


@dataclass(frozen=True, slots=True)
class Detached:
    """A container was unwired, or its device is gone."""

    id: str


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a container can do by now, as Kubernetes has it (discovery.k8s.io/v1, EndpointConditions):
    `serving` is what its probe says, `terminating` that it is about to go, `ready` that it serves and stays."""

    id: str
    ready: bool
    serving: bool
    terminating: bool


@dataclass(frozen=True, slots=True)
class NetworkTaken:
    """The operator wants this host to take the network config that etcd offers."""


Event: TypeAlias = (
    Synced
    | Before
    | Recalled
    | Changed
    | Gone
    | StoreLost
    | StoreBack
    | Registered
    | Claimed
    | Raced
    | Done
    | Failed
    | LeaseExpired
    | Renewed
    | HostChanged
    | Attached
    | Detached
    | Conditions
    | NetworkTaken
)

Expected: TypeAlias = tuple[tuple[str, int], ...]
"""Keys and the mod revisions they must still have (0: absent) for a write to be made."""

# --- intents --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Register:
    """Put our node record with the claims of our addresses and VTEP MACs, in one transaction that also
    deletes `release`, claims of ours which no longer hold.

    `expect` are the keys' present mod revisions (0: absent); `resume` is the etcd lease they are on.
    `unchanged`: all of it is there already, so nothing needs to be written if that lease lives."""

    record: NodeRecord
    vtep_macs: tuple[str, ...]
    expect: Expected
    resume: int
    ttl_s: int
    unchanged: bool = False
    release: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClaimSubnet:
    """Put our lease if its key still has mod revision `expect` (0: absent). `resume`: its etcd lease.
    `unchanged`: it is there already, so nothing needs to be written if that etcd lease lives."""

    lease: Lease
    expect: int
    resume: int
    ttl_s: int
    unchanged: bool = False


@dataclass(frozen=True, slots=True)
class Publish:
    """Put a workload's record on the node's lease."""

    workload: Workload
    expect: Expected = ()


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Delete a workload's record."""

    workload: Workload
    expect: Expected = ()


@dataclass(frozen=True, slots=True)
class Release:
    """Delete a lease of ours that we no longer use, if it still has mod revision `expect`."""

    key: str
    expect: int


@dataclass(frozen=True, slots=True)
class Relist:
    """Read everything again, then watch from there."""


Intent: TypeAlias = Register | ClaimSubnet | Release | Publish | Withdraw | Relist
