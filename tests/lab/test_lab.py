"""Whole labs: up, again, mended, changed, two at once, and nothing left afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.eventually import eventually
from helpers.lab import cleaned_up, lab_name, own_network, ping, requires_lab

from overlaynet.core.keys import Keys
from overlaynet.errors import LabChoice, LabFailed, TopologyError
from overlaynet.kernel import netns, process
from overlaynet.lab import build, lifecycle
from overlaynet.lab.lab import Lab
from overlaynet.lab.netns_driver import namespace
from overlaynet.lab.paths import Paths
from overlaynet.lab.state import save
from overlaynet.lab.topology import Container, Topology, parse

pytestmark = [pytest.mark.lab, requires_lab]

PATHS = Paths()


def two_hosts(word: str) -> Topology:
    return Topology.simple(lab_name(word), hosts=2, containers=1)


def up(topology: Topology) -> Lab:
    result = Lab.up(topology)
    assert result.converged, result.waiting
    return Lab.open(topology.name)


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: process.start_time(pid) is None)


def container_ips(lab: Lab) -> dict[str, str]:
    statuses = [lab.agent(host.name).get("/v1/status") for host in lab.hosts]
    return {c["name"]: c["ips"][0] for status in statuses for c in status["containers"]}


def everyone_reaches_everyone(lab: Lab) -> bool:
    ips = container_ips(lab)
    assert set(ips) == {c.name for c in lab.containers}
    return all(ping(namespace(lab.name, a), ip) for a in ips for b, ip in ips.items() if a != b)


def traces_of(name: str) -> list[str]:
    """Whatever is left of a lab: namespaces, directories, processes."""
    left = [item for item in netns.names() if item.startswith(f"ovl-{name}-")]
    lab = PATHS.lab(name)
    return left + [str(path) for path in (lab.run, lab.state, PATHS.lock(name)) if path.exists()]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One lab for the tests that leave it as they found it."""
    with Lab.running(two_hosts("shared")) as running:
        yield running


def test_containers_reach_each_other_and_the_outside(lab: Lab) -> None:
    assert everyone_reaches_everyone(lab)
    assert ping(namespace(lab.name, "web-1"), "203.0.113.10")


def test_underlay_has_no_way_to_the_overlay(lab: Lab) -> None:
    ip = container_ips(lab)["web-1"]
    assert not ping(namespace(lab.name, "outside"), ip)


def test_addresses_are_those_of_the_topology(lab: Lab) -> None:
    assert container_ips(lab) == {"web-1": "10.244.1.2", "web-2": "10.244.2.2"}
    status = lab.status()
    assert [item.state for item in status.hosts] == ["ready", "ready"]
    assert [item.subnet for item in status.hosts] == ["10.244.1.0/24", "10.244.2.0/24"]
    assert not status.rebooted


def test_second_up_changes_nothing(lab: Lab) -> None:
    result = Lab.up(lab.topology)
    assert (result.changes, result.converged) == (0, True)
    assert Lab.open(lab.name).state == lab.state


def test_agents_have_two_capabilities_and_no_more(lab: Lab) -> None:
    status = Path(f"/proc/{lab.pid('agent/node-1')}/status").read_text()
    words = dict(line.split(":\t") for line in status.splitlines() if line.startswith(("Cap", "NoNewPrivs")))
    assert int(words["CapEff"], 16) == int(words["CapBnd"], 16) == 1 << 12 | 1 << 13
    assert words["NoNewPrivs"] == "1"


def test_lab_is_quiet(lab: Lab) -> None:
    for place in lab.places:
        found = lab.driver.run(place, ["cat", "/proc/sys/net/ipv6/conf/all/disable_ipv6"])
        assert found.stdout == b"1\n", place


def test_command_runs_where_it_should(lab: Lab) -> None:
    done = lab.driver.run("web-2", ["ip", "-br", "-4", "addr", "show", "eth0"], timeout_s=10)
    assert b"10.244.2.2/24" in done.stdout
    assert lab.driver.run("node-1", ["sh", "-c", "cat; exit 7"], stdin=b"in").returncode == 7


def test_command_that_does_not_end_is_an_error(lab: Lab) -> None:
    with pytest.raises(LabFailed, match=r"did not end within 0\.1 s"):
        lab.driver.run("node-1", ["sleep", "60"], timeout_s=0.1)


def test_unknown_place_is_an_error(lab: Lab) -> None:
    with pytest.raises(LabFailed, match="node-9 has no network namespace"):
        lab.driver.run("node-9", ["true"])


def test_store_is_reached_without_the_underlay(lab: Lab) -> None:
    store = lab.store()
    try:
        keys = {item.key for item in store.read([Keys().subnets]).items}
    finally:
        store.close()
    assert keys == {Keys().subnets + "10.244.1.0-24", Keys().subnets + "10.244.2.0-24"}


def test_network_of_a_running_lab_stays(lab: Lab) -> None:
    other = replace(lab.topology, network=replace(lab.topology.network, subnet_len=25))
    with pytest.raises(TopologyError, match="cannot be changed while it is up"):
        Lab.up(other)


def test_same_lab_is_not_run_twice_by_tests(lab: Lab) -> None:
    with pytest.raises(LabChoice), Lab.running(lab.topology):
        pass


# --- labs that are broken or changed ----------------------------------------------------------------


@pytest.mark.parametrize("victim", ["agent/node-1", "etcd"])
def test_process_that_was_killed_is_started_again(victim: str) -> None:
    with Lab.running(two_hosts("killed")) as lab:
        before = lab.state.processes
        kill(lab.pid(victim))
        assert Lab.up(lab.topology).changes == 1
        after = Lab.open(lab.name).state.processes
        assert {name for name in before if before[name] != after[name]} == {victim}
        assert everyone_reaches_everyone(lab)
        assert Lab.up(lab.topology).changes == 0


def cut(lab: Lab) -> None:
    lab.driver.run("underlay", ["ip", "link", "delete", "dev", "node-2"])


def lose_container(lab: Lab) -> None:
    netns.delete(namespace(lab.name, "web-1"))


def lose_underlay(lab: Lab) -> None:
    netns.delete(namespace(lab.name, "underlay"))


def take_address(lab: Lab) -> None:
    lab.driver.run("node-1", ["ip", "addr", "flush", "dev", "eth0"])


@pytest.mark.parametrize("harm", [cut, lose_container, lose_underlay, take_address])
def test_damage_is_mended(harm: Callable[[Lab], None]) -> None:
    with Lab.running(two_hosts("harmed")) as lab:
        harm(lab)
        result = Lab.up(lab.topology)
        assert result.converged, result.waiting
        assert result.changes > 0
        assert everyone_reaches_everyone(lab)
        assert Lab.up(lab.topology).changes == 0


def test_end_of_a_cable_that_the_kernel_takes_away_meanwhile_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it does a while after the namespace of the other end was deleted; here that is held until then."""
    with Lab.running(two_hosts("vanishing")) as lab:
        held = os.open(netns.path(namespace(lab.name, "underlay")), os.O_RDONLY)
        lose_underlay(lab)
        plain, vanished = build._ip, []

        def late(name: str, lines: Sequence[str]) -> None:
            if lines[0] == "link delete dev eth0":
                plain(name, lines)
                vanished.append(name)
            plain(name, lines)

        monkeypatch.setattr(build, "_ip", late)
        try:
            assert Lab.up(lab.topology).converged
        finally:
            os.close(held)
        assert namespace(lab.name, "node-1") in vanished
        assert everyone_reaches_everyone(lab)


def test_hosts_and_containers_come_and_go() -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"ports": [{"port": 80}]},
    }
    small = replace(two_hosts("grown"), services=(service,))
    large = Topology.simple(small.name, hosts=3, containers=2)
    with Lab.running(small) as lab:
        assert Lab.up(small).changes == 0
        agents = {lab.pid("agent/node-1"), lab.pid("agent/node-2")}
        grown = up(large)
        assert everyone_reaches_everyone(grown)
        assert agents <= {grown.pid(f"agent/{host.name}") for host in grown.hosts}
        last = Topology(small.name, hosts=large.hosts[1:2], containers=(Container("web-9", "node-2"),))
        shrunk = up(last)
        assert (shrunk.hosts[0].number, list(container_ips(shrunk))) == (2, ["web-9"])
        places = {namespace(small.name, place) for place in shrunk.places}
        assert {n for n in netns.names() if n.startswith(namespace(small.name, ""))} == places
        assert Lab.up(last).changes == 0


def test_container_keeps_running_its_command(tmp_path: Path) -> None:
    text = f"""\
apiVersion: overlaynet/v1
kind: Lab
hosts: [{{name: node-1}}]
containers:
- {{name: web-1, host: node-1, command: [sh, -c, "ip -br -4 addr show eth0; exec sleep 600"]}}
lease: {{node_ttl_s: 6}}
name: {lab_name("command")}
"""
    with Lab.running(parse(text, "lab.yaml")) as lab:
        log = lab.paths.log("web-1")
        eventually(lambda: "10.244.1.2/24" in log.read_text())
        assert Lab.up(lab.topology).changes == 0
        kill(lab.pid("command/web-1"))
        assert Lab.up(lab.topology).changes == 1
        assert Lab.open(lab.name).pid("command/web-1") is not None


def test_two_labs_at_once_do_not_meet() -> None:
    one, other = two_hosts("one"), two_hosts("one-more")
    with Lab.running(one) as first:
        with Lab.running(other) as second:
            assert container_ips(first) == container_ips(second)
            assert everyone_reaches_everyone(second)
        assert traces_of(other.name) == []
        assert everyone_reaches_everyone(first)


def test_agent_that_hangs_is_waited_for_and_named() -> None:
    with Lab.running(two_hosts("hung")) as lab:
        pid = lab.pid("agent/node-2")
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            result = Lab.up(lab.topology, timeout_s=1.0)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert not result.converged
        assert any(reason.startswith("node-2") for reason in result.waiting)
        assert Lab.up(lab.topology).converged


def test_agent_that_is_busy_turns_nobody_away(lab: Lab) -> None:
    pid = lab.pid("agent/node-1")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        with ExitStack() as stack:
            for _ in range(40):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.settimeout(5)
                client.connect(str(lab.paths.host("node-1").socket))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert lab.agent("node-1").readiness()["ready"]


def test_lab_is_built_again_after_the_machine_was_restarted() -> None:
    topology = two_hosts("rebooted")
    with Lab.running(topology) as lab:
        identity = lab.paths.host("node-1").identity.read_text()
        process.stop([running.process for running in lab.state.processes.values()], 5.0)
        for place in lab.places:
            netns.delete(namespace(lab.name, place))
        save(lab.paths, replace(lab.state, boot_id="an-earlier-one"))
        shutil.rmtree(lab.paths.run)
        assert Lab.open(lab.name).status().rebooted
        again = up(topology)
        assert not again.status().rebooted
        assert everyone_reaches_everyone(again)
        assert again.paths.host("node-1").identity.read_text() == identity


def test_up_that_failed_on_a_running_lab_goes_on_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with Lab.running(two_hosts("interrupted")) as lab:
        kill(lab.pid("agent/node-1"))
        with monkeypatch.context() as broken:
            broken.setattr("overlaynet.lab.cluster_store.tend", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                Lab.up(lab.topology)
        assert Lab.up(lab.topology).changes == 0
        assert everyone_reaches_everyone(lab)


# --- down -----------------------------------------------------------------------------------------


def test_machines_own_network_is_not_touched_and_nothing_is_left() -> None:
    before = own_network()
    topology = two_hosts("traceless")
    with Lab.running(topology) as lab:
        assert everyone_reaches_everyone(lab)
        pids = [running.process for running in lab.state.processes.values()]
        assert own_network() == before
    assert traces_of(topology.name) == []
    assert [process for process in pids if process.alive] == []
    assert own_network() == before


def test_down_without_any_record_finds_everything_by_name() -> None:
    topology = two_hosts("lost")
    with cleaned_up(topology.name, PATHS):
        lab = up(topology)
        pids = [running.process for running in lab.state.processes.values()]
        shutil.rmtree(lab.paths.run)
        shutil.rmtree(lab.paths.state)
        assert lifecycle.down(topology.name, PATHS) > 0
        assert traces_of(topology.name) == []
        assert [process for process in pids if process.alive] == []


def test_down_keeps_logs_if_asked_to() -> None:
    topology = two_hosts("logs")
    with cleaned_up(topology.name, PATHS):
        lab = up(topology)
        lab.down(keep_logs=True)
        logs = {str(file.relative_to(lab.paths.run)) for file in lab.paths.run.rglob("*") if file.is_file()}
        assert logs == {"etcd.log", "hosts/node-1/agent.log", "hosts/node-2/agent.log"}


def test_down_ends_what_people_left_running_inside() -> None:
    topology = two_hosts("visitor")
    with cleaned_up(topology.name, PATHS):
        lab = up(topology)
        visitor = lab.driver.popen_in("web-1", ["sleep", "600"])
        inside = process.namespace_id(netns.path(namespace(topology.name, "web-1")))
        eventually(lambda: process.namespace_id(process.own_namespace(visitor.pid)) == inside)
        lab.down()
        assert visitor.wait(10) != 0


def test_down_of_nothing_is_nothing() -> None:
    assert lifecycle.down(lab_name("never"), PATHS) == 0


def test_first_up_that_fails_leaves_nothing() -> None:
    bad = "apiVersion: overlaynet/v1\nkind: Lab\nhosts: [{name: a, agent: {node: {interface: nothing0}}}]\n"
    topology = parse(bad, "bad.yaml", name=lab_name("bad"))
    with cleaned_up(topology.name, PATHS):
        with pytest.raises(LabFailed, match="the agent of a ended") as caught:
            Lab.up(topology)
        assert "nothing0" in caught.value.evidence
        assert traces_of(topology.name) == []


def test_namespace_of_somebody_else_is_in_the_way_and_stays() -> None:
    topology = two_hosts("foreign")
    theirs = namespace(topology.name, "web-1")
    netns.create(theirs)
    try:
        with pytest.raises(LabFailed, match="this lab did not make"):
            Lab.up(topology)
        assert netns.exists(theirs)
    finally:
        netns.delete(theirs)
    assert traces_of(topology.name) == []
