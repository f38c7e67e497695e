"""Connections of a service, counted by where they lead to."""

from __future__ import annotations

import pytest
from helpers.flows import flow

from overlaynet.probe.connections import At, Frontend, count

pytestmark = pytest.mark.unit

VIP, ONE, TWO = "10.112.0.9:80", "10.244.1.2:8080", "10.244.2.2:8080"
FRONTENDS = {Frontend("tcp", "10.112.0.9", 80), Frontend("tcp", None, 30080)}


def test_connections_are_counted_by_endpoint() -> None:
    flows = [
        flow("tcp", "10.244.3.2:4000", VIP, ONE),
        flow("tcp", "10.244.3.2:4001", VIP, ONE),
        flow("tcp", "203.0.113.10:4000", "192.168.50.11:30080", TWO),
    ]
    assert count(flows, FRONTENDS) == {At("tcp", "10.244.1.2", 8080): 2, At("tcp", "10.244.2.2", 8080): 1}


def test_what_was_not_led_on_or_is_another_services_is_not_counted() -> None:
    flows = [
        flow("tcp", "10.244.3.2:4000", VIP),
        flow("tcp", "10.244.3.2:4001", VIP, ONE, state="TIME_WAIT"),
        flow("udp", "10.244.3.2:4000", VIP, ONE),
        flow("tcp", "10.244.3.2:4000", "10.112.0.10:80", ONE),
        flow("tcp", "10.244.3.2:4000", "192.168.50.11:30081", ONE),
    ]
    assert not count(flows, FRONTENDS)
