"""Real `vagrant up`: three emulated machines by libvirt, made nodes by vagrant/provision.sh, and a lab on them.

The tests are steps of one life, in order: up, a lab, a trace, a fault, a reboot, an upgrade, destroy. What was
measured is printed at the end; times are told and never asserted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest
from helpers.eventually import eventually
from helpers.lab import lab_name
from helpers.libvirt import UP_S, VagrantLab, build_box, copy_clone, enclosure, requires_vagrant
from helpers.vm_cluster import UNIT, main_pid, subnet, vtep_mac, wait_until_ready
from helpers.vm_traffic import traffic

pytestmark = [pytest.mark.vagrant, requires_vagrant, pytest.mark.timeout(2 * UP_S)]

PATIENCE_S = "300"
AGAIN_S = 600
VIP = "10.112.0.10"
"""Of the service web of labs/quickstart.yaml: web-1 and web-2 are on node-1, web-3 and web-4 on node-2, both
clients on node-3."""
PAIRS = 30

Took = Callable[[str], None]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VagrantLab]:
    """Nothing is up yet."""
    directory = tmp_path_factory.mktemp("vagrant")
    box = build_box()
    (directory / "libvirt").mkdir()
    copy_clone(directory / "clone")
    with enclosure(directory / "libvirt") as namespaces:
        made = VagrantLab(namespaces, directory / "clone", lab_name("vg"))
        made.vagrant("box", "add", str(box / "lab.json"))
        yield made


@pytest.fixture
def took(record_property) -> Took:
    """Tells the seconds since this was asked for, and how busy the machine was."""
    began = time.monotonic()

    def tell(what: str) -> None:
        load = Path("/proc/loadavg").read_text().split()[0]
        record_property(what, f"{time.monotonic() - began:6.1f} s, load {load}")

    return tell


def identities(lab: VagrantLab) -> list[tuple[str, str]]:
    return [(subnet(machine), vtep_mac(machine)) for machine in lab.machines]


def up(lab: VagrantLab) -> None:
    """In vagrant/, as docs/vagrant.md says it."""
    lab.overlaynet("up", "--driver", "vagrant", "../labs/quickstart.yaml", "--timeout", PATIENCE_S)


def check_mesh(lab: VagrantLab) -> str:
    found = patiently(lab, "verify", "mesh", "--timeout", PATIENCE_S)
    assert (found["passed"], found["total"]) == (PAIRS, PAIRS), found
    return f"{found['passed']}/{found['total']}"


def patiently(lab: VagrantLab, *words: str, exit_code: int = 0) -> dict[str, Any]:
    """The document, once the command ends so: an emulated machine that is busy answers late, and then a call
    counts as silent and a trace proves nothing. What is truly wrong stays so."""
    return eventually(lambda: lab.overlaynet(*words, exit_code=exit_code), deadline_s=AGAIN_S)


def check_trace(lab: VagrantLab, target: str) -> None:
    """Proved, there and back, over both machines' underlay."""
    found = patiently(lab, "trace", "client-1", target)
    assert found["verdict"] == "proved", found
    for way in ("forward", "reply"):
        seen = {(hop["host"], hop["iface"]) for hop in found[way] if hop["seen"]}
        assert len({host for host, iface in seen if iface == "eth1"}) == 2, found[way]


# --- up -------------------------------------------------------------------------------------------


def test_up_makes_nodes_that_are_ready(lab: VagrantLab, record_property, request):
    lab.pack()
    assert "validated successfully" in lab.vagrant("validate")
    took: Took = request.getfixturevalue("took")
    lab.vagrant("up", "--no-tty")
    took("vagrant up: three machines, agents ready")
    lab.write_inventory()
    for machine in lab.machines:
        record_property(f"vagrant up: {machine.name}, of the processor", f"{machine.cpu_s:6.1f} s")
        wait_until_ready(machine)
    assert len(set(identities(lab))) == lab.count


def test_underlay_is_the_private_network(lab: VagrantLab):
    """Not the card with the default route, which is Vagrant's own."""
    for number, machine in enumerate(lab.machines, 1):
        link = json.loads(machine.run("ip", "-details", "-json", "link", "show", "dev", "flannel.1"))[0]
        default = json.loads(machine.run("ip", "-json", "route", "show", "default"))
        tunnel = link["linkinfo"]["info_data"]
        assert (tunnel["local"], tunnel["link"]) == (f"192.168.56.{10 + number}", "eth1")
        assert [route["dev"] for route in default] == ["eth0"]


def test_etcd_is_on_node_1_alone_and_on_the_private_network_alone(lab: VagrantLab):
    listening = [machine.run("ss", "-Hltn", "sport = :2379").split() for machine in lab.machines]
    assert [words[3] if words else None for words in listening] == ["192.168.56.11:2379", None, None]


def test_nothing_drifts_by_itself(lab: VagrantLab):
    """What this kernel announces of the agents' own writes is not taken for somebody else's."""
    for machine in lab.machines:
        assert "drift repaired" not in machine.run("journalctl", "--no-pager", f"--unit={UNIT}")


# --- a lab ----------------------------------------------------------------------------------------


def test_lab_on_them(lab: VagrantLab, took: Took, record_property):
    up(lab)
    took("overlaynet up --driver vagrant: six containers, one service")
    record_property("pairs of containers that reach each other", check_mesh(lab))


def test_virtual_ip_is_answered_across_machines(lab: VagrantLab):
    asking = f"import urllib.request as r; print(r.urlopen('http://{VIP}/', timeout=60).read().decode())"
    command = ("ip", "netns", "exec", lab.inside("client-1"), "python3", "-c", asking)
    answered = {lab.machines[2].run(*command).split()[0] for _ in range(20)}
    assert answered <= {"web-1", "web-2", "web-3", "web-4"}
    assert answered & {"web-1", "web-2"}
    assert answered & {"web-3", "web-4"}


def test_every_service_is_verified(lab: VagrantLab, record_property):
    found = patiently(lab, "verify", "services", "--timeout", PATIENCE_S)
    record_property("checks of services that passed", f"{found['passed']}/{found['total']}")
    assert found["passed"] == found["total"] > 0, found


def test_trace_across_machines_is_proved(lab: VagrantLab, took: Took):
    check_trace(lab, "web-1")
    took("overlaynet trace client-1 web-1: PROVED")
    check_trace(lab, "svc/web")


def test_what_is_broken_is_found_and_healed(lab: VagrantLab):
    lab.overlaynet("break", "fdb", "node-3", "node-1", "--for", "10m")
    found = patiently(lab, "trace", "client-1", "web-1", exit_code=1)
    assert (found["verdict"], found["cause"]["kind"]) == ("lost", "fdb_missing"), found
    lab.overlaynet("heal")
    check_trace(lab, "web-1")


# --- reboot, upgrade, destroy ---------------------------------------------------------------------


def test_reload_keeps_subnet_and_mac(lab: VagrantLab, took: Took, record_property):
    before = identities(lab)
    rebooted, witness = lab.machines[1], lab.machines[2]
    boot_id = rebooted.run("cat", "/proc/sys/kernel/random/boot_id")
    vtep = str(ip_interface(before[1][0]).network.network_address)
    with traffic(witness, lab.inside("client-1"), ping=vtep) as seen:
        lab.vagrant("reload", rebooted.name)
        took("vagrant reload node-2")
        lab.write_inventory()
        wait_until_ready(rebooted)
        took("vagrant reload node-2, until its agent is ready")
    record_property(
        "reload: between two answers of its subnet's first address", f"{seen.longest_silence_s:6.1f} s"
    )
    assert rebooted.run("cat", "/proc/sys/kernel/random/boot_id") != boot_id
    assert identities(lab) == before
    up(lab)  # namespaces do not outlive their kernel
    record_property("pairs of containers that reach each other after it", check_mesh(lab))


def test_upgrade_by_provision_loses_no_packet_and_no_call(lab: VagrantLab, took: Took, record_property):
    before = identities(lab), [main_pid(machine) for machine in lab.machines]
    # The number stays: the machines of a lab must have that of the command.
    with (lab.clone / "overlaynet/__init__.py").open("a") as source:
        source.write("# a newer build\n")
    lab.pack()
    containers = lab.overlaynet("get", "containers")["items"]
    target = next(item["ips"][0] for item in containers if item["name"] == "web-1")
    with traffic(lab.machines[2], lab.inside("client-1"), ping=target, call=VIP) as seen:
        took("packing the new wheel")
        lab.vagrant("provision", "--no-tty")
        took("vagrant provision: the new wheel on three machines, one after the other, packing included")
        for machine in lab.machines:
            wait_until_ready(machine)
    record_property("upgrade: pings sent, lost", f"{seen.sent}, {seen.lost}")
    record_property("upgrade: calls of a VIP, failed", f"{seen.calls}, {len(seen.failures)}")
    assert seen.sent > 10
    assert seen.calls > 10
    assert (seen.lost, seen.failures) == (0, [])
    assert identities(lab) == before[0]
    assert not set(before[1]) & {main_pid(machine) for machine in lab.machines}, "no agent was started anew"


def test_provision_again_changes_nothing(lab: VagrantLab):
    before = [main_pid(machine) for machine in lab.machines]
    said = lab.vagrant("provision", "--no-tty")
    assert said.count(" 0 changes") == lab.count, said
    assert [main_pid(machine) for machine in lab.machines] == before


def test_destroy_leaves_nothing(lab: VagrantLab, took: Took):
    """But for the box's image, which libvirt keeps for the next time."""
    lab.overlaynet("down")
    lab.vagrant("destroy", "-f", "--no-tty")
    took("overlaynet down, vagrant destroy -f")
    there = lab.enclosure
    assert there.virsh("list", "--all", "--name") == []
    assert there.virsh("net-list", "--all", "--name") == ["default"]  # libvirt's own, and not started
    assert there.virsh("net-list", "--name") == []
    images = [path.name for path in (there.directory / "lib/images").iterdir()]
    assert len(images) == 1, images
    assert "_vagrant_box_image_" in images[0]
    assert there.processes() == ["libvirtd"]
    assert "running" not in lab.vagrant("status")
