"""Reaching machines: one connection for each, and every way in which a machine can fail to answer."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from helpers.lab import lab_name
from helpers.machines import Machine, Machines, machines, requires_machines

from overlaynet import __version__
from overlaynet.cluster.cluster import read_view
from overlaynet.cluster.machines import MachineCluster
from overlaynet.core.keys import Keys
from overlaynet.errors import (
    AgentUnreachable,
    MachineUnreachable,
    NotFound,
    StoreUnavailable,
    UsageError,
)
from overlaynet.kernel import process
from overlaynet.lab import ssh_driver, state
from overlaynet.lab.lab import Lab
from overlaynet.lab.paths import Paths
from overlaynet.lab.session import end
from overlaynet.lab.ssh_driver import SshDriver
from overlaynet.lab.state import LabState
from overlaynet.lab.topology import Topology

pytestmark = [pytest.mark.lab, requires_machines]

HOSTS = ("node-1", "node-2", "node-3")
LAB = lab_name("reach")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with machines(tmp_path_factory.mktemp("machines")) as found:
        yield found


@pytest.fixture
def driver(three: Machines) -> Iterator[SshDriver]:
    """Machines serve whoever connects again afterwards."""
    with driving(three) as made:
        yield made
    for machine in three:
        machine.accept()


@contextmanager
def driving(three: Machines) -> Iterator[SshDriver]:
    driver = SshDriver(LAB, three.inventory, {"web-1": "node-1"})
    try:
        yield driver
    finally:
        driver.close()


@contextmanager
def clustered(three: Machines, where: Path, **environ: str) -> Iterator[MachineCluster]:
    """A lab without containers, as its state file says."""
    paths = Paths(where / "run", where / "state")
    topology = Topology.of_hosts(HOSTS, LAB, 0)
    state.save(paths.lab(LAB), LabState(topology, "another-boot", driver="ssh"))
    paths.lab(LAB).inventory.write_text(three.inventory.read_text())
    lab = Lab.open(LAB, paths)
    assert isinstance(lab.driver, SshDriver)
    cluster = MachineCluster(lab, lab.driver, environ)
    try:
        yield cluster
    finally:
        cluster.close()


def refusal(driver: SshDriver, host: str = "node-2") -> MachineUnreachable:
    with pytest.raises(MachineUnreachable) as caught:
        driver.probe(host, {"op": "log", "lines": 1})
    return caught.value


def counting(machine: Machine) -> Path:
    """A file with a line for each connection from now on."""
    file = machine.directory / "connections"
    file.write_text("")
    proxy = machine.directory / "proxy"
    proxy.write_text(proxy.read_text().replace("exec ", f"echo one >>{file}; exec ", 1))
    return file


# --- connections ----------------------------------------------------------------------------------


def test_machine_tells_of_itself(driver: SshDriver) -> None:
    facts = driver.desk("node-1").facts()
    assert (facts["version"], facts["underlay_ips"]) == (__version__, ["192.168.56.11"])
    assert facts["config"].startswith("[node]")
    assert len(json.loads(facts["identity"])["subnets"]) == 1


def test_all_of_a_command_goes_through_one_connection(driver: SshDriver, three: Machines) -> None:
    made = counting(three["node-1"])
    for _ in range(3):
        assert driver.agent("node-1").readiness()["ready"] is True
    assert driver.run("node-1", ["hostname"]).stdout == b"node-1\n"
    with driver.session("node-1") as session:
        assert session.ask({"op": "addresses", "netns": []}, 30)["addresses"] == {}
    following = driver.stream("node-1", {"op": "follow"})
    end(following)
    assert following.returncode == 0
    assert made.read_text().split() == ["one"]


def test_control_sockets_are_in_a_directory_of_ours_alone_and_are_gone_at_the_end(three: Machines) -> None:
    with driving(three) as driver:
        driver.desk("node-1").facts()
        where = Path(driver.ssh.control)
        assert (where.stat().st_mode & 0o777, [f.name for f in where.iterdir()]) == (0o700, ["node-1"])
    assert not where.exists()


def test_command_is_given_word_by_word_and_its_own_code_comes_back(driver: SshDriver) -> None:
    words = ["a b", "'", '"', "$HOME", "`x`", "\\", "", "*"]
    done = driver.run("node-1", ["sh", "-c", 'printf "%s\\n" "$@"; cat; exit 9', "sh", *words], stdin=b"in")
    assert (done.returncode, done.stdout.decode()) == (9, "".join(f"{word}\n" for word in words) + "in")


def test_session_that_was_left_listening_is_not_lent_to_the_next(driver: SshDriver) -> None:
    point = {"place": "node-1", "netns": None, "iface": "lo"}
    arm = {"op": "arm", "points": [point], "keep": None, "snap": None}
    with driver.session("node-1") as first:
        assert first.ask(arm, 30)["kind"] == "Armed"
    with driver.session("node-1") as second:
        assert second.ask(arm, 30)["kind"] == "Armed"
        assert second.ask({"op": "collect"}, 30)["kind"] == "Collected"


def test_an_error_of_a_job_is_its_own_and_ends_nothing(driver: SshDriver) -> None:
    with pytest.raises(UsageError, match="no operation 'nonsense'"):
        driver.probe("node-1", {"op": "nonsense"})
    with pytest.raises(NotFound, match="no network namespace absent"):
        driver.probe("node-1", {"op": "wire", "netns": "absent", "body": {"name": "x", "namespace": "y"}})
    assert driver.probe("node-1", {"op": "log", "lines": 1})["kind"] == "Log"


def test_machine_of_another_version_that_does_not_understand_is_told(
    driver: SshDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_driver, "__version__", "99.0")
    with pytest.raises(MachineUnreachable, match="node-1 does not understand us") as caught:
        driver.probe("node-1", {"op": "of-the-future"})
    assert f"{__version__} there and 99.0 here" in caught.value.evidence


def test_shell_that_says_something_at_every_login_is_quoted(driver: SshDriver, three: Machines) -> None:
    talkative = three["node-2"].path("/var/lib/root/.bashrc")
    talkative.write_text("echo hello there\n")
    try:
        assert "it said b'hello there'" in refusal(driver).evidence
    finally:
        talkative.unlink()


def test_agent_that_does_not_run_is_told_with_its_machine(driver: SshDriver, three: Machines) -> None:
    machine = three["node-3"]
    machine.kill_agent()
    try:
        with pytest.raises(AgentUnreachable, match="on node-3") as caught:
            driver.agent("node-3").get("/v1/status")
        assert caught.value.next[0] == "overlaynet logs node-3"
        assert driver.desk("node-3").facts()["underlay_ips"] == []
    finally:
        machine.start_agent()
        machine.wait_for_agent()


# --- machines that do not answer ------------------------------------------------------------------


def test_machine_that_refuses_is_told_at_once_and_not_tried_again(driver: SshDriver, three: Machines) -> None:
    three["node-2"].refuse()
    error = refusal(driver)
    assert "node-2 cannot be reached" in error.message
    assert error.next == (f"ssh -F {three.inventory} node-2 true",)
    three["node-2"].accept()
    assert refusal(driver) is error
    with driving(three) as another:
        assert another.probe("node-2", {"op": "log", "lines": 1})["kind"] == "Log"


def test_machine_that_never_says_a_word_is_given_up(
    driver: SshDriver, three: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_driver, "CONNECT_S", 1)
    three["node-2"].hang()
    assert "timed out" in refusal(driver).evidence


def test_machine_that_dies_under_way_is_told(
    driver: SshDriver, three: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sshd stops, and so everything that it carries: only ssh's own questions find that out."""
    monkeypatch.setattr(ssh_driver, "ALIVE_TRIES", 1)
    driver.desk("node-2").facts()
    stopped = [pid for pid in sshds(three["node-2"]) if stops(pid)]
    parents = {process.parent(pid) for pid in stopped} - {0, *stopped}  # nsenter(1), which stops with its child
    three["node-2"].refuse()
    try:
        assert "not responding" in refusal(driver).evidence
        assert "cannot be reached" in refusal(driver).message
    finally:
        for number, pids in ((signal.SIGKILL, stopped), (signal.SIGCONT, parents)):
            for pid in pids:
                with suppress(ProcessLookupError):  # it ended with the one before
                    os.kill(pid, number)


def sshds(machine: Machine) -> list[int]:
    """Those of the machine, by this machine's numbers."""
    own = Path(f"/proc/{machine.pid}/ns/pid").readlink()
    found = (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [int(entry.name) for entry in found if _is_sshd(entry, own)]


def stops(pid: int) -> bool:
    """Stop it, unless it is one of a connection before and has just ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    return process.start_time(pid) is not None


def _is_sshd(entry: Path, namespace: Path) -> bool:
    """Not if it has ended, as others of this machine may at any time: then nobody says where it was."""
    try:
        return (entry / "comm").read_text().startswith("sshd") and (entry / "ns/pid").readlink() == namespace
    except OSError:
        return False


def test_changed_host_key_is_told_with_the_command_that_forgets_it(three: Machines, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    other = (three["node-1"].directory / "host_key.pub").read_text()
    known.write_text(f"node-2 {other}")
    text = three.inventory.read_text()
    for line in {line for line in text.splitlines() if "UserKnownHostsFile" in line}:
        text = text.replace(line, f"  UserKnownHostsFile {known}")
    (tmp_path / "inventory").write_text(text)
    driver = SshDriver(LAB, tmp_path / "inventory", {})
    try:
        error = refusal(driver)
        assert "another host key" in error.message
        assert error.next[0].split()[:2] == ["ssh-keygen", "-f"]
        assert "is not known yet" in refusal(driver, "node-3").message
    finally:
        driver.close()


def test_refused_login_is_told(driver: SshDriver, three: Machines) -> None:
    settings = three["node-2"].directory / "sshd_config"
    before = settings.read_text()
    settings.write_text(before + "AllowUsers nobody-at-all\n")
    try:
        error = refusal(driver)
        assert ("does not let us in" in error.message, "Permission denied" in error.evidence) == (True, True)
    finally:
        settings.write_text(before)


def test_machine_without_the_probe_is_told_how_to_get_it(driver: SshDriver, three: Machines) -> None:
    link = three["node-2"].path("/usr/local/bin/overlaynet-probe")
    link.rename(link.with_name("elsewhere"))
    try:
        error = refusal(driver)
        assert "node-2 has no overlaynet-probe" in error.message
        assert any("OUT/install" in step for step in error.next)
    finally:
        link.with_name("elsewhere").rename(link)


def test_user_who_is_not_root_gets_there_by_sudo(three: Machines, tmp_path: Path) -> None:
    """A sudo that writes down how it was called, and refuses in the words of the real one."""
    machine = three["node-2"]
    machine.run("useradd", "--create-home", "--home-dir=/var/lib/plain", "--password=*", "plain")
    sudo = machine.path("/usr/local/bin/sudo")
    sudo.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$*" >~/asked\necho "sudo: a password is required" >&2\nexit 1\n'
    )
    sudo.chmod(0o755)
    (tmp_path / "inventory").write_text(three.inventory.read_text().replace("User root", "User plain"))
    driver = SshDriver(LAB, tmp_path / "inventory", {})
    try:
        error = refusal(driver)
        assert "does not let us run overlaynet-probe as root" in error.message, error.evidence
        assert machine.path("/var/lib/plain/asked").read_text() == "-n -- overlaynet-probe\n"
        assert "NOPASSWD: /usr/local/bin/overlaynet-probe" in error.next[0]
    finally:
        driver.close()
        sudo.unlink()


# --- a cluster of which one does not answer -------------------------------------------------------


def test_those_that_answer_are_told_with_what_etcd_knows_of_the_other(three: Machines, tmp_path: Path) -> None:
    three["node-1"].refuse()
    try:
        with clustered(three, tmp_path) as cluster:
            hosts = cluster.hosts()
            assert [host.underlay_ip for host in hosts] == [f"192.168.56.1{n}" for n in (1, 2, 3)]
            view = read_view(cluster)
            (lease,) = [item.value for item in view.leases.values() if item.value.node_name == "node-1"]
            assert (hosts[0].leased, len(view.leases)) == (str(lease.subnets[0]), 3)
            with pytest.raises(MachineUnreachable):
                cluster.config("node-1")
            assert cluster.config("node-2").node.interface == ("eth0",)
    finally:
        three["node-1"].accept()


def test_without_any_machine_etcd_cannot_be_asked_and_ssh_says_why(three: Machines, tmp_path: Path) -> None:
    for machine in three:
        machine.refuse()
    try:
        with clustered(three, tmp_path) as cluster:
            with pytest.raises(StoreUnavailable, match="cannot be asked through any machine") as caught:
                read_view(cluster)
            assert "node-1 cannot be reached" in caught.value.evidence
            assert [host.underlay_ip for host in cluster.hosts()] == [None, None, None]
    finally:
        for machine in three:
            machine.accept()


def test_etcd_is_asked_from_here_where_the_environment_says_so(three: Machines, tmp_path: Path) -> None:
    with clustered(three, tmp_path, OVERLAYNET_ETCD_ENDPOINTS=three.endpoint) as cluster:
        assert cluster.keys() == Keys()
        assert len(read_view(cluster).leases) == 3
        for machine in three:
            machine.refuse()  # who is connected stays so
        cluster.close()
        assert len(read_view(cluster).leases) == 3
    for machine in three:
        machine.accept()


def test_what_the_environment_leaves_open_the_machines_say_but_not_who_we_are(
    three: Machines, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text("secret\n")
    environ = {"OVERLAYNET_ETCD_USERNAME": "operator", "OVERLAYNET_ETCD_PASSWORD_FILE": str(password)}
    with clustered(three, tmp_path, **environ) as cluster:
        etcd = cluster._etcd_from_here
        assert etcd is not None
        assert (etcd.endpoints, etcd.username) == (("http://192.168.56.11:2379",), "operator")


def test_lab_of_machines_knows_no_reboot_of_this_one(three: Machines, tmp_path: Path) -> None:
    with clustered(three, tmp_path) as cluster:
        assert (cluster.lab.state.boot_id, cluster.lab.state.rebooted) == ("another-boot", False)


def test_once_is_made_on_the_machine(three: Machines, tmp_path: Path) -> None:
    with clustered(three, tmp_path) as cluster:
        three["node-3"].kill_agent()
        try:
            assert cluster.once("node-3", 30) == {"changes": 0, "failures": []}
        finally:
            three["node-3"].start_agent()
            three["node-3"].wait_for_agent()
