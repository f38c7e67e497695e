"""An ordinary user of a booted Debian machine, without sudo, and what such a user does there with a lab."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from helpers.vms import Vm

BRIDGE_FILTER, MATCH = "br_netfilter", "xt_physdev"


@dataclass(frozen=True)
class VmUser:
    """As `useradd` makes one; without a session, so without a runtime directory."""

    vm: Vm
    name: str

    def types(self, line: str) -> subprocess.CompletedProcess[str]:
        """A line of shell, in the home directory, with the environment of a login."""
        return self.vm.call("runuser", "-l", self.name, "-c", line)

    def json(self, *words: str) -> Any:
        """What an overlaynet command answers."""
        return json.loads(self.types(shlex.join(["overlaynet", *words, "-o", "json"])).stdout)

    def left(self) -> list[str]:
        """Processes of the user, and what is ours in the home directory."""
        return self.vm.sh(
            f"ps -o args= -u {self.name} || true; find /home/{self.name} -path '*overlaynet*' -print"
        ).splitlines()


@contextmanager
def ordinary_user(vm: Vm, name: str = "learner") -> Iterator[VmUser]:
    """For the length of the block."""
    vm.run("useradd", "--create-home", "--shell", "/bin/bash", name)
    try:
        yield VmUser(vm, name)
    finally:
        vm.run("userdel", "--remove", "--force", name)


def unload_bridge_filter(vm: Vm) -> None:
    """As on a machine that was just booted: the match asks for the module once in its own life."""
    for module in (BRIDGE_FILTER, MATCH):
        vm.call("modprobe", "-r", module)
        assert not is_loaded(vm, module)


def is_loaded(vm: Vm, module: str) -> bool:
    return module in {line.split()[0] for line in vm.run("lsmod").splitlines()[1:]}


def has_a_lab_without_sudo(user: VmUser) -> None:
    """The user's whole way: a lab of two hosts, a packet that is proved, and nothing left behind.
    br_netfilter is not loaded at the start, and the user has the kernel do it."""
    unload_bridge_filter(user.vm)
    up = user.json("up", "--hosts", "2", "--containers", "1", "--timeout", "300")
    assert up.get("converged"), up
    assert is_loaded(user.vm, BRIDGE_FILTER)
    trace = user.json("trace", "web-1", "web-2")
    assert trace.get("verdict") == "proved", trace
    down = user.types("overlaynet down")
    assert down.returncode == 0, down.stderr
    assert user.left() == []
