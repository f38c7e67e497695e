"""The agent's files that nobody but the agent makes: a first identity, flannel's subnet.env, the pid file.

What commands and labs read or write too is in `overlaynet.store.disk`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

from overlaynet.addr import IPNetwork, gateway_address, random_mac
from overlaynet.errors import EnvironmentProblem
from overlaynet.model import Identity, NetworkConfig


def new_identity() -> Identity:
    """A random node id and a random VTEP MAC."""
    return Identity(secrets.token_hex(16), random_mac(secrets.token_bytes(6)))


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


def subnets_in(subnet_file: Path) -> tuple[IPNetwork, ...]:
    """The subnets that a subnet.env names, flannel's or our own; none where there is no such file."""
    return _in_env(subnet_file, "SUBNET")


def networks_in(subnet_file: Path) -> tuple[IPNetwork, ...]:
    """The networks that a subnet.env names; none where there is no such file."""
    return _in_env(subnet_file, "NETWORK")


def _in_env(subnet_file: Path, what: str) -> tuple[IPNetwork, ...]:
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in subnet_file.read_text("utf-8").splitlines():
            name, _, value = line.partition("=")
            if name in (f"FLANNEL_{what}", f"FLANNEL_IPV6_{what}"):
                found.append(ip_network(value.strip(), strict=False))
    return tuple(found)


@contextlib.contextmanager
def only_one_in_netns(instance: str) -> Iterator[None]:
    """Hold this instance's name in the network namespace: a second agent with other directories, for another
    network, would take the first one's devices and chains for its own.

    A socket's abstract name belongs to one namespace and goes with its process (unix(7)). Raises
    EnvironmentProblem."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as name:
        try:
            name.bind(f"\0overlaynet-agent {instance}")
        except OSError:
            raise EnvironmentProblem(
                "another agent of ours runs on this host, with other directories",
                evidence=f"the name of instance {instance or '(none)'} is taken in this network namespace",
                next=["set node.instance, for a second network beside the first", "overlaynet status"],
            ) from None
        yield


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
