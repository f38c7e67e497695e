"""How much is served, in numbers."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from overlaynet.core.servicecounts import ServiceCounts, counts
from overlaynet.state import Endpoint, ForwardAccept, Policy, ServicePortPolicy

pytestmark = pytest.mark.unit

ONE, TWO = Endpoint(ip_address("10.244.1.2"), 80), Endpoint(ip_address("10.244.2.2"), 80)
PORT = ServicePortPolicy("default/web", "http", "tcp", 80, cluster=(ONE, TWO), usable=True)


def test_a_host_without_services_serves_none():
    policies: dict[str, Policy] = {"forward": ForwardAccept((ip_network("10.244.0.0/16"),))}
    assert counts(policies) == ServiceCounts()


def test_ports_of_one_service_are_one_service():
    two = {"a": PORT, "b": replace(PORT, port_name="https"), "c": replace(PORT, service="default/other")}
    assert counts(two)[:3] == (2, 3, 6)


def test_an_endpoint_chosen_by_both_policies_is_one():
    assert counts({"a": replace(PORT, local=(ONE,))}).endpoints == 2


@pytest.mark.parametrize(
    ("port", "internal", "external"),
    [
        (replace(PORT, internal_local=True), 1, 0),
        (replace(PORT, external_local=True), 0, 1),
        (replace(PORT, internal_local=True, external_local=True, local=(ONE,)), 0, 0),
        (replace(PORT, internal_local=True, cluster=(), usable=False), 0, 0),
    ],
)
def test_ports_whose_policy_local_finds_nobody_here(port, internal, external):
    found = counts({"a": port})
    assert (found.internal_without_local, found.external_without_local) == (internal, external)
