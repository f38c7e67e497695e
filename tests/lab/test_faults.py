"""Every kind of fault on a real lab: it is made, it does what it says, and healing leaves no trace of it.

One lab for all of them. What "no trace" means is told by everything the kernel says of every namespace, before
and after; that the overlay works again, by a ping and a call.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest
from helpers.eventually import eventually
from helpers.lab import cleaned_up, lab_name, requires_lab
from helpers.pinging import pinging

from overlaynet import data
from overlaynet.cluster.contexts import LabCluster
from overlaynet.errors import AgentUnreachable, LabFailed, OverlayError
from overlaynet.kernel import netns, process
from overlaynet.lab import faults
from overlaynet.lab.faultkinds import KINDS, Request
from overlaynet.lab.faultrecords import Fault
from overlaynet.lab.faults import Made, changing_faults
from overlaynet.lab.lab import Lab
from overlaynet.lab.netns_driver import namespace
from overlaynet.lab.paths import Paths
from overlaynet.lab.topology import Topology, parse

pytestmark = [pytest.mark.lab, requires_lab]

FAR = "10.244.2.2"
"""web-3 on node-2, seen from web-1 on node-1."""
VIP = "10.112.0.10"
WELL_S = 30.0
LOOKS = (
    "ip -o link",
    "ip -o -4 address",
    "ip route show table all",
    "ip neigh show nud permanent",
    "bridge fdb",
    "iptables-save",
    "grep -s . /proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/bridge/bridge-nf-call-iptables",
    "sysctl net.ipv4.ip_forward",
)
SHIFTING = re.compile(r"^#.*|^\*\w+$|^COMMIT$|^:[A-Z]+ .*|(?<=^:)(\S+ \S+) .*|\bqdisc \w+|\bstate \w+")
"""What changes by itself: times in comments; tables and built-in chains, which are there once somebody asked
for them; counters of chains; what follows from an interface's flags."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    text = data.path("labs", "quickstart.yaml").read_text()
    with Lab.running(parse(text, "quickstart.yaml", lab_name("faults"))) as running:
        yield running


@dataclass(frozen=True)
class Broken:
    """A fault, and the lab it is in."""

    lab: Lab
    made: Made

    @property
    def fault(self) -> Fault:
        return self.made.fault


def break_(lab: Lab, kind: str, *words: str, hold: bool = True, for_s: float | None = None, **more) -> Broken:
    with changing_faults(lab.name, lab.root) as mine:
        return Broken(lab, mine.make(kind, Request(words, **more), time.time(), for_s, hold=hold))


def heal(lab: Lab, *idents: str) -> tuple[Fault, ...]:
    with changing_faults(lab.name, lab.root) as mine:
        return mine.heal(idents, time.time())


@pytest.fixture(scope="module")
def untouched(lab: Lab) -> dict[str, list[str]]:
    """Everything there is to see before anything was broken."""
    eventually(lambda: is_well(lab), deadline_s=WELL_S)
    return everything(lab)


@pytest.fixture
def whole(lab: Lab, untouched: dict[str, list[str]]) -> Iterator[Lab]:
    """The lab, which after the test is well again and looks just as it did before any."""
    yield lab
    heal(lab)
    eventually(lambda: is_well(Lab.open(lab.name, lab.root)), deadline_s=WELL_S)
    eventually(lambda: same(everything(lab), untouched), deadline_s=WELL_S)
    assert not lab.paths.faults_json.exists()


def everything(lab: Lab) -> dict[str, list[str]]:
    """Line by line, by place; one shell for each place."""
    looks = "sh -c " + shlex.quote("; ".join(LOOKS))
    return {place: [line for line in inside(lab, place, looks) if line] for place in lab.places}


def inside(lab: Lab, place: str, command: str) -> list[str]:
    argv = ["nsenter", f"--net={netns.path(namespace(lab.name, place))}", "--", *shlex.split(command)]
    out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [SHIFTING.sub(r"\1", line) for line in out.splitlines()]


def same(now: dict[str, list[str]], before: dict[str, list[str]]) -> bool:
    differing = {place: sorted(set(now[place]) ^ set(before[place])) for place in before}
    assert {place: lines for place, lines in differing.items() if lines} == {}
    return True


def is_well(lab: Lab) -> bool:
    statuses = [lab.agent(host.name).get("/v1/status") for host in lab.hosts]
    assert [s["agent"]["state"] for s in statuses] == ["ready"] * 3
    assert [(s["pending"], len(s["peers"]), s["holds"], s["problems"]) for s in statuses] == [
        (0, 2, [], [])
    ] * 3
    assert [lab.agent(host.name).get("/v1/plan")["count"] for host in lab.hosts] == [0] * 3
    assert ping(lab)
    assert calls(lab)
    assert process_count(lab) == 1 + 3 + 4
    return True


def process_count(lab: Lab) -> int:
    return sum(running.process.alive for running in lab.state.processes.values())


def ping(lab: Lab, target: str = FAR, place: str = "web-1", *more: str) -> bool:
    argv = ["nsenter", f"--net={netns.path(namespace(lab.name, place))}", "--", "ping", "-n", "-c1", "-W1"]
    return subprocess.run([*argv, *more, target], capture_output=True, check=False).returncode == 0


def calls(lab: Lab, place: str = "client-1", target: str = VIP) -> bool:
    """Whether the service answers."""
    try:
        with netns.entered(namespace(lab.name, place)), socket.create_connection((target, 80), 2.0) as sock:
            sock.settimeout(2.0)
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return sock.recv(12).startswith(b"HTTP/1.0 200")
    except OSError:
        return False


def held(lab: Lab, host: str = "node-1") -> list[str]:
    return [f"{hold['kind']} {hold['key']}" for hold in lab.agent(host).get("/v1/status")["holds"]]


def veth(lab: Lab, place: str, ip: str) -> str:
    """The host's end of the cable of the container with this address."""
    mac = "0a:58:" + ":".join(f"{octet:02x}" for octet in ip_address(ip).packed)
    return next(line.split()[2] for line in inside(lab, place, "bridge fdb") if line.startswith(mac))


# --- what lies in hosts' own tables ---------------------------------------------------------------

DOWN = "<(NO-CARRIER,)?BROADCAST,MULTICAST>"
ENTRIES = [
    pytest.param(
        ("link", "node-1:flannel.1"), ("node-1", "ip -o link", "flannel.1", DOWN),
        ["link flannel.1"], id="link-vxlan",
    ),
    pytest.param(
        ("link", "node-1:cni0"), ("node-1", "ip -o link", "cni0:", DOWN),
        ["link cni0"], id="link-bridge",
    ),
    pytest.param(
        ("link", "web-1:eth0"), ("web-1", "ip -o link", "eth0", DOWN), [], id="link-container"
    ),
    pytest.param(
        ("link", "node-1:eth0"), ("node-1", "ip -o link", "eth0", DOWN), [], id="link-underlay"
    ),
    pytest.param(("link", "node-2"), ("node-2", "ip -o link", "eth0", "NO-CARRIER"), [], id="cable"),
    pytest.param(
        ("route", "node-1", "node-2"), ("node-1", "ip route", "10.244.2.0/24", None),
        ["route 254 10.244.2.0/24 717827"], id="route-missing",
    ),
    pytest.param(
        ("route", "node-1", "web-3", "--wrong"), ("node-1", "ip route", "10.244.2.0/24", "via 10.244.2.254"),
        ["route 254 10.244.2.0/24 717827"], id="route-wrong",
    ),
    pytest.param(("route", "web-1", "default"), ("web-1", "ip route", "default", None), [], id="route-default"),
    pytest.param(
        ("neigh", "node-1", "node-2"), ("node-1", "ip neigh", "10.244.2.0", None),
        ["neigh flannel.1 10.244.2.0"], id="neigh-missing",
    ),
    pytest.param(
        ("neigh", "node-1", "10.244.2.0", "--wrong"), ("node-1", "ip neigh", "10.244.2.0", "02:00:00:00:00:99"),
        ["neigh flannel.1 10.244.2.0"], id="neigh-wrong",
    ),
    pytest.param(
        ("neigh", "node-1", "web-1", "--wrong"), ("node-1", "ip neigh", "10.244.1.2", "02:00:00:00:00:99 PERM"),
        [], id="neigh-of-a-container",
    ),
    pytest.param(
        ("fdb", "node-1", "node-2"), ("node-1", "bridge fdb", "02:0a:f4:02:00:00", None),
        ["fdb flannel.1 02:0a:f4:02:00:00"], id="fdb-missing",
    ),
    pytest.param(
        ("fdb", "node-1", "02:0a:f4:02:00:00", "--wrong"),
        ("node-1", "bridge fdb", "02:0a:f4:02:00:00", "dst 192.168.50.99"),
        ["fdb flannel.1 02:0a:f4:02:00:00"], id="fdb-wrong",
    ),
    pytest.param(
        ("forwarding", "node-1"), ("node-1", "sysctl net.ipv4.ip_forward", "ip_forward", "= 0"),
        ["sysctl net/ipv4/ip_forward"], id="forwarding",
    ),
    pytest.param(
        ("rule", "node-1", "web-1", "web-3", "--drop"),
        ("node-1", "iptables -S FORWARD 1", "fault f1", "-s 10.244.1.2/32 -d 10.244.2.2/32 .* -j DROP"),
        [], id="rule-drop",
    ),
    pytest.param(
        ("rule", "node-1", "any", "10.244.2.0/24", "--reject"),
        ("node-1", "iptables -S FORWARD 1", "fault f1", "-d 10.244.2.0/24 .* -j REJECT"), [], id="rule-reject",
    ),
]  # fmt: skip


def asked(words: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, object]]:
    """The words of a command line, without its options, and these as a request has them."""
    plain = [word for word in words if not word.startswith("--")]
    more: dict[str, object] = {"wrong": "--wrong" in words}
    if "--to" in words:
        more["to"] = plain.pop()
    more["target"] = next((v.upper() for v in ("drop", "reject") if f"--{v}" in words), None)
    return tuple(plain), more


def shows(lab: Lab, sight: tuple[str, str, str, str | None]) -> bool:
    """Whether what a place says about something is what is wanted; the kernel tells of a carrier a little later
    than it is lost (net/core/link_watch.c)."""
    place, look, about, wanted = sight
    lines = [line for line in inside(lab, place, look) if about in line]
    assert lines == [] if wanted is None else re.search(wanted, "\n".join(lines)), lines
    return True


@pytest.mark.parametrize(("words", "sight", "holds"), ENTRIES)
def test_entry_is_wrong_until_healed(whole: Lab, words, sight, holds) -> None:
    plain, more = asked(words)
    break_(whole, *plain, **more)
    eventually(lambda: shows(whole, sight))
    assert held(whole) == holds
    assert not ping(whole)
    assert [fault.id for fault in heal(whole)] == ["f1"]
    assert held(whole) == []
    eventually(lambda: ping(whole))


def test_neighbour_that_is_asked_for_all_the_while_is_missing_and_comes_back_without_an_agent(
    whole: Lab,
) -> None:
    """The kernel has an entry for a neighbour that it asks for, and that is none."""
    with pinging(namespace(whole.name, "web-1"), FAR):
        for _ in range(10):
            break_(whole, "neigh", "node-1", "node-2")
            assert not ping(whole)
            heal(whole)
            eventually(lambda: ping(whole))
        break_(whole, "agent", "node-1")
        break_(whole, "neigh", "node-1", "node-2")
        assert not ping(whole)
        heal(whole, "f2")
        eventually(lambda: ping(whole))


def test_route_by_another_host_is_a_detour(whole: Lab) -> None:
    """node-3 forwards what is not its own, so the packet arrives, by the wrong way."""
    break_(whole, "route", "node-1", "10.244.2.0/24", to="10.244.3.0")
    assert any("via 10.244.3.0" in line for line in inside(whole, "node-1", "ip route show 10.244.2.0/24"))
    assert ping(whole)


def test_veth_of_a_container_is_held_as_the_port_it_is(whole: Lab) -> None:
    device = veth(whole, "node-1", "10.244.1.2")
    break_(whole, "link", f"node-1:{device}")
    assert held(whole) == [f"port {device}"]
    assert (ping(whole), ping(whole, place="web-2")) == (False, True)


def test_strict_reverse_path_stops_what_would_be_answered_elsewhere(whole: Lab) -> None:
    """Without its route to node-2, node-1 would answer web-3 by eth0; being loose, it lets the request in."""
    break_(whole, "route", "node-1", "node-2")
    before = echoes_received(whole, "web-1")
    assert not ping(whole, "10.244.1.2", "web-3")
    assert echoes_received(whole, "web-1") == before + 1
    break_(whole, "rp_filter", "node-1", "flannel.1")
    assert held(whole) == ["route 254 10.244.2.0/24 717827", "sysctl net/ipv4/conf/flannel.1/rp_filter"]
    assert not ping(whole, "10.244.1.2", "web-3")
    assert echoes_received(whole, "web-1") == before + 1


def echoes_received(lab: Lab, place: str) -> int:
    names, values = (
        line.split() for line in inside(lab, place, "cat /proc/net/snmp") if line.startswith("Icmp: ")
    )
    return int(values[names.index("InEchos")])


def test_container_with_too_large_an_mtu_is_told_so_by_its_host(whole: Lab) -> None:
    break_(whole, "mtu", "web-1", "1500")
    said = "\n".join(inside(whole, "web-1", f"sh -c 'ping -n -c1 -W1 -s 1450 -M do {FAR} || true'"))
    assert "Frag needed and DF set (mtu = 1450)" in said
    assert ping(whole)


def test_path_mtu_that_was_learned_is_forgotten_with_the_fault(whole: Lab) -> None:
    large = (FAR, "web-1", "-s", "1400", "-M", "do")
    broken = break_(whole, "mtu", "node-1:flannel.1", "1300")
    assert not ping(whole, *large)
    assert any("mtu 1300" in line for line in inside(whole, "web-1", f"ip route get {FAR}"))
    heal(whole, broken.fault.id)
    assert ping(whole, *large)
    assert not any("mtu" in line for line in inside(whole, "web-1", f"ip route get {FAR}"))


def test_cable_with_two_different_mtus_is_refused_by_its_own_end(whole: Lab) -> None:
    break_(whole, "mtu", "web-1:eth0", "1500")
    assert not ping(whole, FAR, "web-1", "-s", "1450", "-M", "do")
    assert ping(whole)


def test_cable_with_a_small_mtu_swallows_large_packets(whole: Lab) -> None:
    large = (FAR, "web-1", "-s", "1400", "-M", "do")
    assert ping(whole, *large)
    break_(whole, "mtu", "node-2", "1400")
    assert (ping(whole, *large), ping(whole)) == (False, True)


# --- rules of ours --------------------------------------------------------------------------------


def test_service_without_its_rule_is_no_service(whole: Lab) -> None:
    broken = break_(whole, "rule", "node-3", "svc/web")
    assert held(whole, "node-3") == ["rule nat OVL-SERVICES"]
    assert (calls(whole), calls(whole, "web-1")) == (False, True)
    heal(whole, broken.fault.id)
    assert calls(whole)


def test_rule_is_deleted_by_its_position(whole: Lab) -> None:
    chain = "iptables -t nat -S OVL-SERVICES"
    before = inside(whole, "node-3", chain)
    break_(whole, "rule", "node-3", "nat", "OVL-SERVICES", "1")
    assert inside(whole, "node-3", chain) == [before[0], *before[2:]]
    assert not calls(whole)


def test_hook_of_ours_is_deleted_and_stays_away(whole: Lab) -> None:
    rules = inside(whole, "node-1", "iptables -S FORWARD")
    position = next(n for n, line in enumerate(rules) if "let container traffic through" in line)
    break_(whole, "rule", "node-1", "filter", "FORWARD", str(position))
    assert inside(whole, "node-1", "iptables -S FORWARD") == [*rules[:position], *rules[position + 1 :]]
    assert held(whole) == ["rule filter FORWARD"]


def test_rule_comes_back_in_its_place_without_an_agent(whole: Lab) -> None:
    chain = "iptables -t nat -S OVL-SERVICES"
    before = inside(whole, "node-3", chain)
    agent = break_(whole, "agent", "node-3").fault
    rule = break_(whole, "rule", "node-3", "svc/web").fault
    assert (rule.damage.holds, calls(whole)) == ((), False)
    heal(whole, rule.id)
    assert (inside(whole, "node-3", chain), calls(whole)) == (before, True)
    assert Lab.open(whole.name, whole.root).pid("agent/node-3") is None
    heal(whole, agent.id)


# --- repair ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("route", "node-1", "node-2"),
        ("neigh", "node-1", "node-2", "--wrong"),
        ("fdb", "node-1", "node-2", "--wrong"),
        ("link", "node-1:flannel.1"),
        ("forwarding", "node-1"),
        ("rule", "node-1", "svc/web"),
    ],
    ids=lambda words: words[0],
)
def test_without_a_hold_the_agent_repairs_it_and_there_is_no_fault(whole: Lab, words: tuple[str, ...]) -> None:
    def repaired() -> int:
        return sum(whole.agent("node-1").get("/v1/status")["drift_repaired"].values())

    before = repaired()
    plain, more = asked(words)
    made = break_(whole, *plain, hold=False, **more).made
    assert made.repaired_s is not None
    assert whole.faults() == ()
    eventually(lambda: repaired() > before)


def test_without_a_hold_what_no_agent_looks_after_stays(whole: Lab) -> None:
    assert break_(whole, "route", "web-1", "default", hold=False).made.repaired_s is None
    assert [fault.id for fault in whole.faults()] == ["f1"]
    assert not ping(whole)


def test_agent_that_is_started_again_does_not_repair_what_is_still_broken(whole: Lab) -> None:
    break_(whole, "fdb", "node-1", "node-2")
    agent = break_(whole, "agent", "node-1").fault
    heal(whole, agent.id)
    assert held(whole) == ["fdb flannel.1 02:0a:f4:02:00:00"]
    assert not ping(whole)


def test_entry_comes_back_without_an_agent(whole: Lab) -> None:
    agent = break_(whole, "agent", "node-1").fault
    fdb = break_(whole, "fdb", "node-1", "node-2", wrong=True).fault
    assert not ping(whole)
    heal(whole, fdb.id)
    assert ping(whole)
    heal(whole, agent.id)


# --- between hosts --------------------------------------------------------------------------------


def test_partition_cuts_these_hosts_and_no_others(whole: Lab) -> None:
    hosts = [host.name for host in whole.hosts]
    before = everything(whole)
    break_(whole, "partition", "node-1", "node-2")
    assert same(everything(whole), {host: before[host] for host in hosts})
    assert not ping(whole)
    assert not ping(whole, "192.168.50.12", "node-1")
    assert ping(whole, "10.244.3.2")
    assert ping(whole, "192.168.50.2", "node-1")
    heal(whole)
    assert ping(whole)


def test_partition_from_etcd(whole: Lab) -> None:
    break_(whole, "partition", "node-1,node-3", "etcd")
    assert [ping(whole, "192.168.50.2", host) for host in ("node-1", "node-2", "node-3")] == [
        False,
        True,
        False,
    ]
    assert ping(whole)


def test_two_partitions_are_healed_one_by_one(whole: Lab) -> None:
    first = break_(whole, "partition", "node-1", "node-2").fault
    break_(whole, "partition", "node-1", "node-3")
    heal(whole, first.id)
    assert (ping(whole), ping(whole, "10.244.3.2")) == (True, False)


def test_loss_takes_some_and_not_all(whole: Lab) -> None:
    break_(whole, "loss", "node-1", "node-2", "50")
    argv = ["nsenter", f"--net={netns.path(namespace(whole.name, 'web-1'))}", "--"]
    argv += ["ping", "-n", "-q", "-c60", "-i0.01", "-W1", FAR]
    said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    received = int(re.search(r"(\d+) received", said)[1])
    assert 0 < received < 50
    assert ping(whole, "10.244.3.2")


def test_loss_of_everything(whole: Lab) -> None:
    break_(whole, "loss", "node-1", "100%")
    assert (ping(whole), ping(whole, "10.244.3.2"), ping(whole, "192.168.50.2", "node-1")) == (
        False,
        False,
        True,
    )


# --- processes and hosts --------------------------------------------------------------------------


def test_agent_is_killed_and_started(whole: Lab) -> None:
    before = whole.agent("node-2").get("/v1/status")["agent"]["pid"]
    break_(whole, "agent", "node-2")
    with pytest.raises(AgentUnreachable):
        whole.agent("node-2").get("/v1/status")
    assert ping(whole)
    heal(whole)
    assert whole.agent("node-2").get("/v1/status")["agent"]["pid"] != before


def test_etcd_is_killed_and_started(whole: Lab) -> None:
    break_(whole, "etcd")
    assert Lab.open(whole.name, whole.root).pid("etcd") is None
    assert ping(whole)
    heal(whole)
    assert Lab.open(whole.name, whole.root).pid("etcd") is not None


def test_host_dies_without_a_word_and_comes_back(whole: Lab) -> None:
    """Its peers know of it until its lease runs out, which is what tells a dead host from a stopped one."""
    break_(whole, "node", "node-2")
    names = [namespace(whole.name, place) for place in ("node-2", "web-3", "web-4")]
    assert process.inside(netns.path(name) for name in names) == []
    assert not ping(whole)
    assert not ping(whole, "192.168.50.12", "node-1")
    view_of_peer = whole.agent("node-1").get("/v1/status")["peers"]
    assert "node-2" in [peer["node"] for peer in view_of_peer]
    heal(whole)
    eventually(lambda: ping(whole))
    eventually(lambda: calls(whole, target="10.244.2.2"))


def test_nothing_else_is_broken_on_a_dead_host(whole: Lab) -> None:
    break_(whole, "node", "node-2")
    for words in (("link", "web-3:eth0"), ("agent", "node-2"), ("link", "node-2"), ("node", "node-2")):
        with pytest.raises(OverlayError, match=r"f1 has broken that already|is down already"):
            break_(whole, *words)


# --- ends -----------------------------------------------------------------------------------------


def test_fault_ends_by_itself(whole: Lab) -> None:
    fault = break_(whole, "link", "web-1", for_s=5.0).fault
    assert not ping(whole)
    assert fault.timer is not None
    eventually(lambda: whole.faults() == (), deadline_s=WELL_S)
    eventually(lambda: ping(whole))
    eventually(lambda: not fault.timer.alive, deadline_s=WELL_S)


def test_hold_of_a_fault_that_ends_ends_too(whole: Lab) -> None:
    break_(whole, "route", "node-1", "node-2", for_s=600)
    (hold,) = whole.agent("node-1").get("/v1/status")["holds"]
    assert 0 < hold["expires_in_s"] <= 600
    assert hold["reason"] == "fault f1: route node-1 node-2"


def test_timer_is_ended_by_healing(whole: Lab) -> None:
    fault = break_(whole, "agent", "node-3", for_s=600).fault
    assert fault.timer is not None
    assert fault.timer.alive
    heal(whole)
    assert not fault.timer.alive


def test_up_heals_first(whole: Lab) -> None:
    break_(whole, "link", "node-2")
    break_(whole, "route", "node-1", "node-2")
    break_(whole, "node", "node-3")
    result = Lab.up(whole.topology)
    assert [fault.kind for fault in result.healed] == ["node", "route", "link"]
    assert (result.changes, result.converged) == (3 + 1, True)  # and node-3's agent
    assert ping(whole)


def test_another_command_is_not_waited_for(whole: Lab) -> None:
    with changing_faults(whole.name, whole.root), pytest.raises(LabFailed, match="another command"):
        break_(whole, "agent", "node-1")


def test_down_leaves_nothing_of_a_fault() -> None:
    name = lab_name("fdown")
    with cleaned_up(name, Paths()):
        Lab.up(Topology.simple(name, hosts=1, containers=0))
        lab = Lab.open(name)
        timer = break_(lab, "agent", "node-1", for_s=600).fault.timer
        assert timer is not None
        assert timer.alive
        lab.down()
        assert not timer.alive
        assert not lab.paths.run.exists()


def typed(lab: Lab, *words: str) -> tuple[int, str]:
    """A command as a person types it: exit code and output."""
    argv = [sys.executable, "-m", "overlaynet.cli.main", *words, "-l", lab.name]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_commands_tell_the_same(whole: Lab) -> None:
    """`break` and `diff`, `status` and `get labs`, and `heal`, each as a document."""
    code, out = typed(whole, "break", "fdb", "node-1", "node-2", "--wrong", "--for", "10m", "-o", "json")
    made = json.loads(out)
    assert (code, made["kind"], made["id"], made["fault_kind"], made["for_s"]) == (0, "Fault", "f1", "fdb", 600)
    assert made["hold"] == ["fdb flannel.1 02:0a:f4:02:00:00"]
    assert made["undo"][0] == f"overlaynet heal f1 -l {whole.name}"
    code, out = typed(whole, "diff", "-o", "json")
    assert (code, json.loads(out)["count"]) == (1, 1)
    (item,) = json.loads(typed(whole, "status", "-o", "json")[1])["faults"]
    assert (item["kind"], item["target"], item["until"]) == ("fdb", "node-1 node-2 --wrong", made["until"])
    assert "broken  f1 fdb node-1 node-2 --wrong, until " in typed(whole, "status")[1]
    labs = json.loads(typed(whole, "get", "labs", whole.name, "-o", "json")[1])["items"]
    assert [one["faults"] for one in labs] == [["f1"]]
    assert typed(whole, "heal") == (0, "healed f1  fdb node-1 node-2 --wrong\n")
    assert typed(whole, "heal") == (0, "nothing is broken\n")
    assert typed(whole, "diff")[0] == 0


def test_every_pair_is_reachable_again(whole: Lab) -> None:
    for words in (("node", "node-2"), ("link", "node-1:cni0"), ("route", "web-1", "default")):
        break_(whole, *words)
    assert typed(whole, "verify", "mesh")[0] == 1
    heal(whole)
    assert typed(whole, "verify", "mesh")[0] == 0


def test_every_kind_is_tried_here() -> None:
    tried = {"link", "route", "neigh", "fdb", "forwarding", "rule", "rp_filter", "mtu"}
    in_lessons = {"server"}
    assert tried | {"agent", "etcd", "node", "loss", "partition"} | in_lessons == set(KINDS)


def test_cluster_tells_of_faults(whole: Lab) -> None:
    break_(whole, "agent", "node-1")
    assert [fault.kind for fault in LabCluster(whole).lab.faults()] == ["agent"]
    assert faults.heal_before("no-such-lab", whole.root) == ()
