"""flannel's own daemon and our agent in one cluster, beside each other and in turn on one host.

Beside each other: one etcd, two hosts with flanneld, two with ours; every container reaches every other, and
each side survives what the other's hosts do. In turn: a host is taken over from a live flanneld, and handed
back to it, under a ping of a hundred packets a second, of which none may be lost.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.eventually import eventually
from helpers.flannel import DOCKER_OPTIONS, requires_docker_options, requires_flannel
from helpers.mixed import Host, Mixed, mixed, starter
from helpers.pinging import pinging

pytestmark = [pytest.mark.interop, requires_flannel]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    """Two hosts with flanneld, then two with ours, each with its container."""
    with mixed(tmp_path_factory.mktemp("four")) as cluster:
        for kind in ("flannel", "flannel", "ours", "ours"):
            host = cluster.add_host()
            starter(kind)(host)
            host.wire()
        cluster.until_all_reach_all()
        yield cluster


def tell(figures: str) -> None:
    """Shown with `pytest -s` or -rP."""
    sys.stdout.write(figures + "\n")


def running(host: Host) -> str:
    return "flannel" if host.flanneld.running else "ours"


# --- side by side ---------------------------------------------------------------------------------


def test_leases_of_both_stand_side_by_side(four):
    leases = four.leases()
    assert sorted(leases) == [host.address for host in four.hosts]
    assert ["NodeID" in leases[host.address] for host in four.hosts] == [False, False, True, True]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
@pytest.mark.parametrize("number", [1, 4], ids=["flannel", "ours"])
def test_restart_on_one_side_loses_the_other_no_packet(four, number, how):
    host, peer = four.hosts[number - 1], four.hosts[2 if number == 1 else 0]
    kind = running(host)
    subnet = host.bridge_address
    with pinging(peer.container.path, host.container_ip, least_s=2.5) as stream:
        (host.flanneld if kind == "flannel" else host.agent).end(how)
        starter(kind)(host)
    tell(f"{kind} restarted after {how.name}: {stream.lost} of {stream.sent} packets lost")
    assert (stream.lost, host.bridge_address) == (0, subnet)
    assert stream.sent >= 100


def test_renewal_by_flannel_leaves_our_tables_alone(four):
    """flannel renews by writing the same value again, on another etcd lease."""
    ours, theirs = four.hosts[2], four.hosts[0]
    before, writes = ours.tables(), ours.status()["writes"]
    theirs.stop()
    theirs.start_flannel()
    four.until_all_reach_all([ours, theirs])
    assert (ours.tables(), ours.status()["writes"]) == (before, writes)


def test_departure_on_either_side_is_followed_and_so_is_the_return(four):
    for number in (1, 4):
        host, kind = four.hosts[number - 1], running(four.hosts[number - 1])
        others = [other for other in four.hosts if other is not host]
        network = str(host.bridge_address.network)
        host.stop()
        four.drop_lease(host)
        for other in others:
            eventually(lambda: network not in other.tables()["routes"], deadline_s=20)  # noqa: B023
        assert four.unreachable(others) == []
        starter(kind)(host)
        four.until_all_reach_all()
        assert str(host.bridge_address.network) == network


def test_flannels_script_makes_dockers_options_of_our_file(four, tmp_path):
    _check_docker_options(four.hosts[2], tmp_path / "docker.env")


@requires_docker_options
def _check_docker_options(host: Host, target: Path) -> None:
    argv = [str(DOCKER_OPTIONS), "-f", str(host.subnet_file), "-d", str(target)]
    with host.netns.entered():
        done = subprocess.run(["sh", *argv], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    said = host.settings
    assert f'DOCKER_OPT_BIP="--bip={said["FLANNEL_SUBNET"]}"' in target.read_text()
    assert f'DOCKER_OPT_MTU="--mtu={said["FLANNEL_MTU"]}"' in target.read_text()
    assert 'DOCKER_OPT_IPMASQ="--ip-masq=false"' in target.read_text()


# --- in turn --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [{}, {"DirectRouting": True}], ids=["vxlan", "direct-routing"])
def test_live_host_goes_from_flannel_to_us_and_back_without_losing_a_packet(tmp_path, backend):
    with mixed(tmp_path, **backend) as cluster:
        host, peer = cluster.add_host(), cluster.add_host()
        for one in (host, peer):
            one.start_flannel()
            one.wire()
        cluster.until_all_reach_all()
        before, mac = host.tables(), host.vtep_mac

        code, plan = host.command("plan")
        assert (code, plan["changes"], plan["flanneld"]) == (0, [], [host.flanneld.process.pid])
        code, refusal = host.command("once")
        assert (code, refusal["error"]["code"]) == (3, "OVL-205")
        assert host.tables() == before

        with pinging(peer.container.path, host.container_ip) as there:
            host.stop()
            host.start_agent()
        writes = host.status()["writes"]
        assert host.vtep_mac == mac
        assert {what: host.tables()[what] for what in ("neigh", "fdb", "routes")} == {
            what: before[what] for what in ("neigh", "fdb", "routes")
        }
        lease = cluster.leases()[host.address]
        assert (lease["NodeName"], lease["BackendData"]["VtepMAC"]) == ("node-1", mac)

        with pinging(peer.container.path, host.container_ip) as back:
            host.stop()
            code, done = host.command("hand-over")
            assert (code, done["failures"], done["next"]) == (0, [], ["systemctl start flanneld"])
            assert "NodeID" not in cluster.leases()[host.address]
            host.start_flannel()
            code, done = host.command("hand-over")
            assert (code, done["failures"], done["next"]) == (0, [], [])
        assert host.tables() == before
        assert "OVL-" not in host.netns.run("iptables-save")
        assert host.command("plan")[1]["changes"] == []
        tell(
            f"flannel to us: {there.lost} of {there.sent} packets lost, writes {json.dumps(writes)}; "
            f"and back: {back.lost} of {back.sent} lost"
        )
        assert (there.lost, back.lost) == (0, 0)


def test_entries_of_a_peer_that_flannel_forgot_are_removed_on_takeover(tmp_path):
    with mixed(tmp_path) as cluster:
        host, peer = cluster.add_host(), cluster.add_host()
        for one in (host, peer):
            one.start_flannel()
        gone = str(peer.bridge_address.network)
        eventually(lambda: gone in host.tables()["routes"])
        host.stop()
        peer.stop()
        cluster.drop_lease(peer)
        host.start_flannel()
        assert gone in host.tables()["routes"], "flannel has learned to tidy up"
        host.stop()
        host.start_agent()
        tables = host.tables()
        assert gone not in tables["routes"]
        assert (tables["neigh"], peer.address in tables["fdb"]) == ("", False)


def test_host_that_was_rebooted_under_flannel_is_taken_over_on_the_operators_word(tmp_path):
    """After a reboot neither device nor subnet.env is left to prove whose the lease is."""
    with mixed(tmp_path) as cluster:
        host = cluster.add_host()
        host.start_flannel()
        network = str(host.bridge_address.network)
        host.stop()
        host.netns.run("ip link delete flannel.1")
        host.subnet_file.unlink()
        code, refusal = host.command("once")
        assert (code, refusal["error"]["code"]) == (3, "OVL-404")
        assert "--adopt-lease" in " ".join(refusal["error"]["next"])
        host.agent.argv = (*host.agent.argv, "--adopt-lease")
        host.start_agent()
        assert host.status()["lease"]["subnets"] == [network]
