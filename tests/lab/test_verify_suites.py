"""`overlaynet verify` in a lab: every suite passes where all is well, and names what was broken.

Agents are stopped before anything is broken, or they would mend it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers.eventually import eventually
from helpers.lab import caught_up, lab_name, requires_lab

from overlaynet import data
from overlaynet.cluster.contexts import LabCluster
from overlaynet.kernel import process
from overlaynet.lab.lab import Lab
from overlaynet.lab.topology import parse
from overlaynet.model import Settings

pytestmark = [pytest.mark.lab, requires_lab, pytest.mark.timeout(240)]

LONELY = """\
  - apiVersion: v1
    kind: Service
    metadata: {name: lonely}
    spec: {clusterIP: 10.112.0.20, selector: {app: nobody}, ports: [{port: 80}]}
  - apiVersion: v1
    kind: Service
    metadata: {name: local}
    spec:
      clusterIP: 10.112.0.21
      internalTrafficPolicy: Local
      selector: {app: web}
      ports: [{port: 80}]
"""
"""A service that nobody is behind, and one that only hosts with an endpoint serve."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Its records of endpoints outlive its agents for as long as the tests take."""
    text = data.path("labs", "quickstart.yaml").read_text() + LONELY
    topology = parse(text, "quickstart.yaml", lab_name("suites"))
    with Lab.running(replace(topology, settings=Settings(node_ttl_s=600))) as running:
        eventually(lambda: caught_up(LabCluster(running)), deadline_s=30)
        yield running


@pytest.fixture(scope="module")
def alone(lab: Lab) -> Lab:
    """The same without any agent."""
    for host in lab.hosts:
        pid = lab.pid(f"agent/{host.name}")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda pid=pid: process.start_time(pid) is None)
    return lab


def verify(lab: Lab, *words: str) -> tuple[int, str]:
    argv = [sys.executable, "-m", "overlaynet.cli.main", "verify", *words, "-l", lab.name]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def checks(lab: Lab, suite: str) -> tuple[int, list[dict]]:
    code, out = verify(lab, suite, "-o", "json")
    document = json.loads(out)
    assert document["kind"] == "Verify"
    assert document["total"] == len(document["checks"])
    return code, document["checks"]


def on(lab: Lab, place: str, command: str, stdin: bytes = b"") -> str:
    done = lab.driver.run(place, command.split(), stdin=stdin)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout.decode()


# --- where all is well ----------------------------------------------------------------------------


def test_every_suite_passes_and_is_summed(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "verify.xml"
    code, out = verify(lab, "all", "-o", "json", "--junit", str(file))
    document = json.loads(out)
    assert code == 0, [check for check in document["checks"] if check["verdict"] != "pass"]
    assert [suite["suite"] for suite in document["suites"]] == ["mesh", "services", "mtu", "isolation"]
    assert document["passed"] == document["total"] == sum(suite["total"] for suite in document["suites"])
    assert all(suite["total"] for suite in document["suites"])
    xml = ElementTree.parse(file).getroot()
    assert [int(suite.attrib["tests"]) for suite in xml] == [suite["total"] for suite in document["suites"]]
    assert list(xml.iter("failure")) == list(xml.iter("error")) == []


def test_text_has_a_table_a_suite_and_the_sum(lab: Lab) -> None:
    code, out = verify(lab, "all")
    assert code == 0, out
    *_, last = out.splitlines()
    assert [word.split("/")[0] for word in last.split()[1::2]] == [
        word.split("/")[1] for word in last.split()[1::2]
    ]
    assert [line for line in out.splitlines() if line in ("MESH", "SERVICES", "MTU", "ISOLATION")] == [
        "MESH", "SERVICES", "MTU", "ISOLATION",
    ]  # fmt: skip


def test_services_are_called_by_hosts_containers_and_from_outside(lab: Lab) -> None:
    code, found = checks(lab, "services")
    assert code == 0, [check for check in found if check["verdict"] != "pass"]
    web = {(check["from"], check["target_ip"]) for check in found if "default/web" in check["id"]}
    assert {("node-1", "10.112.0.10"), ("outside", "192.168.50.12"), ("client-1", "10.112.0.10")} <= web
    lonely = [check for check in found if "default/lonely" in check["id"]]
    assert len(lonely) == 6
    assert all("syn-ack" not in check["note"] for check in lonely)
    local = {check["from"]: check["note"] for check in found if "default/local" in check["id"]}
    assert "web-1" in local["node-1"]
    assert "web-3" not in local["node-1"]
    assert local["node-3"] == local["client-1"] == "1 silent"


def test_suites_need_no_agent(alone: Lab) -> None:
    for suite in ("services", "mtu", "isolation"):
        code, found = checks(alone, suite)
        assert code == 0, [check for check in found if check["verdict"] != "pass"]


# --- where something is broken --------------------------------------------------------------------


@contextmanager
def nobody_answers(lab: Lab) -> Iterator[None]:
    """An endpoint is ready by the records, and its server's port is closed by a rule in it."""
    rule = "INPUT -p tcp --dport 80 -j REJECT --reject-with tcp-reset"
    on(lab, "web-3", f"iptables-nft -A {rule}")
    try:
        yield
    finally:
        on(lab, "web-3", f"iptables-nft -D {rule}")


@contextmanager
def no_rules(lab: Lab) -> Iterator[None]:
    """node-3 translates nothing that comes from its containers."""
    saves = {flavour: on(lab, "node-3", f"iptables-{flavour}-save -t nat") for flavour in ("nft", "legacy")}
    flavour = next(flavour for flavour, rules in saves.items() if "OVL-" in rules)
    on(lab, "node-3", f"iptables-{flavour} -w -t nat -F PREROUTING")
    try:
        yield
    finally:
        on(lab, "node-3", f"iptables-{flavour}-restore -T nat", stdin=saves[flavour].encode())


@contextmanager
def one_endpoint_left_out(lab: Lab) -> Iterator[None]:
    """node-1's rules never choose the last endpoint but one: its share falls to the others."""
    saves = {flavour: on(lab, "node-1", f"iptables-{flavour}-save -t nat") for flavour in ("nft", "legacy")}
    flavour = next(flavour for flavour, rules in saves.items() if "OVL-" in rules)
    lines = saves[flavour].splitlines()
    choices = [line for line in lines if "statistic" in line and "default/web" in line]
    rest = [line for line in lines if line != choices[0]]
    on(lab, "node-1", f"iptables-{flavour}-restore -T nat", stdin=("\n".join(rest) + "\n").encode())
    try:
        yield
    finally:
        on(lab, "node-1", f"iptables-{flavour}-restore -T nat", stdin=saves[flavour].encode())


@contextmanager
def small_underlay(lab: Lab) -> Iterator[None]:
    """The way between node-1 and node-2 takes 1400 bytes, and nobody knows: what is larger vanishes."""
    rule = "INPUT -i eth0 -p udp --dport 8472 -m length --length 1401: -j DROP"
    on(lab, "node-2", f"iptables-nft -t raw -A {rule.replace('INPUT', 'PREROUTING')}")
    try:
        yield
    finally:
        on(lab, "node-2", f"iptables-nft -t raw -D {rule.replace('INPUT', 'PREROUTING')}")


@contextmanager
def open_port(lab: Lab) -> Iterator[None]:
    """node-1 lets its containers send to the VXLAN port."""
    saves = {flavour: on(lab, "node-1", f"iptables-{flavour}-save -t filter") for flavour in ("nft", "legacy")}
    flavour = next(flavour for flavour, rules in saves.items() if "OVL-" in rules)
    on(lab, "node-1", f"iptables-{flavour} -w -I FORWARD -p udp --dport 8472 -j ACCEPT")
    try:
        yield
    finally:
        on(lab, "node-1", f"iptables-{flavour} -w -D FORWARD -p udp --dport 8472 -j ACCEPT")


@contextmanager
def around_the_tunnel(lab: Lab) -> Iterator[None]:
    """node-1 sends packets for node-2's containers as they are."""
    (route,) = on(lab, "node-1", "ip route show 10.244.2.0/24").splitlines()
    on(lab, "node-1", "ip route add 10.244.2.0/25 via 192.168.50.12 dev eth0")
    try:
        yield
    finally:
        on(lab, "node-1", "ip route del 10.244.2.0/25")
        assert on(lab, "node-1", "ip route show 10.244.2.0/24").splitlines() == [route]


@contextmanager
def without_neighbour(lab: Lab) -> Iterator[None]:
    (entry,) = on(lab, "node-1", "ip neigh show 10.244.2.0 dev flannel.1").splitlines()
    on(lab, "node-1", "ip neigh del 10.244.2.0 dev flannel.1")
    try:
        yield
    finally:
        on(lab, "node-1", f"ip neigh replace 10.244.2.0 lladdr {entry.split()[2]} dev flannel.1 nud permanent")


Breaking = Callable[[Lab], AbstractContextManager[None]]


@pytest.mark.parametrize(
    ("suite", "breaking", "failed", "reason"),
    [
        ("services", nobody_answers, "web-1:default/web/tcp:10.112.0.10:80", "refused"),
        ("services", no_rules, "client-1:default/web/tcp:10.112.0.10:80", None),
        ("services", one_endpoint_left_out, "web-1:default/web/tcp:10.112.0.10:80", "endpoint_unused"),
        ("mtu", small_underlay, "node-1:node-2", "full_size_lost"),
        ("isolation", open_port, "closed:node-1:node-2", "closed"),
        ("isolation", around_the_tunnel, "tunnelled:node-1", "tunnelled"),
        ("isolation", without_neighbour, "no-arp:node-1", "no-arp"),
    ],
)
def test_what_is_broken_is_named_with_evidence(
    alone: Lab, suite: str, breaking: Breaking, failed: str, reason: str | None
) -> None:
    with breaking(alone):
        code, found = checks(alone, suite)
    assert code == 1
    (check,) = [check for check in found if check["id"] == failed]
    assert check["verdict"] == "fail"
    assert reason in (None, check["reason"])
    assert check["evidence"]
    assert checks(alone, suite)[0] == 0


def test_failure_is_told_with_its_evidence_and_a_way_on(alone: Lab) -> None:
    with small_underlay(alone):
        code, out = verify(alone, "mtu")
    assert code == 1
    block = out.partition("fail  web-1 → web-3: full_size_lost\n")[2].splitlines()
    assert block[:2] == [
        "  1450 bytes, which web-1's interface allows, do not pass: nobody says anything",
        f"  try  overlaynet trace web-1 web-3 --icmp --size 1422 --df -l {alone.name}",
    ]
    assert out.endswith("2/6 passed, 4 failed\n")


@contextmanager
def broken(lab: Lab, *words: str) -> Iterator[None]:
    """As `overlaynet break` does it, and `heal` undoes it."""
    argv = [sys.executable, "-m", "overlaynet.cli.main"]
    subprocess.run([*argv, "break", *words, "-l", lab.name], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run([*argv, "heal", "-l", lab.name], check=True, capture_output=True)


def test_one_dead_end_is_found_by_its_own_checks_alone(alone: Lab) -> None:
    dead = {"web-3", "node-2"}
    with broken(alone, "link", "web-3"):
        found = {suite: checks(alone, suite)[1] for suite in ("services", "mtu", "isolation")}
    for suite, made in found.items():
        assert len(made) > 1, suite
        away = [c for c in made if not dead & {c["from"], c["to"].partition(":")[0]} and suite != "services"]
        assert all(check["verdict"] == "pass" for check in away), suite
        own = [c for c in made if c["verdict"] != "pass"]
        assert own, suite
        assert all(check["evidence"] for check in own), suite
    called = [check for check in found["services"] if check["from"] == "web-3"]
    assert called
    assert {check["verdict"] for check in called if "default/web" in check["id"]} == {"fail"}, called


def test_point_that_nobody_can_watch_makes_its_own_checks_inconclusive(alone: Lab) -> None:
    on(alone, "node-2", "ip link set flannel.1 down")
    try:
        code, found = checks(alone, "isolation")
    finally:
        on(alone, "node-2", "ip link set flannel.1 up")
        LabCluster(alone).once("node-2", 30.0)
    own = {check["id"]: check for check in found if check["verdict"] != "pass"}
    assert own["no-arp:node-2"]["reason"] == "not_watched"
    assert code == (1 if any(check["verdict"] == "fail" for check in own.values()) else 4)
    assert not {"no-arp:node-1", "no-arp:node-3", "closed:node-1:node-3", "closed:node-3:node-1"} & own.keys()
    assert "node-2:flannel.1 could not be listened at: is down" in own["no-arp:node-2"]["evidence"]


def test_services_without_etcd_are_inconclusive(alone: Lab) -> None:
    pid = alone.pid("etcd")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        code, found = checks(alone, "services")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert code == 4
    assert [(check["verdict"], check["reason"]) for check in found] == [("inconclusive", "not_run")]
    code, out = verify(alone, "mtu")
    assert code == 0, out
