"""What an agent keeps on its own disk: who it is, what it has wired, and what etcd last said.

The agent writes these files, a lab writes a host's first identity, and commands read them where no agent
answers. Every file is written to a neighbour and renamed, so that a reader sees the old or the new one and
nothing in between, and is flushed, so that a power cut leaves one of the two.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from overlaynet.addr import Mac
from overlaynet.core.keys import Keys
from overlaynet.core.probes import parse_probe, probe_document
from overlaynet.errors import ConfigError, ProbeInvalid
from overlaynet.model import (
    EndpointSlice,
    Identity,
    Lease,
    NetworkConfig,
    NodeRecord,
    Probe,
    Service,
    Settings,
    Stored,
    Workload,
)
from overlaynet.ports import KeyValue, Listing
from overlaynet.store import codec, kubernetes


def write_atomically(path: Path, text: str, mode: int) -> None:
    """Replace a file's whole content; the file and its directory are flushed to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write_and_flush(beside, text, mode)
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    _flush_directory(path.parent)


def _write_and_flush(path: Path, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, mode)
        file.write(text)
        file.flush()
        os.fsync(descriptor)


def _flush_directory(path: Path) -> None:
    """The new name is on disk only when its directory is (fsync(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_if_different(path: Path, text: str, mode: int) -> bool:
    """Write only what is not there already; answer whether anything was written."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.read_text("utf-8") == text:
            return False
    write_atomically(path, text, mode)
    return True


def read_identity(path: Path) -> Identity | None:
    """A node's identity, None if there is none yet. Raises ConfigError for a damaged file."""
    try:
        return parse_identity(path.read_text("utf-8"), str(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _unusable(str(path), error) from None


def parse_identity(text: str, where: str) -> Identity:
    """The same of a file's text; `where` it is from. Raises ConfigError."""
    try:
        return _identity(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unusable(where, error) from None


def _unusable(where: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"the identity file {where} cannot be used",
        evidence=f"{type(error).__name__}: {error}",
        next=[f"cat {where}", "restore it from a backup; removing it makes this a new node"],
    )


def _identity(document: Any) -> Identity:
    node_id, mac = document["node_id"], Mac.parse(document["vtep_mac"])
    if not isinstance(node_id, str) or not node_id:
        raise ValueError("node_id is not text")
    if not mac.unicast:
        raise ValueError(f"{mac} cannot be a device's address")
    return Identity(node_id, mac, tuple(ip_network(str(s)) for s in document["subnets"]))


def write_identity(path: Path, identity: Identity) -> None:
    """0600: whoever has it can claim this node's subnet."""
    document = {
        "node_id": identity.node_id,
        "vtep_mac": str(identity.vtep_mac),
        "subnets": [str(s) for s in identity.subnets],
    }
    write_if_different(path, json.dumps(document, indent=1) + "\n", 0o600)


@dataclass(frozen=True, slots=True)
class Kept:
    """What is known of a container on its own host alone. `probe_socket` is the name, in the agent's run
    directory, of the socket of whoever runs an exec probe's command; `ends`: when a container that was told to
    go is unwired, in seconds since 1970, None if nobody has told it to."""

    probe: Probe | None = None
    probe_socket: str = ""
    ends: float | None = None


NOTHING_KEPT = Kept()


def read_workloads(path: Path, node: str) -> list[Workload] | None:
    """The containers that the agent has wired; None if it never wired any. A file from before the node was
    renamed counts for nothing. Raises ConfigError for a damaged file."""
    found = _read_wired(path, node)
    return None if found is None else [workload for workload, _ in found]


def parse_workloads(text: str, where: str, node: str) -> list[Workload]:
    """The same of a file's text; `where` it is from. Raises ConfigError."""
    return [workload for workload, _ in _wired(text, where, node)]


def read_kept(path: Path, node: str) -> dict[str, Kept]:
    """The same file's word on each container beside its record, by the container's id. Raises ConfigError."""
    found = _read_wired(path, node) or []
    try:
        return {workload.id: _kept(record) for workload, record in found}
    except (KeyError, TypeError, ValueError, ProbeInvalid) as error:
        raise _unreadable(str(path), error) from None


def _read_wired(path: Path, node: str) -> list[tuple[Workload, dict[str, Any]]] | None:
    try:
        return _wired(path.read_text("utf-8"), str(path), node)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _unreadable(str(path), error) from None


def _wired(text: str, where: str, node: str) -> list[tuple[Workload, dict[str, Any]]]:
    try:
        records = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise _unreadable(where, error) from None
    keys = Keys()
    decoded = ((codec.decode(KeyValue(k, json.dumps(v).encode()), keys).value, v) for k, v in records.items())
    return [(value, v) for value, v in decoded if isinstance(value, Workload) and value.node == node]


def _unreadable(where: str, error: Exception) -> ConfigError:
    return ConfigError(f"the workload file {where} cannot be read", evidence=str(error))


def _kept(record: Mapping[str, Any]) -> Kept:
    probe, ends = record.get("probe"), record.get("ends")
    return Kept(
        None if probe is None else parse_probe(probe),
        str(record.get("probe_socket") or ""),
        None if ends is None else float(ends),
    )


def write_workloads(path: Path, workloads: Iterable[Workload], kept: Mapping[str, Kept] | None = None) -> None:
    """Replace the file, if it would read differently. `kept` by the container's id."""
    keys, beside = Keys(), kept or {}
    records = {
        keys.workload(w.node, w.id): {
            **json.loads(codec.encode_workload(w)),
            **_kept_document(beside.get(w.id, NOTHING_KEPT)),
        }
        for w in workloads
    }
    write_if_different(path, json.dumps(records, indent=1) + "\n", 0o600)


def _kept_document(kept: Kept) -> dict[str, Any]:
    probe = {"probe": probe_document(kept.probe)} if kept.probe else {}
    socket = {"probe_socket": kept.probe_socket} if kept.probe_socket else {}
    return {**probe, **socket, **({} if kept.ends is None else {"ends": kept.ends})}


# --- what etcd last said --------------------------------------------------------------------------

Planned = NetworkConfig | Settings | Lease | Service | EndpointSlice | Workload | NodeRecord
"""The records from which a host is planned. Who is alive matters only to the endpoints of services."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What etcd held at a revision, for a start without etcd or with an emptied one.

    `lease_end` is when our own etcd lease, `lease_id`, ends: seconds since 1970, for a monotonic clock starts
    anew with the machine; None: never, or not known."""

    revision: int
    items: tuple[Stored[Planned], ...]
    cluster_id: int = 0
    lease_id: int = 0
    lease_end: int | None = None


@dataclass(frozen=True, slots=True)
class History:
    """By what a later listing is known to be of the same history: which cluster, how far it was, and which
    revisions wrote the keys."""

    cluster_id: int
    revision: int
    written: Mapping[str, int]

    def goes_on_in(self, listing: Listing) -> bool:
        """Others may have brought an emptied store's revision past ours; then a key that was written before was
        written too early."""
        return (
            listing.cluster_id == self.cluster_id
            and listing.revision >= self.revision
            and all(item.mod_revision >= self.written.get(item.key, 0) for item in listing.items)
        )


def read_history(path: Path) -> History | None:
    """The history of what is remembered, in a small part of the time that reading all of it takes; None as
    there."""
    try:
        document = json.loads(path.read_text("utf-8"))
        written = {str(item["key"]): int(item["mod_revision"]) for item in document["items"]}
        return History(int(document["cluster_id"]), int(document["revision"]), written)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def read_remembered(path: Path, keys: Keys) -> Remembered | None:
    """None if there is none, or none that can be used: it is a copy, and etcd has the original.

    Keys under other prefixes than `keys` are those of another cluster, and left out."""
    try:
        document = json.loads(path.read_text("utf-8"))
        items = tuple(_planned(document["items"], keys))
        numbers = (document["cluster_id"], document["lease_id"], document["lease_end"])
        return Remembered(document["revision"], items, *numbers)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _planned(items: Iterable[Any], keys: Keys) -> Iterator[Stored[Planned]]:
    for item in items:
        found = codec.decode(_key_value(item), keys)
        if isinstance(found.value, Planned):
            yield Stored(found.key, found.value, found.create_revision, found.mod_revision, found.lease_id)


def _key_value(item: Any) -> KeyValue:
    value = json.dumps(item["value"]).encode()
    return KeyValue(str(item["key"]), value, item["create_revision"], item["mod_revision"], item["lease_id"])


def write_remembered(path: Path, remembered: Remembered) -> None:
    """Raises OSError. Item by item: while `json` is at one value no other thread gets its turn, and twenty
    thousand leases at once would take 0.15 s."""
    head = {
        "revision": remembered.revision,
        "cluster_id": remembered.cluster_id,
        "lease_id": remembered.lease_id,
        "lease_end": remembered.lease_end,
    }
    items = ",\n".join(_item(item) for item in remembered.items)
    write_if_different(path, f'{json.dumps(head)[:-1]}, "items": [\n{items}\n]}}\n', 0o600)


def _item(item: Stored[Planned]) -> str:
    members = {
        "key": item.key,
        "value": json.loads(_encode(item.value)),
        "create_revision": item.create_revision,
        "mod_revision": item.mod_revision,
        "lease_id": item.lease_id,
    }
    return json.dumps(members)


def _encode(value: Planned) -> bytes:
    match value:
        case NetworkConfig():
            return codec.encode_network_config(value)
        case Settings():
            return codec.encode_settings(value)
        case Lease():
            return codec.encode_lease(value)
        case Workload():
            return codec.encode_workload(value)
        case NodeRecord():
            return codec.encode_node(value)
        case Service():
            return codec.encode_object(kubernetes.service_object(value))
        case EndpointSlice():
            return codec.encode_object(kubernetes.slice_object(value))
