"""`--explain-commands`: where lines go, what they say of each verb, and that a pipe's results stay results."""

from __future__ import annotations

import json

import pytest

from overlaynet.addr import Mac
from overlaynet.cli import commands
from overlaynet.cli.app import App
from overlaynet.cli.commands import Block, joined, making, removing, typed
from overlaynet.config import EtcdConfig
from overlaynet.state import ROUTE_PROTOCOL, BridgePort, Change, Link, Op

pytestmark = pytest.mark.fake

ETCDCTL = "etcdctl --endpoints=http://127.0.0.1:2379"


def drop_route(cluster, host="node-1"):
    route = next(r for r in cluster.kernels[host].observe().routes if r.protocol == ROUTE_PROTOCOL)
    cluster.kernels[host].tamper(Change(Op.DROP, route))
    return route


def blocks(err: str) -> dict[str, list[str]]:
    """The lines below each heading."""
    found: dict[str, list[str]] = {}
    for line in err.splitlines():
        if line.startswith(("# in ", "# on ")):
            place = found.setdefault(line.removeprefix("# in ").partition(" (")[0], [])
        else:
            place.append(line)
    return found


# --- the form -------------------------------------------------------------------------------------


def test_results_stay_results_and_commands_go_to_standard_error(run):
    plain = run("get", "routes", "-o", "json")
    told = run("get", "routes", "-o", "json", "--explain-commands")
    assert (told[0], json.loads(told[1])) == (0, json.loads(plain[1]))
    assert blocks(told[2]) == {place: ["ip route show table main"] for place in ("node-1", "node-2")}


def test_nothing_is_told_unasked(run):
    assert run("get", "routes")[2] == ""


def test_heading_says_how_to_get_there_also_in_a_lab_that_was_named():
    assert commands.heading(App(lab="one"), "node-1") == "# in node-1 (overlaynet shell node-1):"
    assert (
        commands.heading(App(lab="one", named=True), "node-1")
        == "# in node-1 (overlaynet shell node-1 -l one):"
    )


def test_neighbours_of_one_place_are_one_block_and_none_is_empty():
    told = [Block("a", ("1",)), Block("a", ("2",)), Block("b", ()), Block("a", ("3",)), Block("b", ("4",))]
    assert joined(told) == [Block("a", ("1", "2", "3")), Block("b", ("4",))]


@pytest.mark.parametrize("line", ["kill -9 the agent", "its agent puts back what it looks after", "start etcd"])
def test_what_is_no_command_is_a_comment(line):
    assert typed(line) == f"# {line}"


# --- verbs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "line"),
    [("neighs", "ip neigh show"), ("fdb", "bridge fdb show"), ("rules", "iptables-save -c")],
)
def test_kernel_kinds_name_what_shows_them(run, kind, line):
    assert blocks(run("get", kind, "node-1", "--explain-commands")[2]) == {"node-1": [line]}


def test_list_that_follows_names_once_what_shows_it(run):
    code, _, err = run("get", "routes", "node-1", "--watch", "--timeout", "0.1", "--explain-commands")
    assert (code, blocks(err)) == (0, {"node-1": ["ip route show table main"]})


def test_kinds_of_etcd_name_its_keys(run):
    told = blocks(run("get", "leases", "--explain-commands")[2])["node-1"]
    assert f"{ETCDCTL} get --prefix /coreos.com/network/subnets/" in told
    assert f"{ETCDCTL} get /coreos.com/network/config" in told


def test_service_is_told_as_the_keys_that_are_written(run):
    code, _, err = run(
        "service", "create", "web", "--port", "80", "--selector", "app=web", "--explain-commands"
    )
    puts = [line for line in blocks(err)["node-1"] if " put " in line]
    assert code == 0
    assert puts[0].startswith(f"{ETCDCTL} put /overlaynet/services/default/web '{{")
    assert puts[1].startswith(f"{ETCDCTL} put /overlaynet/vips/10.112.")
    _, _, err = run("service", "delete", "web", "--explain-commands")
    assert f"{ETCDCTL} del /overlaynet/services/default/web" in blocks(err)["node-1"]


def test_etcd_with_certificates_is_asked_with_them(tmp_path):
    config = EtcdConfig(("https://a:2379", "https://b:2379"), ca=tmp_path / "ca", username="me")
    words = f"etcdctl --endpoints=https://a:2379,https://b:2379 --cacert={tmp_path}/ca --user=me"
    assert commands.etcdctl(config) == words


def test_repair_is_told_as_what_brings_back_what_is_missing(run, cluster):
    route = drop_route(cluster)
    _, _, err = run("repair", "node-1", "--explain-commands")
    line = (
        f"ip route replace {route.dst} via {route.via} dev {route.dev} onlink metric {route.metric} proto 111"
    )
    assert blocks(err)["node-1"] == [line]


def test_diff_names_every_table_that_is_compared(run):
    told = blocks(run("diff", "node-1", "--explain-commands")[2])["node-1"]
    assert {"ip route show", "ip neigh show", "bridge fdb show", "iptables-save -c"} <= set(told)


# --- objects --------------------------------------------------------------------------------------


def test_links_and_ports_take_several_lines():
    bridge = Link("cni0", "bridge", "ours", 1450, Mac.parse("02:00:00:00:00:01"))
    assert making(bridge) == [
        "ip link add cni0 address 02:00:00:00:00:01 type bridge",
        "ip link set dev cni0 mtu 1450",
        "ip link property add dev cni0 altname ours",
        "ip link set dev cni0 up",
    ]
    assert making(BridgePort("veth1", "cni0", hairpin=False, up=False, mtu=1400)) == [
        "ip link set dev veth1 master cni0 mtu 1400 down",
        "bridge link set dev veth1 hairpin off",
    ]
    assert removing(bridge) == ["ip link del dev cni0"]
