"""Files of the agent that nobody else makes."""

from __future__ import annotations

import json
import os
from ipaddress import ip_address, ip_network

import pytest
from helpers.model import network

from overlaynet.errors import EnvironmentProblem
from overlaynet.model import Pool
from overlaynet_agent import files

pytestmark = pytest.mark.unit


def test_new_identities_differ_and_can_be_a_devices():
    one, other = files.new_identity(), files.new_identity()
    assert one.node_id != other.node_id
    assert one.vtep_mac != other.vtep_mac
    assert one.vtep_mac.unicast


V6 = Pool(ip_network("fd00::/48"), 64, ip_address("fd00:0:0:1::"), ip_address("fd00:0:0:ffff::"))


@pytest.mark.parametrize(
    ("dual", "masquerade", "expected"),
    [
        pytest.param(
            False,
            True,
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
            id="ipv4",
        ),
        pytest.param(
            True,
            False,
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\n"
            "FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:7::1/64\n"
            "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
            id="dual-stack",
        ),
    ],
)
def test_subnet_env_is_flannels_text(dual, masquerade, expected):
    net = network()
    subnets = (ip_network("10.244.7.0/24"),)
    if dual:
        net = type(net)((*net.pools, V6), net.backend)
        subnets += (ip_network("fd00:0:0:7::/64"),)
    assert files.subnet_env(net, subnets, 1450, masquerade=masquerade) == expected


def test_second_agent_is_refused_and_told_who_is_first(tmp_path):
    path = tmp_path / "run" / "agent.pid"
    with files.only_one(path):
        assert json.loads(path.read_text()) == os.getpid()
        with pytest.raises(EnvironmentProblem) as caught, files.only_one(path):
            pass
    assert caught.value.evidence == f"process {os.getpid()} holds {path}"
    with files.only_one(path):
        assert path.read_text()
    assert path.read_text() == ""
