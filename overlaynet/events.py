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
    """A full listing at one revision. Only after one of these may anything be deleted."""

    revision: int
    items: tuple[Stored[Record], ...]


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
    """Our node record and claims are in the store, on this etcd lease."""

    lease_id: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """Our subnet is ours."""

    item: Stored[Lease]


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


Event: TypeAlias = (
    Synced
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
    | HostChanged
    | Attached
    | Detached
)

# --- intents --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Register:
    """Put our node record with the claims of our addresses and VTEP MACs, in one transaction.

    `expect` are the keys' present mod revisions (0: absent); `resume` is the etcd lease they are on.
    `unchanged`: all of it is there already, so nothing needs to be written if that lease lives."""

    record: NodeRecord
    vtep_macs: tuple[str, ...]
    expect: tuple[tuple[str, int], ...]
    resume: int
    ttl_s: int
    unchanged: bool = False


@dataclass(frozen=True, slots=True)
class ClaimSubnet:
    """Put our lease if its key still has mod revision `expect` (0: absent). `resume`: its etcd lease."""

    lease: Lease
    expect: int
    resume: int
    ttl_s: int


@dataclass(frozen=True, slots=True)
class Publish:
    """Put a workload's record on the node's lease."""

    workload: Workload


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Delete a workload's record."""

    workload: Workload


@dataclass(frozen=True, slots=True)
class Relist:
    """Read everything again, then watch from there."""


Intent: TypeAlias = Register | ClaimSubnet | Publish | Withdraw | Relist
