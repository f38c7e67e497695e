"""`apply` and `service`: what is written, what is refused and in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers.fake_cluster import FakeCluster

from overlaynet.cli import manifest
from overlaynet.errors import ObjectInvalid, StoreUnavailable
from overlaynet.store import codec

pytestmark = pytest.mark.fake

WEB = """
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  selector: {app: web}
  ports:
    - port: 80
"""
SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [192.0.2.1]}]
ports: [{port: 80}]
"""


def stored(cluster: FakeCluster, service_id: str = "default/web") -> Any:
    items = cluster.memory.read([cluster.keys().service(service_id)]).items
    return json.loads(items[0].value) if items else None


# --- apply ----------------------------------------------------------------------------------------


def test_documents_are_written_and_a_second_time_unchanged(run, cluster):
    code, out, _ = run("apply", "-f", "-", text=WEB + "---" + SLICE)
    assert (code, [line.split()[:4] for line in out.splitlines()]) == (
        0,
        [
            ["ACTION", "KIND", "NAMESPACE", "NAME"],
            ["created", "Service", "default", "web"],
            ["created", "EndpointSlice", "default", "web-1"],
        ],
    )
    _, out, _ = run("apply", "-f", "-", "-o", "json", text=WEB + "---" + SLICE)
    found = json.loads(out)
    assert (found["changes"], [item["action"] for item in found["items"]]) == (0, ["unchanged"] * 2)
    assert found["items"][0]["object"] == stored(cluster)


def test_several_files_are_one_undertaking(run, cluster, tmp_path):
    (tmp_path / "a.yaml").write_text(WEB)
    (tmp_path / "b.json").write_text('{"kind": "Service"}')
    code, _, err = run("apply", "-f", str(tmp_path / "a.yaml"), "-f", str(tmp_path / "b.json"))
    assert (code, stored(cluster)) == (2, None)
    assert "b.json: document 1, Service default/: apiVersion" in err


def test_a_list_as_kubectl_prints_it_is_taken_apart(run, cluster):
    items = [
        json.loads(codec.encode_object(m.value)) for text in (WEB, SLICE) for m in manifest.read(text, "x")
    ]
    items[0]["metadata"]["managedFields"] = [{"fieldsV1": {'k:{"port":80}': {".": {}}}}]
    items[1] |= {"endpoints": None}
    code, out, _ = run("apply", "-f", "-", "-o", "name", text=json.dumps({"kind": "List", "items": items}))
    assert (code, out.split()) == (0, ["service/web", "endpointslice/web-1"])
    assert stored(cluster)["metadata"]["managedFields"] == items[0]["metadata"]["managedFields"]


def test_every_mistake_of_every_document_is_told_with_its_line(run, cluster):
    bad = WEB.replace("port: 80", "port: 0\n      nodePort: 30080")
    code, out, err = run("apply", "-f", "-", text=WEB + "---" + bad + "---\nkind: Pod\n")
    assert (code, out, stored(cluster)) == (2, "", None)
    assert err.startswith("error OVL-106: 3 mistakes; nothing was written")
    assert "-:18: document 2, Service default/web: spec.ports[0].port: must be from 1 to 65535, not 0" in err
    assert "-:19: document 2, Service default/web: spec.ports[0].nodePort: is not for type ClusterIP" in err
    assert "-:21: document 3, Pod default/: kind: must be one of Service and EndpointSlice" in err


def test_an_item_of_a_list_is_named_by_its_place(run):
    items = (
        '{"kind": "ServiceList", "items": [{"metadata": {"name": "a"}, "spec": {"ports": [{"port": 99999}]}}]}'
    )
    _, _, err = run("apply", "-f", "-", text=items)
    assert "-: document 1, item 0, Service default/a: spec.ports[0].port" in err


def test_a_node_port_of_another_service_is_refused_where_it_is_asked_for(run):
    def node_port(name: str) -> str:
        text = WEB.replace("name: web", f"name: {name}").replace("port: 80", "port: 80\n      nodePort: 30080")
        return text.replace("spec:", "spec:\n  type: NodePort")

    assert run("apply", "-f", "-", text=node_port("web"))[0] == 0
    code, _, err = run("apply", "-f", "-", text=SLICE + "---" + node_port("api"))
    assert code == 2
    assert err.startswith(
        "error OVL-107: -:18: document 2, Service default/api: spec.ports[0].nodePort: "
        "nodePort tcp-30080 belongs to service default/web"
    )


def test_a_namespace_is_given_to_what_has_none_and_held_against_what_has_another(run, cluster):
    assert run("apply", "-n", "prod", "-f", "-", text=WEB)[0] == 0
    assert stored(cluster, "prod/web")["metadata"]["namespace"] == "prod"
    code, _, err = run("apply", "-n", "other", "-f", "-", text=json.dumps(stored(cluster, "prod/web")))
    assert code == 2
    assert "metadata.namespace: is not other, as -n says" in err


def test_a_vip_from_another_cluster_is_accepted_and_told(run):
    code, _, err = run("apply", "-f", "-", text=WEB + "  clusterIP: 10.96.0.1\n")
    assert code == 0
    assert "10.96.0.1 is outside of the service network 10.112.0.0/16" in err


def test_a_field_that_is_not_known_is_kept_and_told_with_the_one_that_may_be_meant(run, cluster):
    code, _, err = run("apply", "-f", "-", text=WEB + "      nodeport: 30080\n      future: 1\n")
    assert code == 0
    assert "-:10: document 1, Service default/web: spec.ports[0].nodeport: is no field that is known" in err
    assert "perhaps nodePort is meant" in err
    assert "-:11: document 1, Service default/web: spec.ports[0].future: is no field that is known; it" in err
    assert stored(cluster)["spec"]["ports"][0]["future"] == 1


KUBECTL = """
apiVersion: v1
items:
- apiVersion: v1
  kind: Service
  metadata:
    annotations:
      example.net/owner: team-a
    creationTimestamp: "2024-05-01T10:00:00Z"
    labels:
      app.kubernetes.io/name: shop
    name: shop
    namespace: prod
    resourceVersion: "4711"
    uid: 0d2b3b5e-0000-4000-8000-000000000001
  spec:
    allocateLoadBalancerNodePorts: true
    clusterIP: 10.96.17.3
    clusterIPs:
    - 10.96.17.3
    externalTrafficPolicy: Local
    healthCheckNodePort: 31234
    internalTrafficPolicy: Cluster
    ipFamilies:
    - IPv4
    ipFamilyPolicy: SingleStack
    loadBalancerClass: example.net/lb
    ports:
    - appProtocol: http
      name: http
      nodePort: 31080
      port: 80
      protocol: TCP
      targetPort: http
    selector:
      app.kubernetes.io/name: shop
    sessionAffinity: ClientIP
    sessionAffinityConfig:
      clientIP:
        timeoutSeconds: 10800
    type: LoadBalancer
  status:
    conditions: []
    loadBalancer:
      ingress:
      - ip: 203.0.113.7
        ipMode: VIP
- addressType: IPv4
  apiVersion: discovery.k8s.io/v1
  endpoints:
  - addresses:
    - 10.244.7.12
    conditions:
      ready: true
      serving: true
      terminating: false
    nodeName: worker-1
    targetRef:
      kind: Pod
      name: shop-5d9c
      namespace: prod
      uid: 0d2b3b5e-0000-4000-8000-000000000002
    zone: eu-1a
  kind: EndpointSlice
  metadata:
    generateName: shop-
    generation: 3
    labels:
      endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io
      kubernetes.io/service-name: shop
    name: shop-x7k2q
    namespace: prod
    ownerReferences:
    - apiVersion: v1
      blockOwnerDeletion: true
      controller: true
      kind: Service
      name: shop
      uid: 0d2b3b5e-0000-4000-8000-000000000001
  ports:
  - appProtocol: http
    name: http
    port: 8080
    protocol: TCP
- addressType: IPv4
  apiVersion: discovery.k8s.io/v1
  endpoints: null
  kind: EndpointSlice
  metadata:
    name: empty-abcde
    namespace: prod
  ports: null
kind: List
metadata:
  resourceVersion: ""
"""


def test_what_kubectl_prints_is_taken_whole_and_none_of_its_fields_is_strange(run, cluster):
    code, out, _ = run("apply", "-f", "-", "-q", text=KUBECTL)
    assert (code, [line.split()[:4] for line in out.splitlines()[1:]]) == (
        0,
        [
            ["created", "Service", "prod", "shop"],
            ["created", "EndpointSlice", "prod", "shop-x7k2q"],
            ["created", "EndpointSlice", "prod", "empty-abcde"],
        ],
    )
    _, _, err = run("apply", "-f", "-", text=KUBECTL)
    [note] = err.splitlines()
    assert note.startswith("Service prod/shop: 10.96.17.3 is outside of the service network 10.112.0.0/16")
    assert stored(cluster, "prod/shop")["metadata"]["uid"] == "0d2b3b5e-0000-4000-8000-000000000001"
    endpoints = json.loads(run("get", "endpoints", "prod/shop", "-o", "json")[1])["items"]
    assert [(e["address"], e["port"], e["host"]) for e in endpoints] == [("10.244.7.12", 8080, "worker-1")]


@pytest.mark.parametrize("text", ["", "---\n---\n", '{"kind": "List", "items": []}'])
def test_nothing_to_apply_is_a_mistake(run, text):
    assert run("apply", "-f", "-", text=text)[0] == 2


def test_a_file_that_is_not_there_is_a_mistake(run, tmp_path):
    assert run("apply", "-f", str(tmp_path / "none"))[0] == 2
    (tmp_path / "bytes").write_bytes(b"\xff")
    assert run("apply", "-f", str(tmp_path / "bytes"))[0] == 2


def test_what_was_written_before_etcd_failed_is_told(run, cluster):
    commit = cluster.memory.commit
    answers = [commit]

    def failing(*arguments: Any) -> Any:
        if not answers:
            raise StoreUnavailable("etcd is away")
        return answers.pop()(*arguments)

    cluster.memory.commit = failing
    code, _, err = run("apply", "-f", "-", text=WEB + "---" + SLICE)
    assert code == 3
    assert "written before the error: Service default/web" in err


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: ]", "f:1: not YAML"),
        ("a: 1\nb: {c: 2,\n  c: 3}", "f:3: document 1: key 'c' is there twice"),
        ("---\na: 1\n---\n1: x", "f:4: document 2: a key must be text, not"),
        ("- a", "f:1: document 1, object: must be a Kubernetes object"),
        ("kind: List\nitems:\n  - a\n  - b", "f:3: document 1, item 0, object: must be an object"),
        ("a: .nan", "f:1: document 1, object: cannot be written as JSON"),
        ("a: &x {b: *x}", "cannot be written as JSON"),
        ("a: !!binary aGFsbG8=", "cannot be written as JSON"),
        ("a: !python/object:x {}", "f:1: not YAML"),
        ('{"a": 1,}x', "not YAML"),
    ],
)
def test_what_is_no_object_is_refused_with_its_place(text, words):
    with pytest.raises(ObjectInvalid) as caught:
        manifest.read(text, "f")
    assert words in caught.value.message


def test_dates_stay_text_and_anchors_and_tabs_in_json_are_understood():
    text = "a: 2024-01-01\nb: &x {c: 1}\nd: {<<: *x, e: 2}"
    assert manifest.read(text, "f")[0].value == {"a": "2024-01-01", "b": {"c": 1}, "d": {"c": 1, "e": 2}}
    assert manifest.read('{\n\t"a": 1}', "f")[0].value == {"a": 1}


# --- service --------------------------------------------------------------------------------------


def test_a_service_is_created_as_its_options_say(run, cluster):
    code, _, _ = run(
        "service", "create", "web", "-n", "prod", "--port", "http=80:8080", "--port", "53/udp",
        "--selector", "app=web,tier=front", "--selector", "x=", "--node-port", "30080", "--affinity", "60",
        "--external-ip", "198.51.100.1", "--external-policy", "local",
    )  # fmt: skip
    assert code == 0
    found = stored(cluster, "prod/web")["spec"]
    assert found["type"] == "NodePort"
    assert found["selector"] == {"app": "web", "tier": "front", "x": ""}
    assert found["ports"][0] == {
        "name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080, "nodePort": 30080
    }  # fmt: skip
    assert (found["ports"][1]["name"], found["ports"][1]["protocol"]) == ("udp-53", "UDP")
    assert found["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 60}}
    assert (found["externalIPs"], found["externalTrafficPolicy"]) == (["198.51.100.1"], "Local")


def test_a_headless_service_has_no_vip(run, cluster):
    assert run("service", "create", "db", "--port", "80:web", "--cluster-ip", "none")[0] == 0
    assert stored(cluster, "default/db")["spec"]["clusterIP"] == "None"


def test_a_service_that_is_there_is_not_created_again(run, cluster):
    run("service", "create", "web", "--port", "80")
    before = stored(cluster)
    code, _, err = run("service", "create", "web", "--port", "81")
    assert (code, stored(cluster)) == (2, before)
    assert "service default/web is there already" in err


@pytest.mark.parametrize(
    "options",
    [
        ["--port", "x"],
        ["--port", "80", "--selector", "app"],
        ["--port", "80", "--cluster-ip", "1.2.3"],
        ["--port", "0"],
        ["--port", "80", "--node-port", "30080", "--node-port", "30081"],
        ["--port", "80", "--type", "ClusterIP", "--node-port", "30080"],
        ["--port", "80", "--affinity", "0"],
        [],
    ],
)
def test_impossible_options_are_refused_and_nothing_is_written(run, cluster, options):
    assert run("service", "create", "web", *options)[0] == 2
    assert stored(cluster) is None


def test_a_service_is_deleted_with_its_slices(run, cluster):
    run("apply", "-f", "-", text=WEB + "---" + SLICE)
    code, out, _ = run("service", "delete", "web", "-o", "json")
    found = json.loads(out)
    assert (code, [(i["kind"], i["action"]) for i in found["items"]]) == (
        0,
        [("EndpointSlice", "deleted"), ("Service", "deleted")],
    )
    assert cluster.memory.read([cluster.keys().vips, cluster.keys().services]).items == ()
    code, _, err = run("service", "delete", "web")
    assert code == 2
    assert "there is no service default/web" in err
