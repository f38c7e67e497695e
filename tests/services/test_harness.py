"""The net without any service: everybody reaches everybody, so what changes with rules is their doing."""

from __future__ import annotations

import pytest
from helpers.answering import SILENT, Answer
from helpers.privilege import requires_netns
from helpers.service_net import ADDRESS, VIP, ServiceNet

pytestmark = [pytest.mark.kernel, requires_netns]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_every_place_reaches_every_server_and_keeps_its_address(net: ServiceNet, protocol: str) -> None:
    for client in ADDRESS:
        for server in ADDRESS:
            if server != "X" and {client, server} not in ({"X", "A"}, {"A", "B"}):
                said = net.ask(client, ADDRESS[server], 8080, protocol)
                assert isinstance(said, Answer), (client, server, said)
                assert (said.name, said.port) == (server, 8080)


def test_virtual_ip_without_rules_leads_to_nowhere(net: ServiceNet) -> None:
    assert net.ask("a2", VIP, 80, silent=True) == SILENT


def test_clients_of_any_number_are_seen_as_what_they_are(net: ServiceNet) -> None:
    said = net.ask("X", ADDRESS["A"], 8080, source="10.77.3.4")
    assert isinstance(said, Answer), said
    assert said.peer == "10.77.3.4"
