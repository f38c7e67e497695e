"""From words to a question: names, services and addresses; what is said for those who say little."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from helpers.fake_cluster import FakeCluster

from overlaynet.cluster.cluster import Outside
from overlaynet.errors import NotFound, StoreUnavailable, UsageError
from overlaynet.proof.question import Asked, Directory, destinations, question
from overlaynet.proof.world import places_for, read_records
from overlaynet.store import services

pytestmark = pytest.mark.fake

VIP, NODE_PORT = "10.112.0.9", 30_080
WEB = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "type": "NodePort",
        "clusterIP": VIP,
        "selector": {"app": "web"},
        "ports": [
            {"name": "http", "port": 80, "targetPort": 8080, "nodePort": NODE_PORT},
            {"name": "dns", "protocol": "UDP", "port": 53},
        ],
    },
}


@pytest.fixture
def cluster() -> FakeCluster:
    made = FakeCluster()
    services.apply(made.memory, made.keys(), [WEB])
    return made


@pytest.fixture
def directory(cluster: FakeCluster) -> Directory:
    return replace(read_records(cluster).directory, outside=Outside("ovl-fake-outside", "203.0.113.10"))


def test_a_container_is_pinged(directory: Directory) -> None:
    found = question(Asked("web-1", "web-2"), directory)
    assert (found.source, str(found.src), str(found.dst)) == ("web-1", "10.244.1.2", "10.244.2.2")
    assert (found.protocol, found.dst_port, found.src_port) == ("icmp", None, None)


@pytest.mark.parametrize("word", ["svc/web", "service/default/web", VIP])
def test_a_service_is_asked_at_its_first_port(directory: Directory, word: str) -> None:
    found = question(Asked("web-1", word), directory)
    assert (str(found.dst), found.protocol, found.dst_port, found.target) == (VIP, "tcp", 80, word)


def test_a_service_is_asked_at_its_first_port_of_a_protocol(directory: Directory) -> None:
    assert question(Asked("web-1", "svc/web", "udp"), directory).dst_port == 53


def test_what_is_said_is_taken(directory: Directory) -> None:
    asked = Asked("outside", "node-1", "udp", 5000, 4000, 100, df=False)
    found = question(asked, directory)
    assert (str(found.src), str(found.dst)) == ("203.0.113.10", "192.168.50.11")
    assert (found.protocol, found.dst_port, found.src_port, found.size, found.df) == (
        "udp",
        5000,
        4000,
        100,
        False,
    )


def test_names_of_containers_with_their_namespace(directory: Directory) -> None:
    assert question(Asked("default/web-1", "default/web-2"), directory).source == "web-1"


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        (Asked("web-9", "web-1"), NotFound, "web-9"),
        (Asked("web-1", "nobody"), NotFound, "nobody"),
        (Asked("web-1", "svc/none"), NotFound, "default/none"),
        (Asked("web-1", "web-2", "tcp"), UsageError, "no tcp port"),
        (Asked("web-1", "web-2", "tcp", 80, None, 10), UsageError, "no data"),
        (Asked("web-1", "web-2", "udp", 80, None, 65_508), UsageError, "65507"),
        (Asked("web-1", "web-2", "icmp", None, None, -1), UsageError, "65507"),
        (Asked("web-1", "fd00::1"), UsageError, "IPv6"),
    ],
)
def test_what_cannot_be_asked(directory: Directory, asked: Asked, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        question(asked, directory)


def test_a_container_without_address_cannot_be_asked(directory: Directory) -> None:
    unwired = [replace(c, ips=()) if c.name == "web-2" else c for c in directory.containers]
    with pytest.raises(NotFound, match="web-2 has no address"):
        question(Asked("web-1", "web-2"), replace(directory, containers=unwired))
    with pytest.raises(NotFound, match="web-2 has no address to send from"):
        question(Asked("web-2", "web-1"), replace(directory, containers=unwired))


def test_without_etcd_containers_are_known_and_services_are_not(cluster: FakeCluster) -> None:
    cluster.store_error = StoreUnavailable("etcd is away")
    records = read_records(cluster)
    assert records.error is cluster.store_error
    assert question(Asked("web-1", "web-2"), records.directory).protocol == "icmp"
    with pytest.raises(NotFound) as refusal:
        question(Asked("web-1", "svc/web"), records.directory)
    assert str(refusal.value) == "nothing is known of service default/web: etcd could not be asked"


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (Asked("web-1", "svc/web"), {"web-1", "web-2"}),
        (Asked("web-1", "svc/web", "tcp", 81), set()),
        (Asked("outside", "node-1", "tcp", NODE_PORT), {"web-1", "web-2"}),
        (Asked("outside", "node-1", "tcp", 22), set()),
        (Asked("web-1", "web-2"), {"web-2"}),
    ],
)
def test_where_a_packet_may_end(directory: Directory, asked: Asked, names: set[str]) -> None:
    what = question(asked, directory)
    assert {c.name for c in destinations(what, directory).values()} == names


def test_services_for_the_world(directory: Directory) -> None:
    (web,) = directory.world_services()
    assert (web.id, web.ips) == ("default/web", (ip_address(VIP),))
    assert web.ports[0] == ("tcp", 80, NODE_PORT)
    assert web.ports[1][:2] == ("udp", 53)


def test_places_are_those_concerned_and_in_a_small_cluster_every_host(directory: Directory) -> None:
    found = {where.name: where for where in places_for(directory, ["web-1"])}
    assert list(found) == ["node-1", "node-2", "web-1", "outside"]
    assert (found["web-1"].host, found["web-1"].netns) == ("node-1", "ovl-fake-web-1")
    many = [*directory.hosts, *(replace(directory.hosts[0], name=f"other-{n}") for n in range(9))]
    found = {where.name: where for where in places_for(replace(directory, hosts=many), ["web-1"])}
    assert list(found) == ["node-1", "web-1", "outside"]
