"""Virtual machines of the project's own box, booted by qemu in plain emulation: no KVM, no libvirt, no Vagrant.

All run in one network namespace of the test's own, each with two cards, as a machine of Vagrant's has them. The
first is qemu's own NAT (`-netdev user`), by which ssh comes in and nothing gets out; it has the same address,
10.0.2.15, in every machine. The second is a tap on a bridge of the namespace: the private network, node-N at
192.168.56.(10+N), configured by systemd-networkd.

The kernel is Debian's for clouds and is loaded by qemu itself; a machine that reboots goes through the same
kernel, initrd and systemd. Disks are thin copies of the box's, so nothing of one machine is another's: its id,
ssh host keys and random state are made at its first boot. The key that may come in is told on the kernel's
command line, as a credential (systemd.system-credentials(7)).

qemu ends with the process that started it, whatever becomes of that.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from helpers.eventually import eventually
from helpers.private_netns import PrivateNetns, private_netns
from helpers.privilege import missing_capabilities

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
NAT_ADDRESS = "10.0.2.15"
MEMORY_MB = 512
BOOT_S = 300.0
"""Ten times what a boot takes on two idle cores."""
COMMAND_S = 600.0
BOOT_ID = "/proc/sys/kernel/random/boot_id"

_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "ssh": "openssh-client",
}
_APPEND = "root=/dev/vda rw quiet console=ttyS0 net.ifnames=0 mitigations=off no_timer_check panic=1"
"""An emulated timer may be late on a busy machine. The kernel checks it at boot, and would take it for broken
and stop (Documentation/admin-guide/kernel-parameters.txt). Should it panic all the same, it boots again."""


def _obstacle() -> str | None:
    if missing := missing_capabilities():
        return "no privilege: " + ", ".join(missing)
    lacking = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    return "not installed: " + ", ".join(lacking) if lacking else None


requires_vms = pytest.mark.skipif(_obstacle() is not None, reason=str(_obstacle()))


class VmFailed(AssertionError):
    """A machine did not do what it was told; with the end of what its console showed. Who waits for something
    (`patiently`) asks again."""


@dataclass
class Vm:
    """One machine. `directory`: its disk and console."""

    number: int
    directory: Path
    netns: PrivateNetns
    inventory: Path
    port: int
    """Where its sshd is reached, on the namespace's loopback."""
    parcels: Sequence[Path] = ()
    """Files that are /dev/vdb and so on there, read-only."""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return f"node-{self.number}"

    @property
    def address(self) -> str:
        """On the private network."""
        return address_of(self.number)

    # --- power ---

    def switch_on(self, box: Path, public_key: str) -> None:
        """Returns at once."""
        disk = self.directory / "disk.qcow2"
        backed = ["-b", str(box / "disk.raw"), "-F", "raw"]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backed, disk], check=True)
        argv = [*_qemu(self), *_kernel(box, self.name, public_key)]
        with self.netns.entered(), (self.directory / "qemu.log").open("wb") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def reboot(self) -> None:
        """By systemd, and until it lets in again. Raises VmFailed."""
        before = self.run("cat", BOOT_ID)
        self.call("systemctl", "--no-block", "reboot")
        self.forget_connection()
        patiently(lambda: self._has_booted_since(before), deadline_s=BOOT_S)

    def _has_booted_since(self, before: str) -> bool:
        said = self.call("cat", BOOT_ID) if self._sshd_speaks() else None
        return said is not None and said.returncode == 0 and said.stdout != before

    def switch_off(self) -> None:
        """As a power cut does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def wait_for_ssh(self) -> None:
        """Until somebody with the key is let in. Raises VmFailed."""
        end = time.monotonic() + BOOT_S
        while time.monotonic() < end:
            if self.process is None or self.process.poll() is not None:
                raise VmFailed(f"qemu of {self.name} ended: {(self.directory / 'qemu.log').read_text()}")
            if self._sshd_speaks() and self.call("true").returncode == 0:
                return
            time.sleep(0.2)
        raise VmFailed(f"{self.name} cannot be reached by ssh\n{self.console_tail()}")

    def _sshd_speaks(self) -> bool:
        """One long read: qemu takes the connection at once and hands it on when the machine answers."""
        try:
            with self.netns.entered():
                connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
            with connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    @property
    def cpu_s(self) -> float:
        """Seconds of this machine's processors that it has used so far: what is left of a time when others
        use them too (proc_pid_stat(5), utime and stime)."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def console_tail(self, lines: int = 30) -> str:
        console = self.directory / "console"
        text = console.read_text(errors="replace") if console.exists() else ""
        return "\n".join([f"--- console of {self.name} ---", *text.splitlines()[-lines:]])

    # --- commands, as root ---

    def call(
        self, *argv: str, input: bytes | None = None, timeout_s: float = COMMAND_S
    ) -> subprocess.CompletedProcess[str]:
        """A command, whatever comes of it; exit status 255 where ssh itself failed."""
        return self._ssh(shlex.join(["sudo", "-n", "--", *argv]), input, timeout_s)

    def sh(self, script: str, *, timeout_s: float = COMMAND_S) -> str:
        """A piece of shell, and what it said. Raises VmFailed."""
        return self.run("sh", "-euc", script, timeout_s=timeout_s)

    def run(self, *argv: str, input: bytes | None = None, timeout_s: float = COMMAND_S) -> str:
        """A command's output. Raises VmFailed with all it said."""
        done = self.call(*argv, input=input, timeout_s=timeout_s)
        if done.returncode:
            what = f"{self.name}: {shlex.join(argv)} ended with {done.returncode}"
            raise VmFailed(f"{what}\n{done.stdout}{done.stderr}\n{self.console_tail()}")
        return done.stdout

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """A command that goes on beside the test, by pipes; its end is the caller's to see to."""
        return subprocess.Popen(
            [*self._to(), shlex.join(["sudo", "-n", "--", *argv])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def write(self, path: str, text: str) -> None:
        """A file there."""
        self.run("tee", path, input=text.encode())

    def _ssh(self, command: str, input: bytes | None, timeout_s: float) -> subprocess.CompletedProcess[str]:
        try:
            done = subprocess.run(
                [*self._to(), command], capture_output=True, timeout=timeout_s, input=input or b""
            )
        except subprocess.TimeoutExpired as error:
            late = f"{self.name}: {command} took over {timeout_s:.0f} s"
            raise VmFailed(f"{late}\n{self.console_tail()}") from error
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def _to(self, *more: str) -> list[str]:
        """One connection serves many commands: a new one costs an emulated machine most of a second."""
        shared = ("BatchMode=yes", "ControlMaster=auto", f"ControlPath={self._control}", "ControlPersist=30")
        options = [word for option in shared for word in ("-o", option)]
        return ["ssh", "-F", str(self.inventory), *options, *more, self.name]

    @property
    def _control(self) -> Path:
        return self.directory / "ssh"

    def forget_connection(self) -> None:
        """The next command makes a new one: after a reboot the old one leads nowhere."""
        subprocess.run(self._to("-O", "exit"), capture_output=True, check=False)
        self._control.unlink(missing_ok=True)


@dataclass(frozen=True)
class Vms:
    """Machines node-1 and so on, that reach each other on the private network."""

    machines: Sequence[Vm]
    inventory: Path
    """An ssh_config(5) of all."""
    netns: PrivateNetns

    def __getitem__(self, name: str) -> Vm:
        return next(vm for vm in self.machines if vm.name == name)

    def __iter__(self) -> Iterator[Vm]:
        return iter(self.machines)


def patiently(check: Callable[[], T], *, deadline_s: float) -> T:
    """As `eventually`, a second apart: what is asked by ssh takes half a second of an emulated processor."""

    def unhurried() -> T:
        found = None
        try:
            found = check()
            return found
        finally:
            if not found:
                time.sleep(1)

    return eventually(unhurried, deadline_s=deadline_s)


def address_of(number: int) -> str:
    return f"192.168.56.{10 + number}"


def build_box() -> Path:
    """The directory with disk, kernel and initrd; takes a minute or two the first time. Raises VmFailed."""
    done = subprocess.run([ROOT / "vagrant" / "box" / "build"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise VmFailed(f"the box cannot be built\n{done.stderr}")
    return Path(done.stdout.strip())


@contextmanager
def vms(directory: Path, box: Path, parcels: Sequence[Path] = (), *, count: int = 3) -> Iterator[Vms]:
    """So many machines, booted side by side, let in by ssh and on the private network.

    `directory`: disks, consoles, the key and the inventory; the disks are gone afterwards. `parcels`: files
    that are disks of every machine, in whole sectors."""
    with ExitStack() as stack:
        netns = stack.enter_context(private_netns())
        netns.run("ip link add private type bridge")
        netns.run("ip link set private up")
        public_key = _make_key(directory / "id")
        inventory = directory / "inventory"
        made = [_make(directory, number, netns, inventory, parcels) for number in range(1, count + 1)]
        inventory.write_text("\n".join(_host(vm, directory / "id") for vm in made))
        for vm in made:
            stack.callback(_end, vm)
            vm.switch_on(box, public_key)
        for vm in made:
            vm.wait_for_ssh()
            _configure_network(vm)
        yield Vms(made, inventory, netns)


def _make(directory: Path, number: int, netns: PrivateNetns, inventory: Path, parcels: Sequence[Path]) -> Vm:
    vm = Vm(number, directory / f"node-{number}", netns, inventory, 22000 + number, parcels)
    vm.directory.mkdir()
    netns.run(f"ip tuntap add tap{number} mode tap")
    netns.run(f"ip link set tap{number} master private up")
    return vm


def _end(vm: Vm) -> None:
    vm.switch_off()
    vm.forget_connection()
    (vm.directory / "disk.qcow2").unlink(missing_ok=True)


def _qemu(vm: Vm) -> list[str]:
    """`tb-size` bounds what emulation keeps of translated code, in MB; unbounded it is a gigabyte a machine.

    The first card is NAT, has the default route, and leads nowhere: so does the namespace that qemu is in."""
    second = f"52:54:00:38:00:{vm.number:02x}"
    return [
        "setpriv",
        "--pdeathsig=KILL",
        "qemu-system-x86_64",
        *("-accel", "tcg,tb-size=128", "-cpu", "qemu64", "-smp", "1", "-m", str(MEMORY_MB)),
        *("-nodefaults", "-display", "none", "-serial", f"file:{vm.directory}/console"),
        *("-drive", f"file={vm.directory}/disk.qcow2,if=virtio,cache=unsafe", "-device", "virtio-rng-pci"),
        *(word for file in vm.parcels for word in ("-drive", f"file={file},if=virtio,format=raw,readonly=on")),
        *("-netdev", f"user,id=nat,hostfwd=tcp:127.0.0.1:{vm.port}-:22"),
        *("-device", "virtio-net-pci,netdev=nat,romfile="),
        *("-netdev", f"tap,id=private,ifname=tap{vm.number},script=no,downscript=no"),
        *("-device", f"virtio-net-pci,netdev=private,romfile=,mac={second}"),
    ]


def _kernel(box: Path, name: str, public_key: str) -> list[str]:
    let_in = f"f+ /home/vagrant/.ssh/authorized_keys 0600 vagrant vagrant - {public_key}"
    append = f'{_APPEND} systemd.hostname={name} "systemd.set_credential=tmpfiles.extra:{let_in}"'
    return ["-kernel", str(box / "vmlinuz"), "-initrd", str(box / "initrd.img"), "-append", append]


def _make_key(path: Path) -> str:
    """Makes a pair; the public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path], check=True)
    return path.with_suffix(".pub").read_text().strip()


def _host(vm: Vm, key: Path) -> str:
    """As `vagrant ssh-config` prints it, but for the way into the namespace: a helper connects there and hands
    ssh the connection (ssh_config(5), ProxyUseFdpass)."""
    helper = Path(__file__).with_name("connecting.py")
    return (
        f"Host {vm.name}\n"
        f"  HostName 127.0.0.1\n"
        f"  Port {vm.port}\n"
        f"  User vagrant\n"
        f"  IdentityFile {key}\n"
        f"  IdentitiesOnly yes\n"
        f"  ProxyCommand nsenter --net={vm.netns.path} -- {sys.executable} -IS {helper} %h %p\n"
        f"  ProxyUseFdpass yes\n"
        f"  StrictHostKeyChecking no\n"
        f"  UserKnownHostsFile /dev/null\n"
        f"  LogLevel ERROR\n"
    )


def _configure_network(vm: Vm) -> None:
    """The second card, as Vagrant does it where systemd-networkd runs."""
    vm.write(
        "/etc/systemd/network/50-eth1.network",
        f"[Match]\nName=eth1\n\n[Network]\nDHCP=no\nAddress={vm.address}/24\n",
    )
    vm.run("networkctl", "reload")
    patiently(lambda: vm.address in vm.run("ip", "-4", "address", "show", "dev", "eth1"), deadline_s=30)
