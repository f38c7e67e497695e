"""Reading topologies: defaults, numbers, and every kind of mistake with its file, line and path."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.addr import Mac
from overlaynet.errors import NameInvalid, TopologyError
from overlaynet.lab.document import Document
from overlaynet.lab.topology import MAX_HOSTS, Topology, from_document, number_hosts, parse
from overlaynet.model import HttpCheck, Port, Probe

pytestmark = pytest.mark.unit

HEAD = "apiVersion: overlaynet/v1\nkind: Lab\n"
WEB = "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{port: 80}]}}"
VIP = (
    "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.112.0.9, ports: [{port: 80}]}}"
)
FULL = HEAD + dedent(
    """\
    name: demo
    network: {cidr: 10.9.0.0/16, subnet_len: 25, backend: {type: vxlan, vni: 7, mtu: 1400}}
    lease: {ttl_s: 600, node_ttl_s: 6}
    hosts:
    - {name: node-1, zone: a, labels: {disk: ssd}}
    - name: node-2
      agent: {firewall: {backend: legacy, resync_s: 5}}
    containers:
    - name: web-1
      host: node-2
      namespace: shop
      labels: {app: web}
      ports: [80, {port: 53, protocol: UDP, name: dns}]
      command: [python3, -m, http.server]
      probe: {http: {port: 80}}
    services:
    - {apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{port: 80}]}}
    outside: false
    """
)


PROBED = "hosts:\n- name: a\ncontainers:\n- name: c\n  host: a\n  probe:\n"


def test_everything_written_is_read() -> None:
    lab = parse(FULL, "demo.yaml")
    assert (lab.name, lab.outside, len(lab.services)) == ("demo", False, 1)
    assert lab.network.config.backend.vni == 7
    assert lab.network.config.pools[0].subnet_len == 25
    assert (lab.settings.lease_ttl_s, lab.settings.node_ttl_s, lab.settings.stop_grace_s) == (600, 6, 300)
    assert (lab.hosts[0].zone, dict(lab.hosts[0].labels)) == ("a", {"disk": "ssd"})
    assert dict(lab.hosts[1].agent["firewall"]) == {"backend": "legacy", "resync_s": 5}
    (web,) = lab.containers
    assert (web.host, web.namespace, web.command) == ("node-2", "shop", ("python3", "-m", "http.server"))
    assert web.ports == (Port(80), Port(53, "UDP", "dns"))
    assert web.probe == Probe(HttpCheck(80))


@pytest.mark.parametrize(
    ("services", "words"),
    [
        ("- {kind: Pod}", "demo.yaml:5: services[0].kind: must be one of Service and EndpointSlice"),
        (f"- {WEB}\n- {WEB}", "demo.yaml:6: services[1].metadata.name: Service default/web is there twice"),
        (
            "- apiVersion: v1\n  kind: Service\n  metadata: {name: a}\n  spec:\n    ports:\n    - {port: x}",
            'demo.yaml:10: services[0].spec.ports[0].port: must be a whole number, not "x"',
        ),
        (
            f"- {VIP}\n- {VIP.replace('web', 'api')}",
            "demo.yaml:6: services[1].spec.clusterIP: VIP 10.112.0.9 belongs to service default/web",
        ),
        ("- {a: 2024-01-01}", "services[0]"),
    ],
)
def test_wrong_service_is_told_with_its_line(services: str, words: str) -> None:
    with pytest.raises(TopologyError) as caught:
        parse(HEAD + "hosts: [{name: node-1}]\nservices:\n" + services, "demo.yaml")
    assert words in caught.value.message


def test_document_of_a_topology_gives_the_same_topology() -> None:
    lab = parse(FULL, "demo.yaml")
    assert from_document(Document("again", lab.as_document())) == lab


def test_name_given_goes_before_the_files() -> None:
    assert parse(FULL, "demo.yaml", name="other").name == "other"


def test_simple_numbers_containers_across_hosts() -> None:
    lab = Topology.simple("default", hosts=3, containers=2)
    assert [host.name for host in lab.hosts] == ["node-1", "node-2", "node-3"]
    assert [(c.name, c.host) for c in lab.containers] == [
        ("web-1", "node-1"),
        ("web-2", "node-1"),
        ("web-3", "node-2"),
        ("web-4", "node-2"),
        ("web-5", "node-3"),
        ("web-6", "node-3"),
    ]
    assert all(dict(c.labels) == {"app": "web"} for c in lab.containers)


def test_addresses_encode_the_host() -> None:
    lab = Topology.simple("default", hosts=3, containers=0)
    third = lab.hosts[2]
    assert third.underlay_ip == IPv4Address("192.168.50.13")
    assert third.underlay_mac == Mac("02:00:c0:a8:32:0d")
    assert lab.subnet(third) == IPv4Network("10.244.3.0/24")
    assert lab.vtep_mac(third) == Mac("02:0a:f4:03:00:00")


@pytest.mark.parametrize(
    ("names", "taken", "want"),
    [
        pytest.param(["node-1", "node-2"], {}, [1, 2], id="by-name"),
        pytest.param(["node-7", "node-3"], {}, [7, 3], id="order-does-not-matter"),
        pytest.param(["alpha", "node-1", "beta"], {}, [2, 1, 3], id="names-without-number-take-what-is-left"),
        pytest.param(["a-1", "b-1"], {}, [1, 2], id="first-come"),
        pytest.param(["n-201", "n-0"], {}, [1, 2], id="too-large-or-zero"),
        pytest.param(["beta", "gamma"], {"alpha": 1, "beta": 2}, [2, 1], id="a-running-host-keeps-its-number"),
        pytest.param(["new-2", "old"], {"old": 2}, [1, 2], id="the-running-one-goes-first"),
    ],
)
def test_host_numbers(names: list[str], taken: dict[str, int], want: list[int]) -> None:
    assert list(number_hosts(names, taken).values()) == want


@given(st.lists(st.from_regex(r"[a-z]{1,3}(-[0-9]{1,4})?", fullmatch=True), unique=True, max_size=MAX_HOSTS))
def test_host_numbers_are_distinct_and_in_range(names: list[str]) -> None:
    numbers = number_hosts(names, {})
    assert sorted(numbers) == sorted(names)
    assert len(set(numbers.values())) == len(names)
    assert all(1 <= number <= MAX_HOSTS for number in numbers.values())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param("hosts: [", ["t.yaml:3", "not YAML"], id="no-yaml"),
        pytest.param("hosts:\n- {name: a, zonee: x}\n", ["t.yaml:4: hosts[0].zonee: unknown key"], id="key"),
        pytest.param("hosts:\n- name: a\nhostz: 1\n", ["t.yaml:5: hostz: unknown key"], id="top-level-key"),
        pytest.param("hosts:\n- name: a\n  name: b\n", ["t.yaml:5: hosts[0].name", "twice"], id="key-twice"),
        pytest.param("hosts:\n- name: a\n1: b\n", ["t.yaml:5", "must be text"], id="key-no-text"),
        pytest.param("containers: []\n", ["t.yaml:1: 'hosts' is missing"], id="no-hosts"),
        pytest.param("hosts: []\n", ["t.yaml:3: hosts: must not be empty"], id="empty-hosts"),
        pytest.param(
            "hosts:\n" + "".join(f"- name: h{n}\n" for n in range(MAX_HOSTS + 1)),
            ["t.yaml:3: hosts: has more than 200 items"],
            id="too-many-hosts",
        ),
        pytest.param(
            "network: {cidr: 10.9.0.0/24, subnet_len: 30}\nhosts:\n- name: a\ncontainers:\n"
            "- {name: b, host: a}\n- {name: c, host: a}\n",
            ["t.yaml:8: containers[1].host: there is no address left for 'c' on 'a'"],
            id="too-many-containers",
        ),
        pytest.param("hosts:\n- zone: a\n", ["t.yaml:4: hosts[0]: 'name' is missing"], id="no-name"),
        pytest.param("hosts:\n- name: 5\n", ["t.yaml:4: hosts[0].name: wants text"], id="type"),
        pytest.param("hosts:\n- name: a_b\n", ["t.yaml:4: hosts[0].name", "a_b"], id="bad-name"),
        pytest.param("hosts:\n- name: etcd\n", ["t.yaml:4: hosts[0].name", "etcd"], id="reserved-name"),
        pytest.param("hosts:\n- name: a\n- name: a\n", ["t.yaml:5: hosts[1].name", "twice"], id="host-twice"),
        pytest.param(
            "hosts:\n- name: a\ncontainers:\n- {name: a, host: a}\n",
            ["t.yaml:6: containers[0].name", "twice"],
            id="container-named-like-a-host",
        ),
        pytest.param(
            PROBED + "    tcp: {port: 80, host: 10.0.0.1}\n",
            ["t.yaml:9: containers[0].probe.tcp.host: unknown key"],
            id="probe-of-somebody-else",
        ),
        pytest.param(
            PROBED + "    tcp: {port: 80}\n    period_s: 0\n",
            ["t.yaml:10: containers[0].probe.period_s"],
            id="probe-without-a-pause",
        ),
        pytest.param(
            PROBED + "    tcp: {port: 80}\n    exec: {command: [a]}\n",
            ["t.yaml:8: containers[0].probe: wants exactly one of tcp, http and exec"],
            id="two-probes",
        ),
        pytest.param(
            PROBED + "    http: {port: 80, path: index}\n",
            ["t.yaml:9: containers[0].probe.http.path: must begin with /"],
            id="probe-path",
        ),
        pytest.param(
            "hosts:\n- name: a\ncontainers:\n- name: c\n  host: b\n",
            ["t.yaml:7: containers[0].host: there is no host 'b'"],
            id="no-such-host",
        ),
        pytest.param(
            "hosts:\n- name: a\ncontainers:\n- {name: c, host: a, ports: [80, {port: 99999}]}\n",
            ["t.yaml:6: containers[0].ports[1].port"],
            id="port-range",
        ),
        pytest.param(
            "hosts:\n- name: a\ncontainers:\n- {name: c, host: a, ports: [{port: 1, protocol: ICMP}]}\n",
            ["containers[0].ports[0].protocol: must be 'TCP' or 'UDP'"],
            id="protocol",
        ),
        pytest.param(
            "hosts:\n- name: a\n  agent:\n    firewall:\n      bakend: nft\n",
            ["t.yaml:7: hosts[0].agent.firewall.bakend", "unknown key"],
            id="agent-key",
        ),
        pytest.param(
            "hosts:\n- name: a\n  agent:\n    firewall:\n      backend: pf\n",
            ["t.yaml:7: hosts[0].agent.firewall.backend", "legacy"],
            id="agent-value",
        ),
        pytest.param(
            "hosts:\n- name: a\n  agent:\n    etcd: {endpoints: [x]}\n",
            ["hosts[0].agent.etcd.endpoints: is set by the lab itself"],
            id="agent-key-of-the-lab",
        ),
        pytest.param(
            "network: {cidr: 10.0.0.0/23, subnet_len: 24}\nhosts: [{name: a}]\n",
            ["t.yaml:3: network", "SubnetLen"],
            id="network-too-small",
        ),
        pytest.param(
            "network: {cidr: 10.0.0.1/16}\nhosts: [{name: a}]\n",
            ["t.yaml:3: network.cidr: wants an IPv4 network"],
            id="host-bits",
        ),
        pytest.param(
            "network: {cidr: 192.168.0.0/16}\nhosts: [{name: a}]\n",
            ["t.yaml:3: network.cidr: overlaps the lab's underlay"],
            id="overlaps-underlay",
        ),
        pytest.param(
            "network: {cidr: 10.0.0.0/22, subnet_len: 24}\nhosts: [{name: n-1}, {name: n-4}]\n",
            ["t.yaml:4: hosts[1].name: there is no subnet number 4"],
            id="more-hosts-than-subnets",
        ),
        pytest.param("lease: {node_ttl_s: 1}\nhosts: [{name: a}]\n", ["t.yaml:3: lease", "NodeTTL"], id="ttl"),
        pytest.param("kind: Lab\nhosts: [{name: a}]\n", ["t.yaml:3: kind", "twice"], id="kind-twice"),
        pytest.param("name: Lab\nhosts: [{name: a}]\n", ["t.yaml:3: name", "'Lab'"], id="lab-name"),
    ],
)
def test_mistake_is_named_with_file_line_and_path(body: str, words: list[str]) -> None:
    with pytest.raises(TopologyError) as caught:
        parse(HEAD + body, "t.yaml")
    assert [word for word in words if word not in caught.value.message] == []


def test_document_that_contains_itself_is_refused() -> None:
    with pytest.raises(TopologyError, match="nested too deep"):
        parse(HEAD + "hosts: &h [*h]\n", "t.yaml")


def test_text_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(TopologyError, match=r"t\.yaml:1: a topology is a mapping"):
        parse("- 1\n", "t.yaml")


@pytest.mark.parametrize("hosts", [0, 201, -1])
def test_impossible_number_of_hosts_is_refused(hosts: int) -> None:
    with pytest.raises(TopologyError, match="hosts are not possible"):
        Topology.simple("default", hosts=hosts)


def test_bad_lab_name_is_refused() -> None:
    with pytest.raises(NameInvalid):
        Topology.simple("Not_A_Name")
