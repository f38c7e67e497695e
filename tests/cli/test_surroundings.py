"""What doctor makes of the other programs on a machine, by files and answers that stand for them."""

from __future__ import annotations

import os
import sys

import pytest

from overlaynet.cli import surroundings
from overlaynet.cli.checks import OK, WARN, Check
from overlaynet.errors import InstallFailed
from overlaynet.install import contents, machine
from overlaynet.install.machine import Service
from overlaynet.state import RuleLine, RuleSet

pytestmark = pytest.mark.unit

FORWARD = ("filter", "FORWARD")


@pytest.fixture
def put(tmp_path):
    """A file of the machine whose root is `tmp_path`."""

    def put(path, text=""):
        file = tmp_path / str(path).lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return put


@pytest.fixture
def systemd(monkeypatch):
    """A systemd under which the units named are active, and whose commands answer as told."""
    answers, active = {}, set()

    def run(*argv):
        words = " ".join(argv)
        found = [answer for start, answer in answers.items() if words.startswith(start)]
        if not found:
            raise InstallFailed(f"{words} failed")
        return found[0]

    monkeypatch.setattr(machine, "booted", lambda: True)
    monkeypatch.setattr(machine, "run", run)
    monkeypatch.setattr(machine, "is_active", active.__contains__)
    return answers, active


def test_python_of_another_version_is_told(monkeypatch):
    assert surroundings.python().state == OK
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    assert surroundings.python().state == WARN


@pytest.mark.parametrize(
    ("value", "state", "next_"), [("1\n", OK, None), ("0\n", OK, None), (None, WARN, "modprobe br_netfilter")]
)
def test_br_netfilter_that_is_absent_is_told_with_what_to_type(put, tmp_path, value, state, next_):
    if value is not None:
        put("proc/sys/net/bridge/bridge-nf-call-iptables", value)
    check = surroundings.bridge_netfilter(tmp_path)
    assert (check.state, check.next) == (state, next_)


@pytest.mark.parametrize(
    ("policy", "rules", "words"),
    [
        ("ACCEPT", (), "what no rule stops"),
        ("DROP", ('-m comment --comment "x" -j OVL-FORWARD', "-j DOCKER-USER"), "rules of ours accept"),
        ("DROP", ("-j DOCKER-USER",), "Docker's, perhaps"),
    ],
)
def test_policy_of_forward_and_whose_rules_are_in_front(policy, rules, words):
    read = RuleSet("nft", {FORWARD: tuple(RuleLine(r, 0, 0) for r in rules)}, {FORWARD: policy})
    assert words in surroundings._forward(read).detail


TRUSTED = '<zone target="ACCEPT"><interface name="flannel.1"/><interface name="cni0"/></zone>'


@pytest.mark.parametrize(
    ("running", "conf", "zone", "state"),
    [
        (False, "", "", OK),
        (True, "FirewallBackend=iptables\n", "", OK),
        (True, "FirewallBackend=nftables\n", "", WARN),
        (True, "", TRUSTED.replace('"cni0"', '"eth7"'), WARN),
        (True, "", TRUSTED, OK),
    ],
)
def test_firewalld_must_trust_the_devices_unless_its_rules_are_iptables(
    put, tmp_path, systemd, running, conf, zone, state
):
    put("etc/firewalld/firewalld.conf", conf)
    put("etc/firewalld/zones/trusted.xml", zone)
    systemd[1].update({"firewalld.service"} if running else ())
    check = surroundings.firewalld(tmp_path)
    assert (check.state, bool(check.next)) == (state, state == WARN)


@pytest.mark.parametrize(
    ("active", "sub", "status", "state"),
    [
        ("active", "running", "ready; subnet 10.244.1.0/24", OK),
        ("active", "running", "degraded; OVL-301 etcd", WARN),
        ("activating", "auto-restart", "", WARN),
        ("inactive", "dead", "", WARN),
    ],
)
def test_service_is_as_the_agent_says(monkeypatch, systemd, active, sub, status, state):
    monkeypatch.setattr(machine, "service", lambda: Service(active, sub, status, 5, 0))
    assert surroundings.service(installed=True).state == state
    assert surroundings.service(installed=False).state == OK


def test_without_systemd_nothing_is_wrong(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "booted", lambda: False)
    assert surroundings.service(installed=True).state == OK
    assert surroundings.firewalld(tmp_path).state == OK


@pytest.mark.parametrize(("udev", "link", "state"), [(False, False, OK), (True, True, OK), (True, False, WARN)])
def test_udev_keeps_macs_only_where_our_file_says_so(put, tmp_path, udev, link, state):
    if udev:
        put("run/udev/control")
    if link:
        put(contents.LINK_FILE)
    assert surroundings.mac_policy(tmp_path).state == state


NETWORKD = "systemd-analyze cat-config systemd/networkd.conf"
STARTED = "systemctl show --timestamp=unix --property=ActiveEnterTimestamp systemd-networkd.service"


@pytest.mark.parametrize(
    ("merged", "admin_state", "started", "words"),
    [
        ("[Network]\n#ManageForeignRoutes=yes\n", "unmanaged", 200, "removes routes"),
        ("ManageForeignRoutes=no\nManageForeignRoutes=yes\n", "unmanaged", 200, "removes routes"),
        ("ManageForeignRoutes=no\n", "configured", 200, "manages flannel.1"),
        ("ManageForeignRoutes=no\n", "unmanaged", 50, "next start"),
        ("ManageForeignRoutes=yes\nManageForeignRoutes=no\n", "unmanaged", 200, "leaves our devices"),
    ],
    ids=["default", "overruled", "device managed", "not read yet", "good"],
)
def test_networkd_must_leave_routes_and_devices_alone(
    put, tmp_path, systemd, merged, admin_state, started, words
):
    systemd[0].update({NETWORKD: merged, STARTED: f"ActiveEnterTimestamp=@{started}\n"})
    os.utime(put(contents.NETWORKD_SETTINGS), (100, 100))
    put("sys/class/net/flannel.1/ifindex", "7\n")
    put("sys/class/net/eth0/ifindex", "2\n")
    put("run/systemd/netif/links/7", f"# state\nADMIN_STATE={admin_state}\n")
    put("run/systemd/netif/links/2", "ADMIN_STATE=configured\n")
    check = surroundings.networkd(tmp_path)
    assert words in check.detail
    assert (check.state == OK) == (words == "leaves our devices")


def test_networkmanager_must_not_manage_our_devices(systemd):
    listed = "eth0:connected\nflannel.1:unmanaged\nveth0123456789a:unmanaged\nveth1234567:connected\n"
    systemd[0]["nmcli"] = listed
    assert surroundings.network_manager().state == OK
    systemd[0]["nmcli"] = listed + "cni0:connected (externally)\n"
    check = surroundings.network_manager()
    assert (check.state, "cni0" in check.detail) == (WARN, True)


@pytest.mark.parametrize(("installed", "more"), [(False, []), (True, ["firewalld", "mac-policy", "networkd"])])
def test_only_a_machine_with_the_service_is_asked_about_its_neighbours(
    put, tmp_path, systemd, monkeypatch, installed, more
):
    systemd[1].add("systemd-networkd.service")
    monkeypatch.setattr(surroundings, "forward", lambda: Check("forward", OK, ""))
    if installed:
        put(contents.UNIT_FILE)
    names = [check.name for check in surroundings.checks(tmp_path)]
    assert names == ["python", "br_netfilter", "forward", "service", *more]
