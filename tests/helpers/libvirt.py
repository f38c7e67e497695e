"""A libvirtd of the test's own, and Vagrant beside it, that leave nothing behind.

Both run in namespaces: network, so that libvirt's bridges, addresses, rules and DHCP servers are not this
machine's; mounts, so that its settings, images and state are not either; processes, so that everything ends
with process 1, machines included. libvirtd needs no systemd, dbus, polkit or cgroups with these settings, and
machines are emulated (libvirt's driver "qemu").

The clone is copied, and Vagrant works on the copy: what it is made from can be changed there, and Vagrant's
own files are in it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.eventually import eventually
from helpers.privilege import missing_capabilities

ROOT = Path(__file__).parents[2]
URI = "qemu:///system"
START_S = 60.0
COMMAND_S = 600.0
UP_S = 1500.0
"""For `vagrant up` of all machines. Ten times what it takes on two idle cores."""
BOX_S = 900.0

SETTINGS = """\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
remember_owner = 0
"""
"""libvirt's qemu.conf: what a machine with neither systemd nor dbus needs."""

_OWN_DIRECTORIES = ("/run", "/var/log", "/var/lib", "/var/cache/libvirt")
"""Empty at the start, and gone with the namespaces."""
_TOOLS_LEAVE = (".git", ".venv*", ".vagrant", ".*_cache", ".hypothesis", "__pycache__", "overlaynet.tar*")
_TOOLS = {
    "vagrant": "vagrant vagrant-libvirt",
    "libvirtd": "libvirt-daemon-system libvirt-daemon-driver-qemu",
    "virsh": "libvirt-clients",
    "qemu-system-x86_64": "qemu-system-x86",
    "dnsmasq": "dnsmasq-base",
    "mmdebstrap": "mmdebstrap",
    "extlinux": "extlinux",
    "ssh": "openssh-client",
}


def _obstacle() -> str | None:
    if missing := missing_capabilities():
        return "no privilege: " + ", ".join(missing)
    lacking = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    return "not installed: " + ", ".join(lacking) if lacking else None


requires_vagrant = pytest.mark.skipif(_obstacle() is not None, reason=str(_obstacle()))


class CommandFailed(Exception):
    """A command ended badly or not in time; with all that it said."""


@dataclass(frozen=True)
class Enclosure:
    """The namespaces. `pid` is their process 1; `directory` what of theirs is kept on disk."""

    pid: int
    directory: Path
    env: Mapping[str, str]

    def argv(self, *argv: str, directory: Path | None = None) -> list[str]:
        """The command line that runs a command in there."""
        where = [f"--wdns={directory or '/'}"]
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", "--pid", *where, "--", *argv]

    def run(self, *argv: str, directory: Path | None = None, timeout_s: float = COMMAND_S) -> str:
        """A command's output. Raises CommandFailed."""
        return run(*self.argv(*argv, directory=directory), env=self.env, timeout_s=timeout_s)

    def processes(self) -> list[str]:
        """The names of those inside, but for process 1 and whoever asks."""
        found = self.run("ps", "-e", "--no-headers", "-o", "pid,comm").splitlines()
        named = dict(line.split(maxsplit=1) for line in found)
        return sorted(name for pid, name in named.items() if pid != "1" and name != "ps")

    def virsh(self, *words: str) -> list[str]:
        """A list of names, as libvirt has them."""
        return self.run("virsh", "--quiet", *words).split()


def run(*argv: str, env: Mapping[str, str] | None = None, timeout_s: float = COMMAND_S) -> str:
    """A command's output. Raises CommandFailed."""
    try:
        done = subprocess.run(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            env=env,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{argv} took over {timeout_s:.0f} s\n{error.stdout}") from error
    if done.returncode:
        raise CommandFailed(f"{argv} ended with {done.returncode}\n{done.stdout}")
    return done.stdout


# --- making it ------------------------------------------------------------------------------------


@contextmanager
def enclosure(directory: Path) -> Iterator[Enclosure]:
    """libvirtd answers in it. `directory`: an empty one, for images and Vagrant's boxes; empty afterwards."""
    with ExitStack() as stack:
        for name in ("lib", "etc", "vagrant"):
            (directory / name).mkdir()
            stack.callback(shutil.rmtree, directory / name)
        made = Enclosure(_process_1(stack), directory, _environment(directory))
        _own_files(made)
        made.run("ip", "link", "set", "lo", "up")
        made.run("libvirtd", "--daemon", "--pid-file", "/run/libvirtd.pid")
        eventually(lambda: made.run("virsh", "version"), deadline_s=START_S)
        yield made


def _process_1(stack: ExitStack) -> int:
    """It does nothing, and ends with this process; the kernel reaps for it, and ends all others with it."""
    spaces = ["--net", "--mount", "--uts", "--pid", "--mount-proc", "--propagation=private"]
    nothing = ["env", "--ignore-signal=CHLD", "sleep", "infinity"]
    argv = ["setpriv", "--pdeathsig=KILL", "unshare", *spaces, "--fork", "--kill-child", *nothing]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    pid = int(eventually(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text))
    stack.callback(_kill, pid)
    eventually(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    return pid


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _own_files(made: Enclosure) -> None:
    """/sys shows the network namespace of whoever mounted it: libvirt sets its bridges there."""
    made.run("umount", "--lazy", "/sys")
    made.run("mount", "-t", "sysfs", "sysfs", "/sys")
    for place in _OWN_DIRECTORIES:
        made.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place)
    etc = made.directory / "etc"
    shutil.copytree("/etc/libvirt", etc, dirs_exist_ok=True, symlinks=True)
    (etc / "qemu.conf").write_text(SETTINGS)
    # Otherwise libvirtd starts a network at once, which no machine of ours is in.
    (etc / "qemu/networks/autostart/default.xml").unlink(missing_ok=True)
    made.run("mkdir", "-p", "/run/libvirt", "/var/log/libvirt", "/var/lib/libvirt")
    made.run("mount", "--bind", str(etc), "/etc/libvirt")
    made.run("mount", "--bind", str(made.directory / "lib"), "/var/lib/libvirt")


def _environment(directory: Path) -> dict[str, str]:
    """What Vagrant and the Vagrantfile go by; nothing of this user's own Vagrant."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VAGRANT", "OVERLAYNET"))}
    return kept | {
        "LIBVIRT_DEFAULT_URI": URI,
        "VAGRANT_HOME": str(directory / "vagrant"),
        "VAGRANT_DEFAULT_PROVIDER": "libvirt",
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        "VAGRANT_NO_COLOR": "1",
        "OVERLAYNET_VM_BOX": "overlaynet/debian12",
        "OVERLAYNET_VM_DRIVER": "qemu",
        "OVERLAYNET_VM_MEMORY": "512",
        "OVERLAYNET_VM_CACHE": "unsafe",
    }


# --- Vagrant --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VagrantMachine:
    """One machine, as `helpers.vm_cluster` and `helpers.vm_traffic` ask machines of qemu alone."""

    name: str
    lab: VagrantLab

    def run(self, *argv: str) -> str:
        """As root. Raises CommandFailed."""
        return self.lab.enclosure.run(*self._ssh(*argv))

    def sh(self, script: str) -> str:
        """A piece of shell. Raises CommandFailed."""
        return self.run("sh", "-euc", script)

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """A command that goes on beside the test, its input and output pipes."""
        command = self.lab.enclosure.argv(*self._ssh(*argv))
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    @property
    def cpu_s(self) -> float:
        """Seconds of this machine's processors that it has used since it was last started: what is left of a
        time when others use them too (proc_pid_stat(5), utime and stime)."""
        pid = self.lab.enclosure.run("pgrep", "-f", f"^/usr/bin/qemu.* guest=overlaynet-{self.name},").strip()
        fields = self.lab.enclosure.run("cat", f"/proc/{pid}/stat").rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _ssh(self, *argv: str) -> list[str]:
        quiet = ["-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]
        return [
            "ssh",
            "-F",
            str(self.lab.inventory),
            *quiet,
            self.name,
            shlex.join(["sudo", "-n", "--", *argv]),
        ]


@dataclass(frozen=True)
class VagrantLab:
    """A copy of the clone, the machines that its Vagrantfile makes, and a lab of that name on them."""

    enclosure: Enclosure
    clone: Path
    name: str
    count: int = 3

    @property
    def machines(self) -> list[VagrantMachine]:
        return [VagrantMachine(f"node-{number}", self) for number in range(1, self.count + 1)]

    @property
    def inventory(self) -> Path:
        return self.clone / "inventory"

    def vagrant(self, *words: str, timeout_s: float = UP_S) -> str:
        """What `vagrant` said. Raises CommandFailed."""
        return self.enclosure.run("vagrant", *words, directory=self.clone / "vagrant", timeout_s=timeout_s)

    def write_inventory(self) -> None:
        """Where the machines are reached now."""
        self.inventory.write_text(self.vagrant("ssh-config"))

    def pack(self) -> None:
        """As the Vagrantfile does it, but with the internet, which the namespace has not."""
        run("sh", str(self.clone / "vagrant" / "pack"), "host", timeout_s=BOX_S)

    def overlaynet(self, *words: str, exit_code: int = 0) -> dict[str, Any]:
        """The document of the copy's command, given in the Vagrantfile's directory. Raises AssertionError."""
        program = Path(sys.executable).with_name("overlaynet")
        done = subprocess.run(
            self.enclosure.argv(
                *(str(program), *words, "-l", self.name, "-o", "json"), directory=self.clone / "vagrant"
            ),
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
            env={**self.enclosure.env, "PYTHONPATH": f"{self.clone}:{self.clone}/agent"},
        )
        assert done.returncode == exit_code, (
            f"overlaynet {words}: {done.returncode}\n{done.stdout}{done.stderr}"
        )
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def inside(self, container: str) -> str:
        """Its network namespace's name on its machine."""
        return f"ovl-{self.name}-{container}"


def build_box() -> Path:
    """The directory with lab.json, made once. Raises CommandFailed."""
    return Path(run(str(ROOT / "vagrant/box/build"), "--vagrant", timeout_s=BOX_S).splitlines()[-1])


def copy_clone(to: Path) -> None:
    """This working tree without what tools left in it. Packing goes by the same virtual environment."""
    shutil.copytree(ROOT, to, symlinks=True, ignore=_left_by_tools)
    (to / ".venv").symlink_to(Path(sys.prefix))


def _left_by_tools(directory: str, names: list[str]) -> set[str]:
    found = shutil.ignore_patterns(*_TOOLS_LEAVE)(directory, names)
    return found | ({"wheels"} if Path(directory) == ROOT / "vagrant" else set())
