"""Booted machines made nodes of a cluster by the very script that Vagrant runs, and questions to them.

node-1 has etcd. Wheels are made from this clone; nothing else goes to the machines, which reach no network but
their own.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.vms import ROOT, Vm, Vms, patiently

UNIT = "overlaynet-agent.service"
THERE = "/var/tmp/overlaynet"
ETCD_NODE = 1


@dataclass(frozen=True)
class Took:
    """What something cost: seconds by the clock, and of the machine's own processor."""

    wall_s: float
    cpu_s: float

    def __str__(self) -> str:
        return f"{self.wall_s:6.1f} s, of the processor {self.cpu_s:.1f} s"


@contextmanager
def timed(vm: Vm, note: Callable[[Took], None]) -> Iterator[None]:
    wall, cpu = time.monotonic(), vm.cpu_s
    yield
    note(Took(time.monotonic() - wall, vm.cpu_s - cpu))


def on_all(machines: Sequence[Vm], work: Callable[[Vm], None]) -> None:
    """Beside each other; the first failure is raised when all are done."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(work, machines))


# --- installing -----------------------------------------------------------------------------------


def make_wheels(out: Path) -> Path:
    """The folder that installs the agent of this clone without internet."""
    subprocess.run([ROOT / "agent" / "wheels", out], check=True, stdout=subprocess.DEVNULL)
    return out


def changed_wheels(wheels: Path, out: Path) -> Path:
    """The same version, and yet other programs, as a change to the sources makes them: the wheel has one more
    file. The number stays, for hosts of a lab must have the command's."""
    shutil.copytree(wheels, out)
    wheel = next(out.glob("overlaynet-*.whl"))
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("overlaynet/data/changed", "a newer build\n")
    sums = subprocess.run(
        ["sha256sum", "--", *sorted(p.name for p in out.glob("*.whl")), "install"],
        cwd=out, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    (out / "SHA256SUMS").write_text(sums)
    return out


def parcel(wheels: Path, out: Path) -> Path:
    """One file with the folder of wheels and provision.sh, to be a disk of a machine: by ssh it would take an
    emulated processor a quarter of a minute. tar ends it by itself."""
    with tarfile.open(out, mode="w") as archive:
        archive.add(ROOT / "vagrant" / "provision.sh", "provision.sh")
        archive.add(wheels, "wheels")
    return out


def unpack(vm: Vm, disk: str) -> None:
    """A parcel, in place of one that was unpacked before."""
    vm.sh(f"rm -rf {THERE}; mkdir {THERE}; tar -C {THERE} --no-same-owner -xf {disk}")


def provision(vms: Vms, disk: str) -> Mapping[str, Took]:
    """All become nodes by a parcel, beside each other; what each cost until its agent was ready."""
    took: dict[str, Took] = {}

    def one(vm: Vm) -> None:
        with timed(vm, lambda cost: took.update({vm.name: cost})):
            unpack(vm, disk)
            vm.run("sh", f"{THERE}/provision.sh", str(vm.number), str(ETCD_NODE))
            wait_until_ready(vm)

    on_all(vms.machines, one)
    return took


# --- the service ----------------------------------------------------------------------------------


def unit(vm: Vm, *properties: str) -> dict[str, str]:
    """Of the agent's service, as systemd has them."""
    shown = vm.run("systemctl", "show", UNIT, f"--property={','.join(properties)}")
    return dict(line.split("=", 1) for line in shown.splitlines())


def wait_until_ready(vm: Vm) -> None:
    """Until systemd was told READY=1, and nothing is wrong."""
    patiently(lambda: _is_ready(vm), deadline_s=180)


def _is_ready(vm: Vm) -> bool:
    said = unit(vm, "ActiveState", "StatusText")
    assert (said["ActiveState"], said["StatusText"][:5]) == ("active", "ready"), f"{said}\n{journal(vm)}"
    return True


def main_pid(vm: Vm) -> int:
    return int(unit(vm, "MainPID")["MainPID"])


def journal(vm: Vm, lines: int = 30) -> str:
    return vm.run("journalctl", "--no-pager", f"--unit={UNIT}", f"--lines={lines}")


def failed_units(vm: Vm) -> str:
    return vm.run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "--no-pager")


def devices(vm: Vm) -> str:
    """Links, addresses, routes, neighbours and FDB of a machine, without what changes by itself."""
    said = vm.sh(
        "ip -o link; ip -o -4 address; ip -4 route; bridge fdb show dev flannel.1; ip neigh show nud permanent"
    )
    return re.sub(r"valid_lft.*|qlen \d+|state [A-Z]+", "", said)


def subnet(vm: Vm) -> str:
    """The machine's subnet, as Docker and CNI plugins are told it."""
    return re.search(r"^FLANNEL_SUBNET=(\S+)$", vm.run("cat", "/run/flannel/subnet.env"), re.MULTILINE)[1]


def vtep_mac(vm: Vm) -> str:
    return vm.run("cat", "/sys/class/net/flannel.1/address").strip()


def problems(vm: Vm) -> list[dict[str, Any]]:
    """What the machine's agent has to complain of."""
    return list(agent_says(vm, "/v1/status")["problems"])


def agent_says(vm: Vm, path: str) -> dict[str, Any]:
    """Its answer on its socket."""
    asking = (
        "import http.client, socket, sys\n"
        "connection = http.client.HTTPConnection('agent')\n"
        "connection.sock = socket.socket(socket.AF_UNIX)\n"
        "connection.sock.connect('/run/overlaynet/agent.sock')\n"
        "connection.request('GET', sys.argv[1])\n"
        "print(connection.getresponse().read().decode())\n"
    )
    return dict(json.loads(vm.run("python3", "-c", asking, path)))
