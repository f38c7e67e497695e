"""What the agent keeps on disk: who it is, what it has wired, and flannel's subnet.env.

Every file is written to a neighbour and renamed, so that a reader sees the old or the new one and nothing in
between. The identity is 0600: whoever has it can claim this node's subnet.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from overlaynet.addr import IPNetwork, Mac, gateway_address, random_mac
from overlaynet.core.keys import Keys
from overlaynet.errors import ConfigError, EnvironmentProblem
from overlaynet.model import Identity, NetworkConfig, Workload
from overlaynet.ports import KeyValue
from overlaynet.store import codec


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


def read_identity(path: Path) -> Identity | None:
    """This node's identity, None if there is none yet. Raises ConfigError for a damaged file."""
    try:
        document = json.loads(path.read_text("utf-8"))
        return _identity(document)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"the identity file {path} cannot be used",
            evidence=f"{type(error).__name__}: {error}",
            next=[f"cat {path}", "restore it from a backup; removing it makes this a new node"],
        ) from None


def _identity(document: Any) -> Identity:
    node_id, mac = document["node_id"], Mac.parse(document["vtep_mac"])
    if not isinstance(node_id, str) or not node_id:
        raise ValueError("node_id is not text")
    if not mac.unicast:
        raise ValueError(f"{mac} cannot be a device's address")
    return Identity(node_id, mac, tuple(ip_network(str(s)) for s in document["subnets"]))


def new_identity() -> Identity:
    """A random node id and a random VTEP MAC."""
    return Identity(secrets.token_hex(16), random_mac(secrets.token_bytes(6)))


def write_identity(path: Path, identity: Identity) -> None:
    document = {
        "node_id": identity.node_id,
        "vtep_mac": str(identity.vtep_mac),
        "subnets": [str(s) for s in identity.subnets],
    }
    write_if_different(path, json.dumps(document, indent=1) + "\n", 0o600)


def read_workloads(path: Path, node: str) -> list[Workload]:
    """The containers that this agent had wired. A file from before a node was renamed counts for nothing."""
    try:
        records = dict(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"the workload file {path} cannot be read", evidence=str(error)) from None
    keys = Keys()
    decoded = (codec.decode(KeyValue(key, json.dumps(value).encode()), keys) for key, value in records.items())
    return [item.value for item in decoded if isinstance(item.value, Workload) and item.value.node == node]


def write_workloads(path: Path, workloads: Iterable[Workload]) -> None:
    keys = Keys()
    records = {keys.workload(w.node, w.id): json.loads(codec.encode_workload(w)) for w in workloads}
    write_if_different(path, json.dumps(records, indent=1) + "\n", 0o600)


def subnet_env(network: NetworkConfig, subnets: tuple[IPNetwork, ...], mtu: int, *, masquerade: bool) -> str:
    """flannel's subnet.env: what Docker's options script and flannel's CNI plugin read."""
    lines = []
    for pool in network.pools:
        for subnet in subnets:
            if subnet.version == pool.network.version:
                infix = "" if subnet.version == 4 else "IPV6_"
                lines.append(f"FLANNEL_{infix}NETWORK={pool.network}")
                lines.append(f"FLANNEL_{infix}SUBNET={gateway_address(subnet)}/{subnet.prefixlen}")
    lines += [f"FLANNEL_MTU={mtu}", f"FLANNEL_IPMASQ={'true' if masquerade else 'false'}"]
    return "\n".join(lines) + "\n"


def write_if_different(path: Path, text: str, mode: int) -> bool:
    """Write only what is not there already; answer whether anything was written."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.read_text("utf-8") == text:
            return False
    write_atomically(path, text, mode)
    return True


@contextlib.contextmanager
def only_one(pid_file: Path) -> Iterator[None]:
    """Hold the pid file's lock: two agents on one host would undo each other's work.

    The kernel lets go of the lock when the process ends, however it ends. Raises EnvironmentProblem.
    """
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(pid_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise EnvironmentProblem(
            "an agent is running on this host already",
            evidence=f"process {holder or 'unknown'} holds {pid_file}",
            next=["overlaynet status"],
        ) from None
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.ftruncate(descriptor, 0)
        os.close(descriptor)
