"""Who is reached without a gateway is decided by routes of others, and is not the same for ever."""

from __future__ import annotations

import pytest
from helpers.eventually import eventually
from helpers.privilege import requires_netns
from helpers.real_agent import RealAgent, real_agent

pytestmark = [pytest.mark.kernel, requires_netns]

NEVER_S = 3_600
ON_THE_WIRE = "10.244.2.0/24 via 192.168.50.2 dev eth0"
BY_THE_TUNNEL = "10.244.2.0/24 via 10.244.2.0 dev flannel.1"


def way_to_2(agent: RealAgent) -> str:
    lines = agent.host.netns.run("ip route show 10.244.2.0/24 proto 111").splitlines()
    return " ".join(line.split(" metric ")[0] for line in lines).strip()


def test_peer_that_is_moved_behind_a_gateway_is_reached_by_the_tunnel_until_it_is_back(tmp_path):
    """At once, and not when everything is looked at for the next time."""
    with real_agent(tmp_path, resync_s=NEVER_S, direct_routing=True) as agent:
        assert way_to_2(agent) == ON_THE_WIRE
        agent.host.netns.run("ip route add 192.168.50.2/32 via 192.168.50.9 dev eth0")
        eventually(lambda: way_to_2(agent) == BY_THE_TUNNEL)
        agent.host.netns.run("ip route del 192.168.50.2/32")
        eventually(lambda: way_to_2(agent) == ON_THE_WIRE)
