"""`get services`, `get endpoints` and `describe`: what they say of what is in etcd and on hosts."""

from __future__ import annotations

import json

import pytest

from overlaynet.config import build
from overlaynet.errors import EnvironmentProblem
from overlaynet.ports import Put
from overlaynet.store import services
from overlaynet.testing.fake_firewall import FakeFirewall

pytestmark = pytest.mark.fake


def service(name="web", namespace="default", **spec):
    usual = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}], "clusterIP": "10.112.0.9"}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": usual | spec}


EXTRA = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {"name": "web-extra", "labels": {"kubernetes.io/service-name": "web"}},
    "addressType": "IPv4",
    "endpoints": [{"addresses": ["192.0.2.9"], "conditions": {"ready": False}, "nodeName": "vm-1"}],
    "ports": [{"port": 9090}],
}


def put(cluster, *values):
    services.apply(cluster.memory, cluster.keys(), values)


def items(out):
    return json.loads(out)["items"]


def test_services_are_listed_with_what_kubernetes_stored(run, cluster):
    put(cluster, service(), EXTRA, service("db", "prod", clusterIP="None"))
    _, out, _ = run("get", "services")
    assert [line.split() for line in out.splitlines()] == [
        ["NAMESPACE", "NAME", "TYPE", "CLUSTER-IP", "READY", "PORTS"],
        ["default", "web", "ClusterIP", "10.112.0.9", "2/3", "80/TCP"],
        ["prod", "db", "ClusterIP", "None", "0/0", "80/TCP"],
    ]
    _, out, _ = run("get", "svc", "web", "-o", "json")
    [found] = items(out)
    assert (found["endpoints"], found["cluster_ips"]) == ({"ready": 2, "total": 3}, ["10.112.0.9"])
    assert found["ports"] == [
        {"name": None, "port": 80, "protocol": "TCP", "target_port": 8080, "node_port": None}
    ]
    assert found["object"]["spec"]["clusterIPs"] == ["10.112.0.9"]


def test_endpoints_come_from_containers_and_slices(run, cluster):
    put(cluster, service(), EXTRA)
    _, out, _ = run("get", "endpoints", "web", "-o", "json")
    found = {item["address"]: item for item in items(out)}
    assert found.keys() == {"10.244.1.2", "10.244.2.2", "192.0.2.9"}
    assert (found["10.244.1.2"]["port"], found["10.244.1.2"]["container"]) == (8080, "web-1")
    outside = found["192.0.2.9"]
    assert (outside["port"], outside["host"], outside["ready"], outside["serving"]) == (
        9090,
        "vm-1",
        False,
        True,
    )


def test_namespaces_and_names_choose(run, cluster):
    put(cluster, service(), service("web", "prod", clusterIP="10.112.0.10"))
    assert run("get", "svc", "-o", "name")[1].split() == ["default/web", "prod/web"]
    assert run("get", "svc", "web", "-n", "prod", "-o", "name")[1].split() == ["prod/web"]
    assert run("get", "svc", "prod/web", "-o", "name")[1].split() == ["prod/web"]
    assert run("get", "ep", "prod/none")[0] == 2


def test_an_object_that_cannot_be_understood_is_named_beside_the_good_ones(run, cluster):
    put(cluster, service())
    bad = json.dumps(service("bad", ports=[{"port": "x"}])).encode()
    cluster.memory.commit([], [Put(cluster.keys().service("default/bad"), bad)])
    code, out, err = run("get", "svc", "-o", "name")
    assert (code, out.split()) == (0, ["default/web"])
    assert "spec.ports[0].port: must be a whole number" in err
    code, _, err = run("describe", "svc/bad")
    assert (code, "spec.ports[0].port" in err) == (3, True)


def test_what_a_service_does_not_get_is_noted(run, cluster):
    put(cluster, service())
    late = json.dumps(service("late")).encode()
    cluster.memory.commit([], [Put(cluster.keys().service("default/late"), late)])
    put(cluster, service("far", clusterIP="10.96.0.1"))
    put(cluster, service("odd", clusterIP="10.244.1.2"))
    notes = {item["name"]: item["notes"] for item in items(run("get", "svc", "-o", "json")[1])}
    assert notes["web"] == []
    assert "service default/web has it" in notes["late"][0]
    assert "outside of the service network" in notes["far"][0]
    assert "10.244.1.2 is an address of the overlay" in notes["odd"][0]


def test_a_service_that_was_never_given_a_vip_is_told(run, cluster):
    raw = json.dumps(service("raw", clusterIP=None)).encode()
    cluster.memory.commit([], [Put(cluster.keys().service("default/raw"), raw)])
    put(cluster, service("none", clusterIP="None"))
    found = {item["name"]: item for item in items(run("get", "svc", "-o", "json")[1])}
    assert (found["none"]["notes"], found["raw"]["served"]) == ([], False)
    assert "it has no VIP" in found["raw"]["notes"][0]
    columns = [line.split()[3] for line in run("get", "svc")[1].splitlines()[1:]]
    assert columns == ["None", "-"]


def test_describe_shows_frontends_endpoints_connections_and_chains(run, cluster):
    put(cluster, service(type="NodePort", ports=[{"port": 80, "nodePort": 30080}]))
    for host in cluster.hosts():
        cluster.once(host.name, 1)
    cluster.connections = {
        host: [{"protocol": "tcp", "ip": "10.244.1.2", "port": 80, "connections": n}]
        for n, host in ((3, "node-1"), (4, "node-2"))
    }
    code, out, _ = run("describe", "svc/web", "-o", "json")
    found = json.loads(out)
    assert (code, found["kind"], found["id"]) == (0, "Description", "default/web")
    assert [(f["kind"], f["address"], f["port"]) for f in found["frontends"]] == [
        ("clusterIP", "10.112.0.9", 80),
        ("nodePort", None, 30080),
    ]
    assert {e["address"]: e["connections"] for e in found["endpoint_items"]} == {
        "10.244.1.2": 7,
        "10.244.2.2": 0,
    }
    chains = list(dict.fromkeys(rule["chain"].split("-")[1] for rule in found["rules"]["items"]))
    assert chains == ["SERVICES", "NODEPORTS", "EXT", "SVC", "SEP"]
    assert {rule["state"] for rule in found["rules"]["items"]} == {"ok"}
    text = run("describe", "svc", "web", "--host", "node-2")[1]
    assert "Rules on node-2" in text
    assert "--to-destination 10.244.1.2:80" in text


def test_connections_of_a_host_that_cannot_be_asked_are_unknown(run, cluster):
    put(cluster, service())
    probe = cluster.probe

    def failing(host, job, timeout_s):
        if job["op"] == "connections" and host == "node-2":
            raise EnvironmentProblem("the probe could not start")
        return probe(host, job, timeout_s)

    cluster.probe = failing
    code, out, _ = run("describe", "svc/web", "-o", "json")
    assert (code, {e["connections"] for e in json.loads(out)["endpoint_items"]}) == (4, {None})


@pytest.mark.parametrize("words", [["svc"], ["svc/a/b/c"], ["node/x"], ["svc/none"], ["svc/a", "b", "c"]])
def test_what_names_no_service_is_a_mistake(run, words):
    assert run("describe", *words)[0] == 2


@pytest.mark.parametrize("localhost", [False, True])
def test_a_host_that_serves_as_it_should_does_not_differ(run, cluster, localhost):
    put(cluster, service(type="NodePort"))
    settings = {("service", "localhost_node_ports"): localhost}
    cluster.config = lambda host: build({("node", "name"): host, ("node", "interface"): ("eth0",)} | settings)
    for host in cluster.hosts():
        cluster.once(host.name, 1)
    code, out, _ = run("diff")
    assert (code, out) == (0, "0 differences on 2 hosts\n")


def test_a_host_without_ipset_does_not_differ_for_that(run, cluster):
    put(cluster, service(sessionAffinity="ClientIP"))
    cluster.rules = {host.name: FakeFirewall(random_fully=True, affinity="recent") for host in cluster.hosts()}
    for host in cluster.hosts():
        survey = cluster.survey(host.name)
        cluster.kernels[host.name].apply(survey.plan.changes)
        rules = cluster.rules[host.name]
        rules.apply(rules.pending(survey.plan.desired.policies, survey.rules), survey.rules)
    code, out, _ = run("diff")
    assert (code, out) == (0, "0 differences on 2 hosts\n")


def test_rules_of_a_service_say_whose_they_are(run, cluster):
    put(cluster, service())
    for host in cluster.hosts():
        cluster.once(host.name, 1)
    found = items(run("get", "rules", "node-1", "-o", "json")[1])
    mine = [rule for rule in found if rule["source"] == {"kind": "service", "name": "default/web"}]
    assert any("--to-destination 10.244.2.2:8080" in rule["text"] for rule in mine)
