"""What a lab on machines takes, and what it is refused for."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from overlaynet import __version__
from overlaynet.addr import Mac
from overlaynet.config import AgentConfig
from overlaynet.core.keys import Keys
from overlaynet.errors import (
    AgentUnreachable,
    Conflict,
    LabFailed,
    OverlayError,
    ToolMissing,
    TopologyError,
    WorkloadExists,
)
from overlaynet.lab.cluster_store import check_services, joining
from overlaynet.lab.converge import Key, Kind
from overlaynet.lab.machineplan import (
    Machine,
    check_containers,
    check_inventory,
    check_machines,
    plans,
    wanted,
)
from overlaynet.lab.topology import LabNetwork, Topology, parse
from overlaynet.model import Settings, Workload
from overlaynet.ports import KeyValue, Listing
from overlaynet.store.codec import encode_network_config, encode_settings

pytestmark = pytest.mark.unit

TOPOLOGY = parse(
    """
apiVersion: overlaynet/v1
kind: Lab
name: roam
hosts: [{name: node-1}, {name: node-2, zone: b}]
containers:
  - {name: web-1, host: node-1, command: [serve, it], probe: {exec: {command: [ls]}}}
  - {name: web-2, host: node-2}
""",
    "roam.yaml",
)
ME = "kim@desk"
MAC = Mac.parse("0a:58:0a:f4:01:02")


def machine(host: str = "node-1", **different: Any) -> Machine:
    node = {"name": host, "node_id": f"id-of-{host}"}
    status = {"node": node, "agent": {"version": __version__}, "containers": []}
    here: dict[str, Any] = {
        "owner": None,
        "containers": [],
        "lost": [],
        "processes": {},
        "strangers": [],
        "missing": [],
    }
    config = AgentConfig()
    config = replace(config, node=replace(config.node, zone="b" if host == "node-2" else None))
    return replace(Machine(host, __version__, config, status, here), **different)


def here(**members: Any) -> dict[str, Any]:
    return {**machine().here, **members}


def status(**node: str) -> dict[str, Any]:
    told = machine().status
    assert not isinstance(told, OverlayError)
    return {**told, "node": {**told["node"], **node}}


# --- steps ----------------------------------------------------------------------------------------


def test_nothing_is_done_where_everything_is() -> None:
    specs = {key.name: {"spec": spec} for key, spec in wanted(TOPOLOGY, "node-1").items()}
    processes = {name: item for name, item in specs.items() if "/" in name}
    assert set(processes) == {"command/web-1", "helper/web-1"}
    one = machine(here=here(containers=["web-1"], processes=processes))
    two = machine("node-2", here=here(containers=["web-2"]))
    assert [plan.changes for plan in plans(TOPOLOGY, [one, two]).values()] == [0, 0]


def test_process_of_another_command_is_started_anew() -> None:
    processes = {"command/web-1": {"spec": "of-another"}, "helper/web-1": {"spec": "of-another"}}
    found = plans(TOPOLOGY, [machine(here=here(containers=["web-1"], processes=processes))])["node-1"]
    assert found.removes(Kind.PROCESS) == ("helper/web-1", "command/web-1")
    assert found.makes(Kind.PROCESS) == ("command/web-1", "helper/web-1")
    assert not found.makes(Kind.NETNS)


def test_container_that_moved_goes_on_one_machine_and_comes_on_the_other() -> None:
    found = plans(TOPOLOGY, [machine(here=here(containers=["web-1", "web-2"])), machine("node-2")])
    assert found["node-1"].removes(Kind.NETNS) == ("web-2",)
    assert found["node-2"].make == (Key(Kind.NETNS, "web-2"),)


def test_machine_that_is_no_host_any_more_loses_all_it_has() -> None:
    found = plans(TOPOLOGY, [machine("node-9", here=here(containers=["web-7"]))])["node-9"]
    assert (found.removes(Kind.NETNS), found.make) == (("web-7",), ())


# --- refusals -------------------------------------------------------------------------------------


def test_machines_as_they_should_be_are_not_refused() -> None:
    check_inventory(TOPOLOGY, ["node-1", "node-2", "node-3"], "FILE")
    check_machines(
        TOPOLOGY, [machine(), machine("node-2"), machine("node-9", status=AgentUnreachable("dead"))], ME
    )


def test_hosts_must_be_in_the_inventory() -> None:
    with pytest.raises(TopologyError, match="node-2"):
        check_inventory(TOPOLOGY, ["node-1"], "FILE")


def test_topology_may_not_set_agents() -> None:
    told = replace(TOPOLOGY.hosts[0], agent={"log": {"level": "debug"}})
    with pytest.raises(TopologyError, match="node-1"):
        check_inventory(replace(TOPOLOGY, hosts=(told,)), ["node-1"], "FILE")


REFUSED = {
    "dead": (machine(status=AgentUnreachable("nobody")), AgentUnreachable, "systemctl start"),
    "named otherwise": (machine(status=status(name="debian")), TopologyError, "Host debian"),
    "older probe": (machine(version="0.0.1"), LabFailed, "sudo OUT/install"),
    "older agent": (
        machine(status={**status(), "agent": {"version": "0.0.1"}}),
        LabFailed,
        "sudo OUT/install",
    ),
    "no program": (
        machine(here=here(missing=[{"program": "serve", "evidence": ""}])),
        ToolMissing,
        "install it",
    ),
    "namespace": (machine(here=here(strangers=["web-1"])), LabFailed, "ip netns delete ovl-roam-web-1"),
    "of another": (
        machine(here=here(owner="lee@lap", containers=["web-1"])),
        LabFailed,
        "overlaynet up -l ANOTHER_NAME",
    ),
    "other zone": (machine("node-2", config=AgentConfig()), TopologyError, "agent.toml"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_machine_is_refused_with_what_to_type(case: str) -> None:
    found, kind, step = REFUSED[case]
    with pytest.raises(kind) as raised:
        check_machines(TOPOLOGY, [found], ME)
    assert found.host in raised.value.message
    assert any(step in words for words in raised.value.next), raised.value.next


def test_clone_is_named_with_its_original() -> None:
    clone = machine("node-2", status=status(name="node-2", node_id="id-of-node-1"))
    with pytest.raises(Conflict, match="node-1 and node-2") as raised:
        check_machines(TOPOLOGY, [machine(), clone], ME)
    assert any("identity.json" in step for step in raised.value.next)


def workload(netns: str, node: str = "node-1") -> Workload:
    return Workload("web-1", "default", node, (ip_address("10.244.1.2"),), MAC, "veth1", netns)


def test_name_of_another_container_is_refused_wherever_it_is() -> None:
    check_containers(TOPOLOGY, [workload("ovl-roam-web-1", "node-2")])
    with pytest.raises(WorkloadExists, match="node-7"):
        check_containers(TOPOLOGY, [workload("ovl-other-web-1", "node-7")])


# --- etcd -----------------------------------------------------------------------------------------


def listing(**values: bytes) -> Listing:
    keys = {"network": Keys().network_config, "settings": Keys().settings}
    return Listing(1, 1, tuple(KeyValue(keys[name], value) for name, value in values.items()))


def test_network_and_settings_are_written_where_there_are_none() -> None:
    writes = joining(listing(), Keys(), TOPOLOGY)
    assert [put.key for _, put in writes] == [Keys().network_config, Keys().settings]


def test_those_that_are_there_stay() -> None:
    there = listing(
        network=encode_network_config(TOPOLOGY.network.config),
        settings=encode_settings(Settings(node_ttl_s=99)),
    )
    assert joining(there, Keys(), TOPOLOGY) == []


def test_another_network_and_other_settings_are_refused() -> None:
    other = replace(TOPOLOGY, network=replace(TOPOLOGY.network, subnet_len=26))
    with pytest.raises(TopologyError, match="another network"):
        joining(listing(network=encode_network_config(other.network.config)), Keys(), TOPOLOGY)
    asked = replace(TOPOLOGY, settings=Settings(node_ttl_s=20))
    with pytest.raises(TopologyError, match="lease times"):
        joining(listing(settings=encode_settings(Settings(node_ttl_s=99))), Keys(), asked)


def test_service_that_somebody_else_made_is_refused() -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"ports": [{"port": 80}]},
    }
    topology = replace(TOPOLOGY, services=(service,))
    there = Listing(1, 1, (KeyValue(Keys().service("default/web"), b"{}"),))
    check_services(listing(), Keys(), topology, None)
    check_services(there, Keys(), topology, topology)
    with pytest.raises(TopologyError, match="default/web"):
        check_services(there, Keys(), topology, TOPOLOGY)


@pytest.mark.parametrize("backend", [{"type": "vxlan", "vni": 7, "direct_routing": True}, {"type": "host-gw"}])
def test_network_is_the_same_there_and_back(backend: dict[str, Any]) -> None:
    network = replace(LabNetwork(), backend=backend)
    assert LabNetwork.of(network.config).config == network.config
    assert LabNetwork.of(LabNetwork.of(network.config).config) == LabNetwork.of(network.config)


def test_hosts_by_name_have_numbered_containers() -> None:
    found = Topology.of_hosts(["alpha", "beta"], "roam", 2)
    assert [(c.name, c.host) for c in found.containers] == [
        ("web-1", "alpha"),
        ("web-2", "alpha"),
        ("web-3", "beta"),
        ("web-4", "beta"),
    ]
