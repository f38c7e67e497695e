"""Which interface carries the overlay, as flannel chooses it."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from helpers.model import vtep_mac

from overlaynet.config import parse
from overlaynet.core.underlay import local_host, on_link, traces
from overlaynet.errors import UnderlayProblem
from overlaynet.model import Identity
from overlaynet.state import Route
from overlaynet.testing.fake_kernel import FakeKernel

pytestmark = pytest.mark.unit


def machine() -> FakeKernel:
    """A Vagrant VM: its first interface, with the default route, has the same address as every other's."""
    fake = FakeKernel()
    fake.add_device("lo", type="loopback", addresses=[ip_interface("127.0.0.1/8")])
    fake.add_device("eth0", addresses=[ip_interface("10.0.2.15/24")])
    fake.add_device("eth1", addresses=[ip_interface("192.168.50.11/24"), ip_interface("10.9.0.1/16")])
    for route in (
        Route(ip_network("0.0.0.0/0"), "eth0", ip_address("10.0.2.2"), protocol=3),
        Route(ip_network("172.16.0.0/12"), "eth1", ip_address("192.168.50.1"), protocol=3),
        Route(ip_network("192.168.50.128/26"), "eth1", ip_address("192.168.50.1"), protocol=3),
    ):
        fake.routes[route.key] = route
    return fake


def chosen(**node: Any) -> tuple[str, str]:
    config = parse({"node": {"name": "node-1", **node}}, "test")
    host = local_host(config, Identity("id", vtep_mac(1)), machine().observe())
    return host.interface, str(host.public_ips[0])


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        pytest.param({}, ("eth0", "10.0.2.15"), id="default-route"),
        pytest.param({"interface": "eth1"}, ("eth1", "192.168.50.11"), id="name"),
        pytest.param({"interface": "10.9.0.1"}, ("eth1", "10.9.0.1"), id="address"),
        pytest.param({"interface": ["eth7", "eth1"]}, ("eth1", "192.168.50.11"), id="first-that-is-there"),
        pytest.param({"interface": "eth7,10.0.2.15"}, ("eth0", "10.0.2.15"), id="list-as-text"),
        pytest.param({"interface_regex": "^192\\.168"}, ("eth1", "192.168.50.11"), id="regex-on-addresses"),
        pytest.param({"interface_regex": "th1"}, ("eth1", "192.168.50.11"), id="regex-on-names"),
        pytest.param({"interface_regex": ["^9", "eth0"]}, ("eth0", "10.0.2.15"), id="second-regex"),
        pytest.param({"interface_can_reach": "172.20.0.1"}, ("eth1", "192.168.50.11"), id="by-a-route"),
        pytest.param({"interface_can_reach": "8.8.8.8"}, ("eth0", "10.0.2.15"), id="by-the-default-route"),
        pytest.param({"public_ip": "192.168.50.11"}, ("eth1", "192.168.50.11"), id="holder-of-the-address"),
        pytest.param({"public_ip": "203.0.113.5"}, ("eth0", "203.0.113.5"), id="address-of-a-NAT-before-us"),
        pytest.param(
            {"interface": "eth1", "public_ip": "203.0.113.5"}, ("eth1", "203.0.113.5"), id="NAT-and-a-name"
        ),
    ],
)
def test_interface_and_address_as_flannel_chooses(node, expected):
    assert chosen(**node) == expected


@pytest.mark.parametrize(
    "node",
    [
        pytest.param({"interface": "eth7"}, id="name"),
        pytest.param({"interface_regex": "wlan"}, id="regex"),
    ],
)
def test_what_there_was_to_choose_from_is_said(node):
    with pytest.raises(UnderlayProblem) as caught:
        chosen(**node)
    assert caught.value.evidence == "interfaces here: eth0 10.0.2.15; eth1 192.168.50.11 10.9.0.1"


def test_on_link_is_what_no_gateway_stands_before():
    assert [str(n) for n in on_link(machine().observe(), "eth1")] == [
        "10.9.0.0/16",
        "192.168.50.0/25",
        "192.168.50.192/26",
    ]


def test_traces_of_flannel_are_devices_that_are_not_ours():
    fake = FakeKernel()
    for name in ("flannel.1", "flannel.x", "flannel.3"):
        fake.add_device(name, type="vxlan")
    fake.add_device("flannel.2", type="dummy")
    fake.links["flannel.3"] = fake.links["flannel.3"]._replace(altnames=("overlaynet-vxlan-3",))
    assert traces(fake.observe(), ()).vtep_macs == {fake.links["flannel.1"].mac}


# --- services -------------------------------------------------------------------------------------


def service_options(**section: Any):
    config = parse({"node": {"name": "node-1", "interface": "eth1"}, "service": section}, "test")
    return local_host(config, Identity("id", vtep_mac(1)), machine().observe()).services


@pytest.mark.parametrize(
    ("addresses", "open_on"),
    [
        pytest.param(["primary"], "192.168.50.11", id="primary-is-the-public-address"),
        pytest.param(["all"], None, id="all"),
        pytest.param(["10.0.0.0/8"], "10.0.2.15 10.9.0.1", id="what-is-on-interfaces-here"),
        pytest.param(["172.16.0.0/12"], "", id="none-here"),
        pytest.param(["0.0.0.0/0"], "10.0.2.15 10.9.0.1 192.168.50.11", id="loopback-is-asked-for-apart"),
    ],
)
def test_addresses_that_node_ports_are_open_on(addresses, open_on):
    ips = service_options(node_port_addresses=addresses).node_ips
    assert (None if ips is None else " ".join(map(str, ips))) == open_on


def test_node_ports_behind_a_nat_are_open_on_the_interfaces_address():
    config = parse({"node": {"name": "node-1", "interface": "eth1", "public_ip": "203.0.113.5"}}, "test")
    options = local_host(config, Identity("id", vtep_mac(1)), machine().observe()).services
    assert [str(ip) for ip in options.node_ips] == ["192.168.50.11"]


def test_services_are_served_as_the_settings_say_or_left_to_another_program():
    options = service_options(local_detect="bridge", masquerade_all=True, localhost_node_ports=True)
    assert (options.local_detect, options.masquerade_all, options.localhost_node_ports) == (
        "bridge",
        True,
        True,
    )
    assert service_options(mode="off") is None
