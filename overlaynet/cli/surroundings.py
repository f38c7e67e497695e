"""What else on a machine can be in an agent's way, and what `overlaynet doctor` says of it.

An agent in a lab's namespace meets none of this. On a machine, other programs think that the network is theirs:
Docker and firewalld decide what is forwarded, systemd-networkd and NetworkManager configure devices and remove
routes they did not make, udev gives new devices MACs of its own. `overlaynet agent install` puts files against
the last three in place; here it is looked up whether they count.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from overlaynet.cli.checks import OK, WARN, Check
from overlaynet.errors import OverlayError
from overlaynet.install import contents, machine
from overlaynet.state import RuleSet

HERE = Path("/")
INSTALL = "sudo overlaynet agent install"
OURS = re.compile(r"flannel\..*|cni0|veth[0-9a-f]{11}")
"""Names of the overlay's devices."""
TRUST = "firewall-cmd --permanent --zone=trusted --add-interface=flannel.1 --add-interface=cni0"
_BRIDGE_NF = "proc/sys/net/bridge/bridge-nf-call-iptables"


def checks(root: Path = HERE) -> Iterator[Check]:
    """All of it. What is only about a service is left out where there is none."""
    yield python()
    yield bridge_netfilter(root)
    yield forward()
    installed = is_service_installed(root)
    yield service(installed=installed)
    if installed:
        yield from _of_a_service(root)


def is_service_installed(root: Path = HERE) -> bool:
    """Whether the agent is a service here, so that this is a host and not only a place for labs."""
    return (root / contents.UNIT_FILE.relative_to("/")).exists()


def _of_a_service(root: Path) -> Iterator[Check]:
    yield firewalld(root)
    yield mac_policy(root)
    managers: dict[str, Callable[[], Check]] = {
        "systemd-networkd.service": partial(networkd, root),
        "NetworkManager.service": network_manager,
    }
    for unit, check in managers.items():
        if machine.booted() and machine.is_active(unit):
            yield check()


def python() -> Check:
    """The one that runs this, which is the one that the agent runs with."""
    version = platform.python_version()
    if not (3, 11) <= sys.version_info < (3, 14):
        return Check("python", WARN, f"{version}; overlaynet is tested on 3.11, 3.12 and 3.13")
    return Check("python", OK, version)


def bridge_netfilter(root: Path) -> Check:
    setting = root / _BRIDGE_NF
    if not setting.exists():
        detail = "not loaded; a container cannot call a service whose endpoint is on its own host"
        return Check("br_netfilter", WARN, detail, "modprobe br_netfilter")
    if setting.read_text().strip() != "1":
        return Check("br_netfilter", OK, "loaded and off; an agent with services turns it on")
    return Check("br_netfilter", OK, "bridged packets pass iptables")


def forward() -> Check:
    """By the rules of the namespace we are in."""
    from overlaynet.firewall.iptables import Iptables

    try:
        return _forward(Iptables().observe())
    except OverlayError as error:
        return Check("forward", OK, f"not read: {error.message}")


def _forward(rules: RuleSet) -> Check:
    """Docker sets the policy to DROP, which is fine behind rules of ours, and only there."""
    chain = ("filter", "FORWARD")
    if rules.policies.get(chain, "ACCEPT") == "ACCEPT":
        return Check("forward", OK, "what no rule stops is forwarded")
    if any("-j OVL-" in rule.text for rule in rules.chains.get(chain, ())):
        return Check("forward", OK, "the policy is DROP, and rules of ours accept the overlay before")
    return Check(
        "forward", OK, "the policy is DROP (Docker's, perhaps); an agent's rules would be in front of it"
    )


def firewalld(root: Path) -> Check:
    """With its nftables backend a packet must pass its tables besides ours (firewalld.conf(5))."""
    if not (machine.booted() and machine.is_active("firewalld.service")):
        return Check("firewalld", OK, "not running")
    etc = root / "etc/firewalld"
    if "FirewallBackend=iptables" in _lines(etc / "firewalld.conf"):
        return Check("firewalld", OK, "its rules are iptables', behind ours")
    trusted = " ".join(_lines(etc / "zones/trusted.xml"))
    missing = [name for name in ("flannel.1", "cni0") if f'"{name}"' not in trusted]
    if missing:
        detail = f"it stops what passes {' and '.join(missing)}, which are not in its zone trusted"
        return Check("firewalld", WARN, detail, f"{TRUST} && firewall-cmd --reload")
    return Check("firewalld", OK, "it trusts the overlay's devices")


def service(*, installed: bool) -> Check:
    if not machine.booted():
        return Check("service", OK, "no systemd here; labs need none, a machine's agent any supervisor")
    if not installed:
        return Check("service", OK, f"the agent is not installed as one; `{INSTALL}` does it")
    try:
        now = machine.service()
    except OverlayError as error:
        return Check("service", WARN, error.message, f"systemctl status {contents.UNIT}")
    said = f"{now.state}: {now.status}" if now.status else now.state
    if now.state == "ready" and not now.status.startswith("degraded"):
        return Check("service", OK, said)
    return Check("service", WARN, said, machine.JOURNAL)


def mac_policy(root: Path) -> Check:
    """The first matching file counts; systemd's own comes last (systemd.link(5))."""
    if not (root / "run/udev/control").exists():
        return Check("mac-policy", OK, "no udev here that could change a MAC")
    if (root / contents.LINK_FILE.relative_to("/")).exists():
        return Check("mac-policy", OK, "udev leaves the overlay's MACs alone")
    return Check("mac-policy", WARN, f"udev may change MACs: there is no {contents.LINK_FILE}", INSTALL)


def networkd(root: Path) -> Check:
    """Its settings as merged, and the state it keeps of each link."""
    try:
        merged = machine.run("systemd-analyze", "cat-config", "systemd/networkd.conf")
    except OverlayError as error:
        return Check("networkd", WARN, error.message)
    if _last_value(merged, "ManageForeignRoutes") in (None, "yes", "true", "1", "on"):
        return Check("networkd", WARN, "it removes routes that it did not make", INSTALL)
    managed = managed_links(root)
    if managed:
        return Check("networkd", WARN, f"it manages {', '.join(managed)}, which is the agent's", INSTALL)
    if not started_since(root, "systemd-networkd.service"):
        detail = "it leaves our routes alone from its next start on"
        return Check("networkd", WARN, detail, "systemctl restart systemd-networkd")
    return Check("networkd", OK, "it leaves our devices and routes alone")


def _last_value(merged: str, name: str) -> str | None:
    found = re.findall(rf"^{name}=(.*)$", merged, re.MULTILINE)
    return found[-1].strip().lower() if found else None


def managed_links(root: Path) -> list[str]:
    """Devices of ours that networkd configures: its state of a link, by index (sd-network)."""
    found = []
    for link in sorted((root / "sys/class/net").glob("*")):
        if OURS.fullmatch(link.name):
            index = (link / "ifindex").read_text().strip()
            state = _lines(root / "run/systemd/netif/links" / index)
            if any(re.match("ADMIN_STATE=(?!unmanaged)", line) for line in state):
                found.append(link.name)
    return found


def started_since(root: Path, unit: str) -> bool:
    """Whether it was started after our settings were written. Both times are this machine's."""
    shown = machine.run("systemctl", "show", "--timestamp=unix", "--property=ActiveEnterTimestamp", unit)
    started = re.search(r"=@(\d+)", shown)
    settings = root / contents.NETWORKD_SETTINGS.relative_to("/")
    return started is None or int(started[1]) >= int(settings.stat().st_mtime)


def network_manager() -> Check:
    try:
        listed = machine.run("nmcli", "--terse", "--fields", "DEVICE,STATE", "device")
    except OverlayError as error:
        return Check("networkmanager", WARN, error.message)
    managed = [name for name, state in _devices(listed) if OURS.fullmatch(name) and state != "unmanaged"]
    if managed:
        detail = f"it manages {', '.join(managed)}, which is the agent's"
        return Check("networkmanager", WARN, detail, INSTALL)
    return Check("networkmanager", OK, "it leaves our devices alone")


def _devices(listed: str) -> Iterator[tuple[str, str]]:
    for line in listed.splitlines():
        name, _, state = line.rpartition(":")
        yield name, state


def _lines(file: Path) -> list[str]:
    """Empty where there is no such file."""
    try:
        return file.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
