"""The agent as a service of three booted machines: Debian's kernel, systemd as process 1, nothing prepared.

The tests are one story and run in this order: machines just booted, made nodes, a lab on them, what others on
such machines do to the overlay, an upgrade, a reboot, and away with it. Each leaves the cluster whole for the
next. What was measured is printed at the end of the run (`record_property`); times are told, never asserted.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest
from helpers.lab import lab_name
from helpers.rootless_vm import VmUser, has_a_lab_without_sudo, ordinary_user
from helpers.vm_cluster import (
    THERE,
    UNIT,
    Took,
    agent_says,
    changed_wheels,
    devices,
    failed_units,
    journal,
    main_pid,
    make_wheels,
    on_all,
    parcel,
    problems,
    provision,
    subnet,
    timed,
    unit,
    unpack,
    vtep_mac,
    wait_until_ready,
)
from helpers.vm_lessons import goes_through_there, learning_there
from helpers.vm_traffic import Traffic, inside, traffic
from helpers.vms import NAT_ADDRESS, Vm, Vms, build_box, patiently, requires_vms, vms

pytestmark = [pytest.mark.vm, requires_vms, pytest.mark.timeout(900)]

NET_ADMIN_AND_NET_RAW = 1 << 12 | 1 << 13
"""capabilities(7); bit numbers from linux/capability.h."""
EXPOSURE_BOUND = 3.0
"""`systemd-analyze security`: of 10; a service without any restriction has 9.6."""
VXLAN_PORT = 8472
WHEELS, NEWER = "/dev/vdb", "/dev/vdc"
SETTINGS = "/etc/overlaynet/agent.toml"
BRIDGE_NF = "net.bridge.bridge-nf-call-iptables"
VIP, SCTP_VIP = "10.112.0.10", "10.112.0.11"

TOPOLOGY = """
apiVersion: overlaynet/v1
kind: Lab
name: machines
hosts: [{name: node-1}, {name: node-2}, {name: node-3}]
containers:
  - name: web-1
    host: node-1
    labels: {app: web}
    ports: [80]
    probe: &probe {tcp: {port: 80}, period_s: 1}
    command:
      - python3
      - -c
      - &server |
        import http.server, socket, sys, threading

        class Hello(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(sys.argv[1].encode())

            def log_message(self, *words):
                pass

        def sctp():
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP) as listening:
                listening.bind(('', 7))
                listening.listen()
                while True:
                    connection, _ = listening.accept()
                    connection.sendall(sys.argv[1].encode())
                    connection.close()

        threading.Thread(target=sctp, daemon=True).start()
        http.server.ThreadingHTTPServer(('', 80), Hello).serve_forever()
      - web-1
  - name: web-2
    host: node-2
    labels: {app: web}
    ports: [80]
    probe: *probe
    command: [python3, -c, *server, web-2]
  - {name: client-1, host: node-3, labels: {app: client}}
services:
  - apiVersion: v1
    kind: Service
    metadata: {name: web}
    spec: {clusterIP: 10.112.0.10, selector: {app: web}, ports: [{port: 80}]}
  - apiVersion: v1
    kind: Service
    metadata: {name: echo}
    spec: {clusterIP: 10.112.0.11, selector: {app: web}, ports: [{port: 7, protocol: SCTP}]}
"""

# --- the machines, the cluster, the lab -----------------------------------------------------------


@pytest.fixture(scope="module")
def figures() -> dict[str, object]:
    """What fixtures measured, until a test tells it."""
    return {}


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory, figures: dict[str, object]) -> Iterator[Vms]:
    """Booted and reached by ssh, and nothing more. With them come what to install, and what to upgrade to."""
    where = tmp_path_factory.mktemp("vms")
    wheels = make_wheels(where / "wheels")
    newer = changed_wheels(wheels, where / "newer")
    parcels = [parcel(wheels, where / "wheels.tar"), parcel(newer, where / "newer.tar")]
    began = time.monotonic()
    box = build_box()
    figures["box: the wait for it (it is built beside other work, once)"] = seconds(time.monotonic() - began)
    began = time.monotonic()
    with vms(where, box, parcels) as booted:
        figures["boot to ssh and private network, three beside each other"] = seconds(time.monotonic() - began)
        for vm in booted:
            figures[f"boot of {vm.name}, of the processor"] = seconds(vm.cpu_s)
        yield booted


@pytest.fixture(scope="module")
def cluster(machines: Vms, figures: dict[str, object]) -> Vms:
    """Made nodes by provision.sh."""
    for name, cost in provision(machines, WHEELS).items():
        figures[f"install to READY on {name}"] = cost
    return machines


@dataclass
class MachineLab:
    """A lab on the machines, asked through `overlaynet … --lab NAME`."""

    cluster: Vms
    name: str
    topology: Path
    made: bool = False

    def __call__(self, *words: str) -> tuple[int, dict[str, Any]]:
        """One command line as an operator types it; its exit code and document."""
        command = [Path(sys.executable).with_name("overlaynet"), *words, "-l", self.name, "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def up(self) -> dict[str, Any]:
        inventory = ["--driver", "ssh", "--inventory", str(self.cluster.inventory)]
        code, document = self("up", str(self.topology), *([] if self.made else inventory), "--timeout", "120")
        assert code == 0, document
        self.made = True
        return document

    def inside(self, container: str) -> str:
        return f"ovl-{self.name}-{container}"

    @contextmanager
    def traffic(self) -> Iterator[Traffic]:
        """From node-3's container: pings to that of node-1, calls to the virtual IP of both servers."""
        client, target = self.cluster["node-3"], self.address("web-1")
        with traffic(client, self.inside("client-1"), ping=target, call=VIP) as seen:
            yield seen

    def address(self, container: str) -> str:
        _, document = self("get", "containers")
        return str(next(item["ips"][0] for item in document["items"] if item["name"] == container))


@pytest.fixture(scope="module")
def lab(cluster: Vms, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MachineLab]:
    made = MachineLab(cluster, lab_name("vm"), tmp_path_factory.mktemp("lab") / "machines.yaml")
    made.topology.write_text(TOPOLOGY)
    made.up()
    try:
        yield made
    finally:
        if made.made:
            made("down")


def answering(lab: MachineLab, calls: int = 20) -> set[str]:
    """Who answered so many calls of the virtual IP, made by the container on node-3."""
    asking = (
        "import urllib.request\n"
        f"for _ in range({calls}):\n"
        f"    print(urllib.request.urlopen('http://{VIP}/', timeout=20).read().decode())\n"
    )
    client = lab.cluster["node-3"]
    return set(inside(client, lab.inside("client-1"), "python3", "-c", asking).split())


def modules(vm: Vm) -> set[str]:
    """Those that are loaded."""
    return {line.split()[0] for line in vm.run("lsmod").splitlines()[1:]}


def bridge_ports(vm: Vm) -> set[str]:
    """The host ends of the containers that hang on the overlay's bridge."""
    return {line.split("@")[0] for line in vm.run("ip", "-br", "link", "show", "master", "cni0").splitlines()}


def conflicts(*machines: Vm) -> list[dict[str, Any]]:
    """What their agents may not claim, for another has it."""
    return [problem for vm in machines for problem in problems(vm) if problem["code"] == "OVL-404"]


def firewalld_advice(vm: Vm) -> list[str]:
    """What `doctor` says is to be typed for firewalld's tables."""
    checks = json.loads(vm.call("overlaynet", "doctor", "-o", "json").stdout)["checks"]
    detail = next(check["detail"] for check in checks if check["name"] == "nftables")
    return sorted(set(re.findall(r"try: (firewall-cmd [^;]+)", detail)))


def lost_nothing(seen: Traffic) -> None:
    assert seen.sent > 10
    assert seen.calls > 10
    told = f"{seen.sent} pings, {seen.received} answered; calls answered by {dict(seen.made)}"
    assert (seen.unanswered, seen.failures) == ([], []), told


def seconds(value: float) -> str:
    return f"{value:6.1f} s"


# --- just booted ----------------------------------------------------------------------------------


def test_three_machines_have_nothing_in_common_but_the_nat_cards_address(
    machines: Vms, figures, record_property
):
    for name, value in figures.items():
        record_property(name, value)
    own = (
        "cat /etc/machine-id",
        "cat /etc/ssh/ssh_host_ed25519_key.pub",
        "cat /proc/sys/kernel/random/boot_id",
    )
    for command in own:
        assert len({vm.sh(command) for vm in machines}) == 3, command
    for vm in machines:
        assert vm.run("hostname").strip() == vm.name
        assert f"{NAT_ADDRESS}/24" in vm.run("ip", "-4", "address", "show", "dev", "eth0")
        assert failed_units(vm) == ""
    first, second, third = machines
    first.run("ping", "-c1", "-W5", second.address)
    first.run("ping", "-c1", "-W5", third.address)


def test_a_machine_that_was_just_booted_has_none_of_the_modules(machines: Vms):
    assert not modules(machines["node-1"]) & {"vxlan", "br_netfilter", "bridge", "nf_tables", "sctp"}


# --- the service ----------------------------------------------------------------------------------


def test_service_is_active_and_systemd_was_told_so_by_the_agent(cluster: Vms, figures, record_property):
    for name in [name for name in figures if name.startswith("install")]:
        record_property(name, figures[name])
    for vm in cluster:
        said = unit(vm, "Type", "ActiveState", "UnitFileState", "NRestarts", "StatusText")
        assert (said["Type"], said["ActiveState"], said["UnitFileState"]) == ("notify", "active", "enabled")
        assert said["NRestarts"] == "0", journal(vm)
        assert {"vxlan", "br_netfilter"} <= modules(vm)
        assert failed_units(vm) == ""


def test_running_agent_has_two_capabilities(cluster: Vms):
    vm = cluster["node-2"]
    status = vm.run("cat", f"/proc/{main_pid(vm)}/status")
    held = {name: int(bits, 16) for name, bits in re.findall(r"^Cap(\w+):\s+(\w+)$", status, re.MULTILINE)}
    assert (held["Prm"], held["Eff"], held["Bnd"]) == (NET_ADMIN_AND_NET_RAW,) * 3
    assert (held["Inh"], held["Amb"]) == (0, 0)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)


def test_systemd_finds_little_exposed(cluster: Vms, record_property):
    said = cluster["node-2"].run("systemd-analyze", "security", "--no-pager", UNIT)
    score = float(re.search(r"exposure level for \S+: ([\d.]+)", said)[1])
    record_property("systemd-analyze security (10 is worst)", score)
    assert score < EXPOSURE_BOUND, said


def test_journal_has_fields(cluster: Vms):
    of_ours = [f"--unit={UNIT}", "OVERLAYNET_LOGGER=overlaynet.agent"]
    entries = cluster["node-2"].run("journalctl", "--no-pager", "--output=json", *of_ours).splitlines()
    started = json.loads(entries[0])
    assert started["SYSLOG_IDENTIFIER"] == "overlaynet-agent"
    assert (started["OVERLAYNET_NODE"], started["OVERLAYNET_INTERFACE"]) == ("node-2", "eth1")
    assert {"MESSAGE", "PRIORITY", "CODE_FILE", "CODE_LINE"} <= started.keys()


def test_nat_card_is_refused_where_no_interface_is_set(cluster: Vms):
    """Left to itself an agent takes the device of the default route, which has one address in all machines."""
    two = (cluster["node-2"], cluster["node-3"])
    # One that is refused is never ready, so nobody waits for it.
    forget = f"sed -i.kept /^interface_regex/d {SETTINGS}; systemctl --no-block restart {UNIT}"
    remember = f"mv {SETTINGS}.kept {SETTINGS}; systemctl restart {UNIT}"
    try:
        on_all(two, lambda vm: vm.sh(forget))
        refused = patiently(
            lambda: [p for vm in two for p in problems(vm) if p["code"] == "OVL-404"], deadline_s=180
        )
    finally:
        on_all(two, lambda vm: vm.sh(remember))
    assert NAT_ADDRESS in f"{refused[0]['message']} {refused[0]['evidence']}"
    assert any("node.interface" in step for step in refused[0]["next"])
    on_all(two, wait_until_ready)
    patiently(lambda: {len(agent_says(vm, "/v1/status")["peers"]) for vm in cluster} == {2}, deadline_s=120)


# --- the overlay ----------------------------------------------------------------------------------


def test_every_container_reaches_every_other(lab: MachineLab, record_property):
    code, mesh = lab("verify", "mesh")
    record_property("pairs of containers that reach each other", f"{mesh['passed']}/{mesh['total']}")
    assert (code, mesh["passed"], mesh["failed"], mesh["inconclusive"]) == (0, 6, 0, 0)


def test_virtual_ip_is_answered_across_machines(lab: MachineLab):
    assert answering(lab) == {"web-1", "web-2"}


def test_trace_across_machines_is_proved(lab: MachineLab, record_property):
    for target in ("web-1", "svc/web"):
        code, trace = lab("trace", "client-1", target)
        assert (code, trace["verdict"]) == (0, "proved"), trace
        record_property(f"trace client-1 {target}: PROVED in", seconds(trace["timing"]["total_s"]))
    crossed = [(hop["host"], hop["iface"]) for hop in trace["forward"]]
    assert ("node-3", "eth1") in crossed
    assert {hop["outer"]["dst_port"] for hop in trace["forward"] if hop["outer"]} == {VXLAN_PORT}


def test_service_by_sctp(lab: MachineLab):
    """The kernel loads the module for whoever opens such a socket."""
    asking = (
        "import socket\n"
        "for _ in range(20):\n"
        "    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP) as calling:\n"
        "        calling.settimeout(20)\n"
        f"        calling.connect(('{SCTP_VIP}', 7))\n"
        "        print(calling.recv(100).decode())\n"
    )
    client = lab.cluster["node-3"]
    answered = set(inside(client, lab.inside("client-1"), "python3", "-c", asking).split())
    assert answered == {"web-1", "web-2"}


# --- others on such machines ----------------------------------------------------------------------


def test_dockers_policy_for_forwarded_packets_does_not_stop_the_overlay(lab: MachineLab):
    for vm in lab.cluster:
        vm.run("iptables", "-P", "FORWARD", "DROP")
    try:
        with lab.traffic() as seen:
            assert answering(lab) == {"web-1", "web-2"}
            time.sleep(3)  # of pings and calls
    finally:
        for vm in lab.cluster:
            vm.run("iptables", "-P", "FORWARD", "ACCEPT")
    lost_nothing(seen)


def test_firewalld_lets_the_overlay_pass_once_it_was_told_what_doctor_says(lab: MachineLab):
    vm, client = lab.cluster["node-2"], lab.cluster["node-3"]
    target = lab.address("web-2")
    vm.run("systemctl", "start", "firewalld")
    try:
        advice = firewalld_advice(vm)
        assert [command.split(" && ")[0].split()[1:3] for command in advice] == [
            ["--permanent", "--add-port=8472/udp"],
            ["--permanent", "--zone=trusted"],
        ]
        for command in advice:
            vm.sh(command)
        assert firewalld_advice(vm) == []
        inside(client, lab.inside("client-1"), "ping", "-c3", "-W5", target)
    finally:
        vm.sh("systemctl stop firewalld; rm -f /etc/firewalld/zones/*.xml*")


def test_systemd_and_udev_leave_our_devices_and_routes_alone(lab: MachineLab, record_property):
    """The card of the underlay is networkd's, which takes it up anew: a ping now and then is lost by that."""
    anew = (
        "networkctl reload; systemctl restart systemd-networkd; systemctl restart systemd-udevd;"
        "udevadm trigger --subsystem-match=net --action=add; udevadm settle; sysctl --system >/dev/null"
    )
    before = {vm.name: devices(vm) for vm in lab.cluster}
    with lab.traffic() as seen:
        on_all(lab.cluster.machines, lambda vm: vm.sh(anew))
    record_property("networkd and udev restarted: pings sent, lost", f"{seen.sent}, {seen.lost}")
    assert seen.calls > 10
    assert seen.failures == []
    assert {vm.name: devices(vm) for vm in lab.cluster} == before


def test_bridged_frames_pass_iptables_again_after_somebody_stopped_that(lab: MachineLab):
    vm = lab.cluster["node-1"]
    vm.run("sysctl", "--write", f"{BRIDGE_NF}=0")
    patiently(lambda: vm.run("sysctl", "--values", BRIDGE_NF).strip() == "1", deadline_s=180)


def test_module_that_somebody_unloaded_is_named_with_what_to_type(lab: MachineLab):
    """Nothing asks for br_netfilter, so nothing loads it again.

    modprobe takes along the module bridge, which br_netfilter was the only user of: a bridge is none. So all
    bridges are gone. Ours is made anew, for which the kernel loads that module, and gets its containers back.
    """
    vm, client = lab.cluster["node-1"], lab.cluster["node-3"]
    before = bridge_ports(vm)
    assert before
    vm.run("modprobe", "-r", "br_netfilter")
    problem = patiently(lambda: [p for p in problems(vm) if "br_netfilter" in p["message"]], deadline_s=180)[0]
    assert problem["next"][0] == "modprobe br_netfilter"
    vm.run("modprobe", "br_netfilter")
    patiently(lambda: problems(vm) == [], deadline_s=180)
    assert vm.run("sysctl", "--values", BRIDGE_NF).strip() == "1"
    assert bridge_ports(vm) == before  # what is not back is a problem; a later full look hides none
    inside(client, lab.inside("client-1"), "ping", "-c3", "-W5", lab.address("web-1"))
    patiently(lambda: answering(lab) == {"web-1", "web-2"}, deadline_s=60)  # it was not ready for a while


def test_traffic_goes_on_while_agents_hang_and_die(lab: MachineLab, record_property):
    first, second, third = lab.cluster
    before = {vm.name: main_pid(vm) for vm in lab.cluster}
    with lab.traffic() as seen:
        hung = time.monotonic()
        second.run("kill", "-STOP", str(before[second.name]))
        first.run("kill", "-KILL", str(before[first.name]))
        third.run("systemctl", "restart", "systemd-journald")
        for vm in (first, second):
            patiently(lambda vm=vm: main_pid(vm) not in (0, before[vm.name]), deadline_s=180)
            wait_until_ready(vm)
        record_property("an agent that hangs: READY again after", seconds(time.monotonic() - hung))
    lost_nothing(seen)
    assert "Watchdog timeout" in journal(second, 60)
    assert main_pid(third) == before[third.name]


def test_agent_writes_to_the_journal_that_was_restarted(lab: MachineLab):
    vm = lab.cluster["node-3"]
    vm.run("systemctl", "reload", UNIT)
    patiently(lambda: "settings" in journal(vm, 5), deadline_s=60)


# --- an upgrade, a reboot, the end ----------------------------------------------------------------


def test_an_upgrade_loses_no_packet_and_no_call(lab: MachineLab, record_property):
    before = {vm.name: vm.run("readlink", "/usr/local/bin/overlaynet-agent") for vm in lab.cluster}
    pids = {vm.name: main_pid(vm) for vm in lab.cluster}
    on_all(lab.cluster.machines, lambda vm: unpack(vm, NEWER))
    cost: dict[str, Took] = {}

    def upgrade(vm: Vm) -> None:
        with timed(vm, lambda took: cost.update({vm.name: took})):
            vm.run(f"{THERE}/wheels/install")
            wait_until_ready(vm)

    with lab.traffic() as seen:
        on_all(lab.cluster.machines, upgrade)
    for vm in lab.cluster:
        record_property(f"upgrade to READY on {vm.name}", cost[vm.name])
        assert main_pid(vm) != pids[vm.name]
        now = vm.run("readlink", "/usr/local/bin/overlaynet-agent")
        assert now != before[vm.name]
        vm.run("test", "-x", before[vm.name].strip())  # the one before is kept
    record_property("upgrade of all: pings sent, lost", f"{seen.sent}, {seen.lost}")
    record_property("upgrade of all: calls of a VIP, failed", f"{seen.calls}, {len(seen.failures)}")
    lost_nothing(seen)
    assert seen.made.keys() == {"web-1", "web-2"}  # neither was drained


def test_a_reboot_brings_back_the_same_subnet_and_mac_and_the_lab_what_it_lost(
    lab: MachineLab, record_property
):
    vm, witness = lab.cluster["node-2"], lab.cluster["node-3"]
    before = (subnet(vm), vtep_mac(vm))
    vtep = str(ip_interface(before[0]).network.network_address)
    with (
        traffic(witness, lab.inside("client-1"), ping=vtep) as seen,
        timed(vm, lambda cost: record_property("reboot to READY", cost)),
    ):
        vm.reboot()
        wait_until_ready(vm)
    record_property(
        "reboot: between two answers of the subnet's first address", seconds(seen.longest_silence_s)
    )
    assert (subnet(vm), vtep_mac(vm)) == before
    assert failed_units(vm) == ""

    # A namespace does not outlive its kernel. The service goes on without what was in it, and up makes it anew.
    assert lab.inside("web-2") not in vm.run("ip", "netns", "list")
    patiently(lambda: answering(lab) == {"web-1"}, deadline_s=120)
    assert lab.up()["changes"] > 0
    code, mesh = lab("verify", "mesh")
    assert (code, mesh["passed"]) == (0, 6), mesh
    patiently(lambda: answering(lab) == {"web-1", "web-2"}, deadline_s=120)


def test_down_takes_back_what_the_lab_brought_and_leaves_the_agents(lab: MachineLab):
    code, _ = lab("down")
    lab.made = code != 0
    assert code == 0
    for vm in lab.cluster:
        assert lab.name not in vm.run("ip", "netns", "list")
        status = agent_says(vm, "/v1/status")
        assert (status["agent"]["state"], status["containers"]) == ("ready", [])


@pytest.fixture(scope="module")
def learners(cluster: Vms) -> Iterator[dict[str, Future[Took]]]:
    """Two people on two machines at a time, since each keeps one emulated processor busy for a minute. Neither
    has sudo."""
    work = {"a lab": (has_a_lab_without_sudo, "node-1"), "encryption": (_goes_through_encryption, "node-2")}
    with ThreadPoolExecutor() as pool:
        yield {name: pool.submit(_took, what, cluster[vm]) for name, (what, vm) in work.items()}


def _took(work: Callable[[VmUser], None], vm: Vm) -> Took:
    found: list[Took] = []
    with timed(vm, found.append), ordinary_user(vm) as user:
        work(user)
    return found[0]


def _goes_through_encryption(user: VmUser) -> None:
    with learning_there(user, "encryption") as learner:
        goes_through_there(learner)


def test_uninstalling_leaves_nothing(cluster: Vms, learners: dict[str, Future[Took]]):
    """On a third machine, while the two are at work."""
    vm = cluster["node-3"]
    vm.run("overlaynet", "agent", "uninstall", "--purge", "--yes")
    assert unit(vm, "LoadState") == {"LoadState": "not-found"}
    left = vm.sh(f"find / /run -xdev \\( -name '*overlaynet*' -o -name '*flannel*' \\) -not -path '{THERE}*'")
    assert left == ""
    assert not {"flannel.1", "cni0"} & set(vm.run("ls", "/sys/class/net").split())
    assert "10.244." not in vm.sh("ip route; ip rule; ip address")
    assert "OVL" not in vm.sh("iptables-save; nft list ruleset")
    assert failed_units(vm) == ""
    vm.run("modprobe", "-r", "vxlan", "br_netfilter")  # nobody uses them any more


def test_an_ordinary_user_has_a_lab_without_sudo_beside_the_agent(
    learners: dict[str, Future[Took]], cluster: Vms, record_property
):
    """With what is installed there, and br_netfilter loaded for the asking."""
    record_property("a user without sudo: up, trace and down", learners["a lab"].result())
    # The module took the agent's bridge along.
    patiently(lambda: problems(cluster["node-1"]) == [], deadline_s=180)


def test_the_lesson_on_encryption_is_proved_where_the_kernel_has_wireguard(
    learners: dict[str, Future[Took]], record_property
):
    """By an ordinary user too. All others are gone through without a machine, in tests/lessons."""
    record_property("a user without sudo: the lesson on encryption", learners["encryption"].result())
