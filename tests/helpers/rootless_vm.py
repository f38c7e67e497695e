"""A lab of an ordinary user's on a booted Debian machine: what is installed there, Debian's kernel, no sudo."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any

from helpers.vms import Vm

BRIDGE_FILTER, MATCH = "br_netfilter", "xt_physdev"


@dataclass(frozen=True)
class VmLearner:
    """A user of the machine, as `useradd` makes one; without a session, so without a runtime directory."""

    vm: Vm
    name: str = "learner"

    def add(self) -> None:
        self.vm.run("useradd", "--create-home", "--shell", "/bin/bash", self.name)

    def remove(self) -> None:
        self.vm.run("userdel", "--remove", self.name)

    def overlaynet(self, *words: str) -> subprocess.CompletedProcess[str]:
        """In the home directory, with the environment of a login."""
        line = " ".join(("overlaynet", *words))
        return self.vm.call("runuser", "-l", self.name, "-c", line)

    def json(self, *words: str) -> Any:
        return json.loads(self.overlaynet(*words, "-o", "json").stdout)

    def left(self) -> str:
        """Processes of the user, and files of ours in the home directory."""
        return self.vm.sh(
            f"ps -o args= -u {self.name} || true; find /home/{self.name} -path '*overlaynet*' -print"
        )


def unload_bridge_filter(vm: Vm) -> None:
    """As on a machine that was just booted: the match asks for the module once in its own life."""
    for module in (BRIDGE_FILTER, MATCH):
        vm.call("modprobe", "-r", module)
        assert not is_loaded(vm, module)


def is_loaded(vm: Vm, module: str) -> bool:
    return module in {line.split()[0] for line in vm.run("lsmod").splitlines()[1:]}


def has_a_lab_without_sudo(learner: VmLearner) -> None:
    """The user's whole way: a lab of two hosts, a packet that is proved, and nothing left behind.
    br_netfilter is not loaded at the start, and the user has the kernel do it."""
    unload_bridge_filter(learner.vm)
    up = learner.json("up", "--hosts", "2", "--containers", "1", "--timeout", "300")
    assert up.get("converged"), up
    assert is_loaded(learner.vm, BRIDGE_FILTER)
    trace = learner.json("trace", "web-1", "web-2")
    assert trace.get("verdict") == "proved", trace
    down = learner.overlaynet("down")
    assert down.returncode == 0, down.stderr
    assert learner.left() == ""
