"""Every verb over a cluster in memory: what it prints, its documents and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_cluster import NETWORK, FakeCluster, ready_agent

from overlaynet.addr import Mac
from overlaynet.cli import main as program
from overlaynet.cluster.cluster import readable
from overlaynet.core.jsonstate import key_text
from overlaynet.errors import LabFailed, NoIpset, NotPermitted, StoreUnavailable
from overlaynet.ports import Delete, Put
from overlaynet.state import ROUTE_PROTOCOL, Change, Fdb, Op, Route

pytestmark = pytest.mark.fake


def document(text: str) -> Any:
    return json.loads(text)


def drop_route(cluster: FakeCluster, host: str = "node-1") -> Route:
    route = next(r for r in cluster.kernels[host].observe().routes if r.protocol == ROUTE_PROTOCOL)
    cluster.kernels[host].tamper(Change(Op.DROP, route))
    return route


# --- the command itself ---------------------------------------------------------------------------


def test_help_lists_every_verb_and_imports_none(run):
    code, out, _ = run("--help")
    assert code == 0
    for verb, row in program.VERBS.items():
        assert f"  {verb} " in out
        assert row.what in out


@pytest.mark.parametrize("verb", [*program.VERBS])
def test_every_verb_has_help(run, verb):
    code, out, _ = run(verb, "--help")
    assert (code, out.startswith(f"Usage: overlaynet {verb}")) == (0, True)


@pytest.mark.parametrize(
    "line",
    [["dance"], ["get"], ["get", "ghosts"], ["--output", "xml", "status"], ["status", "--nonsense"], ["exec"]],
)
def test_mistyped_line_is_exit_2_with_a_code(run, line):
    code, out, err = run(*line)
    assert (code, out) == (2, "")
    assert err.startswith("error OVL-1")


@pytest.mark.parametrize(
    "line", [["dance", "-o", "json"], ["-ojson", "dance"], ["--output=json", "get", "ghosts"]]
)
def test_mistyped_line_is_a_document_if_json_was_asked_for(run, line):
    code, out, err = run(*line)
    error = document(out)
    assert (code, err, error["kind"], error["error"]["code"]) == (2, "", "Error", "OVL-100")


def test_global_options_stand_before_or_behind_the_verb(run):
    assert run("-o", "name", "get", "hosts") == run("get", "hosts", "-o", "name") == (0, "node-1\nnode-2\n", "")


def test_bug_is_told_as_one_without_a_bare_traceback(run, cluster, monkeypatch):
    monkeypatch.setattr(cluster, "hosts", lambda: 1 / 0)
    code, _, err = run("get", "hosts")
    assert code == 3
    assert err.startswith("error OVL-000: a bug in overlaynet: ZeroDivisionError")
    assert "please report it" in err


def test_interruption_is_exit_130(run, cluster, monkeypatch):
    def interrupted() -> Sequence[Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "hosts", interrupted)
    assert run("get", "hosts") == (130, "", "\ninterrupted\n")


def test_version(run):
    code, out, _ = run("version", "-o", "json")
    assert (code, set(document(out))) == (0, {"schema", "kind", "lab", "version"})


# --- get ------------------------------------------------------------------------------------------

MEMBERS = {
    "host": {"name", "driver", "netns", "underlay_ip", "subnet", "agent"},
    "container": {"name", "id", "host", "namespace", "netns", "ips", "mac", "labels", "ports", "ready"},
    "lease": {
        "key", "subnet", "node", "public_ip", "backend_type", "vni", "vtep_mac",
        "mod_revision", "expires_in_s", "live",
    },
    "route": {"host", "dst", "via", "dev", "table", "metric", "proto", "owner", "source", "state"},
    "neigh": {"host", "ip", "dev", "mac", "nud", "owner", "source", "state"},
    "fdb": {"host", "mac", "dev", "dst", "owner", "source", "state"},
    "rule": {"host", "table", "chain", "position", "text", "packets", "bytes", "owner", "source", "state"},
}  # fmt: skip


@pytest.mark.parametrize("kind", MEMBERS)
def test_items_have_every_promised_member(run, kind):
    code, out, _ = run("get", kind, "-o", "json")
    items = document(out)["items"]
    assert (code, bool(items)) == (0, True)
    assert all(set(item) >= MEMBERS[kind] for item in items)


@pytest.mark.parametrize(
    "words", [("host", "hosts", "ho", "HOSTS"), ("route", "routes", "ro"), ("neigh", "neighbours", "arp")]
)
def test_singular_plural_and_short_words_mean_the_same(run, words):
    assert len({run("get", word) for word in words}) == 1


def test_hosts_table(run, cluster):
    cluster.agents = {"node-1": ready_agent("node-1")}
    assert run("get", "hosts")[1] == (
        "NAME    UNDERLAY       SUBNET         AGENT    PID\n"
        "node-1  192.168.50.11  10.244.1.0/24  ready    101\n"
        "node-2  192.168.50.12  10.244.2.0/24  stopped    -\n"
    )


def test_containers_table(run):
    assert run("get", "containers")[1] == (
        "NAME   HOST    IP          READY  LABELS\n"
        "web-1  node-1  10.244.1.2  yes    app=web\n"
        "web-2  node-2  10.244.2.2  yes    app=web\n"
    )


def test_leases_table(run):
    assert run("get", "leases")[1] == (
        "SUBNET         NODE    PUBLIC-IP      BACKEND  EXPIRES  LIVE\n"
        "10.244.1.0/24  node-1  192.168.50.11  vxlan    24 h     yes\n"
        "10.244.2.0/24  node-2  192.168.50.12  vxlan    24 h     yes\n"
    )


def test_route_says_whose_it_is_and_where_it_comes_from(run):
    _, out, _ = run("get", "routes", "node-1", "-o", "json")
    (ours,) = [item for item in document(out)["items"] if item["owner"] == "overlaynet"]
    assert (ours["dst"], ours["via"], ours["dev"], ours["state"]) == (
        "10.244.2.0/24",
        "10.244.2.0",
        "flannel.1",
        "ok",
    )
    assert ours["source"] == {"kind": "lease", "name": "10.244.2.0-24"}


def test_missing_and_changed_entries_are_listed_as_such(run, cluster):
    drop_route(cluster)
    entry = next(n for n in cluster.kernels["node-1"].observe().neighs if n.dev == "flannel.1")
    wrong = entry._replace(mac=entry.mac.from_bytes(b"\x02\x00\x00\x00\x00\x07"))
    cluster.kernels["node-1"].tamper(Change(Op.PUT, wrong, entry))
    routes, neighs = (
        document(run("get", kind, "node-1", "-o", "json")[1])["items"] for kind in ("route", "neigh")
    )
    assert [r["state"] for r in routes if r["dst"] == "10.244.2.0/24"] == ["missing"]
    assert [n["state"] for n in neighs if n["ip"] == "10.244.2.0"] == ["changed"]


def test_foreign_route_is_nobodys_and_no_fault(run, cluster):
    foreign = drop_route(cluster)._replace(protocol=4, metric=7, dev="eth0")
    cluster.kernels["node-1"].tamper(Change(Op.PUT, foreign))
    _, out, _ = run("get", "routes", "node-1", "-o", "json")
    judged = {
        (r["metric"], r["owner"], r["state"]) for r in document(out)["items"] if r["dst"] == "10.244.2.0/24"
    }
    assert (7, "foreign", "ok") in judged


def test_rules_that_are_gone_are_listed_without_a_position(run, cluster):
    cluster.rules["node-1"].clean()
    _, out, _ = run("get", "rules", "node-1", "-o", "json")
    items = document(out)["items"]
    assert {(i["state"], i["position"], i["packets"]) for i in items} == {("missing", None, None)}


def test_tables_can_be_read_without_etcd(run, cluster):
    cluster.store_error = StoreUnavailable("etcd cannot be reached")
    code, out, err = run("get", "routes", "node-1", "-o", "json")
    assert (code, "OVL-301" in err) == (0, True)
    assert {i["state"] for i in document(out)["items"] if i["owner"] == "overlaynet"} == {None}


def test_host_that_cannot_be_asked_makes_the_list_inconclusive(run, cluster):
    cluster.probe_errors["node-2"] = LabFailed("the probe on node-2 did not report")
    code, out, err = run("get", "routes", "-o", "name")
    assert (code, "node-1:10.244.2.0/24" in out, "node-2 did not report" in err) == (4, True, True)


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(Fdb("eth0", Mac.parse("33:33:00:00:00:01")), id="group"),
        pytest.param(Fdb("cni0", Mac.parse("0a:58:0a:f4:01:01"), master="cni0"), id="own"),
    ],
)
def test_fdb_entries_that_the_kernel_makes_itself_are_in_the_document_alone(run, cluster, entry):
    cluster.kernels["node-1"].tamper(Change(Op.PUT, entry))
    shown, wide, listed = (run("get", "fdb", "node-1", "-o", form)[1] for form in ("table", "wide", "json"))
    assert (str(entry.mac) in shown, str(entry.mac) in wide, str(entry.mac) in listed) == (False, True, True)


@pytest.mark.parametrize("kind", ["hosts", "containers", "leases", "routes"])
def test_unknown_name_lists_those_there_are(run, kind):
    code, out, err = run("get", kind, "nobody")
    assert (code, out) == (2, "")
    assert "error OVL-105" in err
    assert "node-1" in err or "web-1" in err or "10.244.1.0-24" in err


# --- verify, diff, repair -------------------------------------------------------------------------


def test_verify_shows_the_matrix_and_the_sum(run):
    assert run("verify", "mesh") == (
        0,
        "       web-1  web-2\nweb-1         .\nweb-2  .\n\n2/2 pairs reachable\n",
        "",
    )


def test_verify_gives_reason_evidence_and_next_command(run, cluster):
    cluster.unreachable["web-1:web-2"] = ("send_error", "no route (ENETUNREACH)")
    code, out, _ = run("verify", "mesh")
    assert code == 1
    assert out == (
        "       web-1  web-2\n"
        "web-1         X\n"
        "web-2  .\n"
        "\n"
        "fail  node-1 → node-2: web-1 → web-2\n"
        "  send_error: no route (ENETUNREACH)\n"
        "  try  overlaynet diff node-1\n"
        "\n"
        "1/2 pairs reachable, 1 failed\n"
    )


def test_verify_names_host_and_entry_that_a_failed_pair_lacks(run, cluster):
    drop_route(cluster)
    cluster.unreachable["web-1:web-2"] = ("no_reply", "0 replies to 3 requests")
    code, out, _ = run("verify", "mesh")
    assert code == 1
    assert (
        "  no_reply: 0 replies to 3 requests\n"
        "  node-1: missing route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink metric 717827 table 254\n"
        "  try  overlaynet repair\n"
    ) in out


def test_verify_still_gives_its_verdict_where_nothing_can_be_compared(run, cluster):
    cluster.unreachable["web-1:web-2"] = ("no_reply", "0 replies to 3 requests")
    cluster.store_error = StoreUnavailable("etcd cannot be reached")
    code, out, err = run("verify", "mesh")
    assert (code, "try  overlaynet diff" in out, err) == (1, True, "")


def test_verify_is_inconclusive_where_a_sender_could_not_run(run, cluster):
    cluster.probe_errors["node-1"] = LabFailed("node-1 has no network namespace")
    code, out, _ = run("verify", "mesh", "-o", "json")
    checks = {check["id"]: check["verdict"] for check in document(out)["checks"]}
    assert (code, checks) == (4, {"web-1:web-2": "inconclusive", "web-2:web-1": "pass"})


def test_verify_document(run):
    verdict = document(run("verify", "mesh", "-o", "json")[1])
    assert set(verdict) == {
        "schema", "kind", "lab", "suite", "total", "passed", "failed", "inconclusive", "duration_s", "checks",
    }  # fmt: skip
    assert (verdict["lab"], verdict["total"], verdict["passed"]) == ("fake", 2, 2)


def test_diff_is_0_while_all_is_well(run):
    assert run("diff") == (0, "0 differences on 2 hosts\n", "")


def test_diff_is_1_and_names_what_is_missing_and_why_it_is_wanted(run, cluster):
    drop_route(cluster)
    assert run("diff") == (
        1,
        "- node-1  missing  route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink metric 717827 table 254\n"
        "    for     lease 10.244.2.0-24\n"
        "1 difference on 2 hosts\n"
        "next: overlaynet repair\n",
        "",
    )


def test_diff_of_a_peer_that_etcd_lost_is_0_while_the_agent_keeps_it_and_1_where_no_agent_does(run, cluster):
    (gone,) = [i for i in cluster.memory.read([cluster.keys().subnets]).items if "10.244.2.0" in i.key]
    cluster.memory.commit([], [Delete(gone.key)])
    code, out, _ = run("diff", "node-1", "-o", "json")
    (host,) = document(out)["hosts"]
    found = [(change["op"], change["object"]) for change in host["changes"]]
    assert (code, found) == (1, [("extra", "route"), ("extra", "fdb"), ("extra", "neigh")])
    kept = {"key": gone.key, "value": json.loads(gone.value), "expires_in_s": 12.0}
    cluster.agents["node-1"] = {**ready_agent("node-1"), "/v1/stale": {"leases": [kept]}}
    assert run("diff", "node-1") == (0, "0 differences on 1 host\n", "")
    routes = document(run("get", "routes", "node-1", "-o", "json")[1])["items"]
    assert {item["state"] for item in routes if item["owner"] == "overlaynet"} == {"ok"}


def test_diff_document_tells_rules_and_objects_alike(run, cluster):
    drop_route(cluster)
    cluster.rules["node-2"].clean()
    difference = document(run("diff", "-o", "json")[1])
    by_host = {h["host"]: {c["object"] for c in h["changes"]} for h in difference["hosts"]}
    assert by_host == {"node-1": {"route"}, "node-2": {"rule"}}
    assert difference["count"] == sum(len(h["changes"]) for h in difference["hosts"])
    for host in difference["hosts"]:
        members = {"op", "object", "key", "want", "have", "source", "held"}
        assert all(set(c) == members for c in host["changes"])


def held_route(cluster: FakeCluster, fault: str = "route node-1 node-2") -> None:
    """A route that is missing because it was broken on purpose."""
    route = drop_route(cluster)
    held = {"kind": "route", "key": key_text(route.key), "reason": f"fault f1: {fault}"}
    agent = ready_agent("node-1")
    status = {**agent["/v1/status"], "holds": [held]}
    cluster.agents["node-1"] = {**agent, "/v1/status": status}


def test_diff_of_what_an_agent_leaves_alone_says_who_wants_that_and_what_ends_it(run, cluster):
    held_route(cluster)
    _, out, _ = run("diff")
    assert "    held    fault f1: route node-1 node-2\n" in out
    assert out.endswith("next: overlaynet heal\n")


def test_diff_of_what_is_held_and_what_is_not_names_both_ways_on(run, cluster):
    held_route(cluster)
    drop_route(cluster, "node-2")
    assert run("diff")[1].endswith("next: overlaynet heal\nnext: overlaynet repair\n")


def test_nobody_is_sent_to_heal_a_fault_that_is_to_be_found(run, cluster):
    held_route(cluster, "hidden")
    for verb in ("diff", "repair"):
        assert run(verb, "node-1")[1].endswith("\nnext: overlaynet lab check\n")


def test_repair_tells_what_was_left_alone(run, cluster):
    held_route(cluster)
    code, out, _ = run("repair", "node-1")
    assert (code, out) == (
        0,
        "node-1  0 changes, by its agent\n"
        "  held     route 254 10.244.2.0/24 717827: fault f1: route node-1 node-2\n"
        "next: overlaynet heal\n",
    )


def test_diff_of_one_host_does_not_look_at_others(run, cluster):
    drop_route(cluster, "node-2")
    assert [run("diff", "node-1")[0], run("diff", "node-2")[0]] == [0, 1]


def test_diff_names_the_hosts_that_could_not_be_compared(run, cluster):
    cluster.probe_errors["node-2"] = LabFailed("the probe on node-2 did not report")
    code, out, _ = run("diff")
    assert (code, out) == (4, "0 differences on 1 host; not compared: node-2\n")


def test_next_step_without_a_labs_etcd_is_to_bring_the_lab_up(run, cluster):
    cluster.store_error = StoreUnavailable("etcd cannot be reached", next=["etcdctl endpoint health"])
    assert run("diff")[2].endswith("  try  overlaynet up\n")


def test_next_step_of_a_suite_that_cannot_run_is_a_command_of_ours(run, cluster):
    cluster.store_error = StoreUnavailable("etcd cannot be reached", next=["etcdctl endpoint health"])
    code, out, _ = run("verify", "services")
    assert (code, "  try  overlaynet status\n" in out) == (4, True)


def test_next_step_is_about_the_lab_that_was_named(run):
    _, _, err = run("trace", "web-9", "web-1", "-l", "fake")
    assert err.endswith("  try  overlaynet get containers -l fake\n")


def test_next_step_in_a_place_names_the_lab_before_the_place(run):
    _, _, err = run("capture", "web-1:eth9", "-l", "fake")
    assert err.endswith("  try  overlaynet exec -l fake web-1 -- ip -br link\n")


def test_diff_without_etcd_is_a_failure_of_the_environment(run, cluster):
    cluster.store_error = StoreUnavailable("etcd cannot be reached")
    code, out, _ = run("diff", "-o", "json")
    assert (code, document(out)["error"]["code"]) == (3, "OVL-301")


def test_repair_without_an_agent_mends_and_says_so(run, cluster):
    drop_route(cluster)
    code, out, _ = run("repair", "node-1")
    assert (code, out) == (0, "node-1  1 change, without an agent\n")
    assert run("diff")[0] == 0


def test_repair_asks_the_agent_where_one_runs(run, cluster):
    cluster.agents = {name: ready_agent(name) for name in ("node-1", "node-2")}
    _, out, _ = run("repair", "-o", "json")
    assert [(h["host"], h["by"], h["changes"]) for h in document(out)["hosts"]] == [
        ("node-1", "agent", 0),
        ("node-2", "agent", 0),
    ]


def test_repair_that_the_kernel_refuses_is_exit_1(run, cluster):
    drop_route(cluster)
    cluster.kernels["node-1"].fail_next("route", 101)
    code, out, _ = run("repair", "node-1")
    assert (code, "refused  put route 10.244.2.0/24" in out) == (1, True)


# --- status, logs ---------------------------------------------------------------------------------


def test_status_of_a_cluster_that_is_well(run, cluster):
    cluster.agents = {name: ready_agent(name) for name in ("node-1", "node-2")}
    assert run("status") == (
        0,
        "fake: ready\n"
        "etcd     revision 2, 2 leases, 2 containers\n"
        "network  10.244.0.0/16, vxlan, vni 1, port 8472, mtu 1450\n"
        "\n"
        "HOST    UNDERLAY       SUBNET         AGENT  PID  PEERS  CONTAINERS  SERVICES  PENDING\n"
        "node-1  192.168.50.11  10.244.1.0/24  ready  101      1           1         1        0\n"
        "node-2  192.168.50.12  10.244.2.0/24  ready  102      1           1         1        0\n",
        "",
    )


def test_status_tells_what_services_make_do_without(run, cluster):
    cluster.agents = {name: ready_agent(name) for name in ("node-1", "node-2")}
    services = cluster.agents["node-1"]["/v1/status"]["services"]
    services["fallbacks"] = [NoIpset("the kernel has no ipsets").as_json()]
    cluster.agents["node-2"]["/v1/status"]["services"] = None
    code, out, _ = run("status", "-o", "wide")
    assert (code, out.partition("\n")[0]) == (0, "fake: ready")
    assert "node-1: services make do, OVL-602 the kernel has no ipsets" in out
    assert "SYNCED-AGO" in out


def test_status_names_a_dead_agent_and_what_to_do(run, cluster):
    cluster.agents = {"node-1": ready_agent("node-1")}
    _, out, _ = run("status")
    assert out.startswith("fake: degraded\n")
    assert "node-2  OVL-204: no agent answers" in out
    assert "try  overlaynet logs node-2" in out


def test_status_answers_while_etcd_is_away(run, cluster):
    cluster.store_error = StoreUnavailable("etcd cannot be reached")
    code, out, _ = run("status", "-o", "json")
    etcd = document(out)["etcd"]
    assert (code, etcd["connected"], etcd["revision"], etcd["error"]["code"]) == (0, False, None, "OVL-301")


def test_host_without_a_log_is_told(run):
    code, _, err = run("logs", "node-1")
    assert (code, "there is no log of node-1's agent" in err) == (2, True)


# --- exec -----------------------------------------------------------------------------------------


def test_exec_replaces_names_by_addresses_and_answers_the_commands_own_code(run):
    code, out, _ = run("exec", "web-1", "--", "sh", "-c", 'echo "$TARGET $0 $1"; exit 7', "web-2", "node-2x")
    assert (code, out) == (7, "web-1 10.244.2.2 node-2x\n")


@pytest.mark.parametrize(
    "line",
    [
        ["exec", "nobody", "--", "true"],
        ["exec", "web-1", "--", "there-is-no-such-program"],
        ["exec", "web-1", "--"],
    ],
)
def test_exec_that_could_not_start_is_125(run, line):
    code, _, err = run(*line)
    assert (code, err.startswith("error OVL-1")) == (125, True)


def test_exec_that_a_signal_ended_is_128_and_its_number(run):
    assert run("exec", "node-1", "--", "sh", "-c", "kill -9 $$")[0] == 137


# --- network, lease -------------------------------------------------------------------------------


def test_network_show_gives_meaning_and_words(run):
    shown = document(run("network", "show", "-o", "json")[1])
    assert (shown["networks"], shown["vni"], shown["config"]) == (["10.244.0.0/16"], 1, json.loads(NETWORK))


def test_network_set_writes_what_it_was_given_and_warns_of_leases_outside(run, cluster, tmp_path):
    given = tmp_path / "network.json"
    given.write_bytes(b'{ "Network": "10.99.0.0/16", "Backend": {"Type": "host-gw"} }')
    code, _, err = run("network", "set", str(given))
    stored = cluster.memory.read([cluster.keys().network_config]).items[0].value
    assert (code, stored) == (0, given.read_bytes())
    assert "2 leases lie outside" in err


@pytest.mark.parametrize("text", ["", "{", '{"Network":"10.0.0.0/8"}', '{"Network":"10.0.0.0/8","Backend":{}}'])
def test_network_that_cannot_work_is_refused_before_it_is_written(run, cluster, tmp_path, text):
    given = tmp_path / "network.json"
    given.write_text(text)
    code, _, err = run("network", "set", str(given))
    stored = cluster.memory.read([cluster.keys().network_config]).items[0].value
    assert (code, f"OVL-100: {given}" in err, "try" in err, stored) == (2, True, True, NETWORK)


def test_network_is_applied_host_by_host_and_stops_at_the_first_that_cannot(run, cluster):
    for host in ("node-1", "node-2"):
        cluster.agents[host] = applying(host)
    shown = document(run("network", "apply", "-o", "json")[1])
    assert [(h["host"], h["applied"], h["subnets"]) for h in shown["hosts"]] == [
        ("node-1", True, ["10.244.1.0/24"]),
        ("node-2", True, ["10.244.2.0/24"]),
    ]
    del cluster.agents["node-1"]
    code, out, _ = run("network", "apply", "-o", "json")
    shown = document(out)
    assert (code, shown["hosts"][0]["error"]["code"], shown["left"]) == (3, "OVL-204", ["node-2"])


def applying(host: str) -> dict[str, Any]:
    answers = ready_agent(host)
    answers["/v1/status"]["lease"]["confirmed"] = True
    return {**answers, "/v1/network/apply": {"applied": True, "network": {}}}


def test_network_show_tells_what_is_in_force_on_each_host(run, cluster):
    cluster.agents["node-1"] = applying("node-1")
    hosts = document(run("network", "show", "-o", "json")[1])["hosts"]
    assert [(h["host"], h["networks"]) for h in hosts] == [("node-1", ["10.244.0.0/16"]), ("node-2", None)]
    assert "in force:" in run("network", "show")[1]


def test_key_that_is_no_lease_can_be_deleted(run, cluster):
    cluster.memory.commit([], [Put(cluster.keys().subnets + "rubbish", b"x")])
    assert run("lease", "delete", "rubbish")[0] == 0
    assert "rubbish" not in str(cluster.memory.read([cluster.keys().subnets]).items)


def test_reserved_subnet_never_expires_and_can_be_given_back(run, cluster):
    assert run("lease", "reserve", "10.244.9.0/24", "--public-ip", "192.168.50.19")[0] == 0
    (lease,) = document(run("get", "leases", "10.244.9.0-24", "-o", "json")[1])["items"]
    assert (lease["expires_in_s"], lease["public_ip"], lease["live"]) == (None, "192.168.50.19", None)
    assert run("lease", "delete", "10.244.9.0/24")[0] == 0
    assert "10.244.9.0-24" not in run("lease", "list", "-o", "name")[1]


@pytest.mark.parametrize(
    ("subnet", "code", "error"),
    [
        ("10.244.1.0/24", 3, "OVL-404"),
        ("10.244.8.0/23", 2, "OVL-100"),
        ("10.5.1.0/24", 2, "OVL-100"),
        ("10.244.9.1/24", 2, "OVL-100"),
    ],
    ids=["taken", "wrong size", "outside", "host bits"],
)
def test_subnet_that_cannot_be_reserved(run, subnet, code, error):
    answer = run("lease", "reserve", subnet, "--public-ip", "192.168.50.19")
    assert (answer[0], f"error {error}" in answer[2]) == (code, True)


def test_agent_that_we_may_not_ask_is_not_called_stopped(run, cluster, monkeypatch):
    def refused(host: str, timeout_s: float) -> Any:
        raise NotPermitted(f"you may not ask the agent of {host}")

    monkeypatch.setattr(cluster, "agent", refused)
    status = document(run("status", "-o", "json")[1])
    assert (status["state"], {host["agent"]["state"] for host in status["hosts"]}) == ("unknown", {"unknown"})
    assert run("repair")[0] == 3


def test_file_that_we_may_not_read_is_a_matter_of_privilege(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(NotPermitted, match="you may not read") as caught:
        readable(tmp_path / "agent.log")
    assert (caught.value.exit_code, caught.value.next) == (3, ("run it again with sudo",))


def test_file_that_is_not_there_is_left_to_its_reader(tmp_path):
    assert readable(tmp_path / "none") == tmp_path / "none"
