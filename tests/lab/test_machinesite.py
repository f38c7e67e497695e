"""On a machine nothing is broken by which ssh comes in: judged on machines in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network
from typing import Any

import pytest

from overlaynet.addr import Mac
from overlaynet.config import AgentConfig, EtcdConfig
from overlaynet.core.jsonstate import kernel_to_json
from overlaynet.errors import EnvironmentProblem, UsageError
from overlaynet.lab.faultkinds import Request, plan
from overlaynet.lab.faultrecords import Damage
from overlaynet.lab.machinesite import MachineSite
from overlaynet.lab.state import LabState
from overlaynet.lab.topology import Topology
from overlaynet.model import Identity
from overlaynet.state import Change, Link, Op, Route
from overlaynet.testing.fake_kernel import FakeKernel

pytestmark = pytest.mark.fake

BESIDE = {"client": "10.0.2.2", "address": "10.0.2.15"}
"""ssh by a card of its own, as Vagrant's NAT card."""
ALONG = {"client": "192.168.56.1", "address": "192.168.56.11"}
"""ssh by the underlay's card."""
BY_NONE = {"client": None, "address": None}


@dataclass
class FakeMachines:
    """`SshDriver` and `machinesite.Known` of two machines: eth0 for ssh, eth1 for the underlay."""

    caller: Mapping[str, Any] = field(default_factory=lambda: BESIDE)
    knows_caller: bool = True
    endpoint: str = "http://192.168.56.11:2379"

    def __post_init__(self) -> None:
        self.kernel = FakeKernel()
        self.kernel.add_device("eth0", addresses=(ip_interface("10.0.2.15/24"),))
        self.kernel.add_device("eth1", addresses=(ip_interface("192.168.56.11/24"),))
        routes = [
            Route(ip_network("0.0.0.0/0"), "eth0", ip_address("10.0.2.2"), protocol=16),
            Route(ip_network("172.20.0.0/16"), "eth1", ip_address("192.168.56.1"), protocol=4),
        ]
        made = [Link("cni0", "bridge", "overlaynet-bridge", 1450), *routes]
        self.kernel.tamper(*(Change(Op.PUT, obj) for obj in made))

    # --- the driver ---

    def netns(self, place: str) -> str | None:
        return f"ovl-fake-{place}" if place.startswith("web-") else None

    def probe(self, host: str, job: Mapping[str, Any], timeout_s: float = 30.0) -> dict[str, Any]:
        match job["op"]:
            case "observe":
                return {"kernel": kernel_to_json(self.kernel.observe(job.get("sysctls", ())))}
            case "caller":
                return {"known": self.knows_caller, **self.caller}
        raise AssertionError(job)

    # --- what is known ---

    def underlay_ip(self, host: str) -> IPv4Address:
        return {"node-1": IPv4Address("192.168.56.11"), "node-2": IPv4Address("192.168.56.12")}[host]

    def config(self, host: str) -> AgentConfig:
        return AgentConfig(etcd=EtcdConfig(endpoints=(self.endpoint,)))

    def identity(self, host: str) -> Identity:
        return Identity("id", Mac.parse("02:00:00:00:00:01"), (ip_network("10.244.1.0/24"),))

    def workloads(self, host: str) -> Sequence[Any]:
        return ()


def site(machines: FakeMachines) -> MachineSite:
    return MachineSite(
        LabState(Topology.simple("fake", hosts=2, containers=1), "", driver="ssh"), machines, machines
    )


def damage(machines: FakeMachines, *words: str, **more: Any) -> Damage:
    kind, *target = words
    found = plan(site(machines), kind, Request(tuple(target), **more))
    site(machines).allow(found)
    return found


def refused(machines: FakeMachines, *words: str, **more: Any) -> str:
    with pytest.raises(UsageError) as raised:
        damage(machines, *words, **more)
    return raised.value.message


@pytest.mark.parametrize("caller", [BESIDE, BY_NONE])
def test_underlay_is_cut_where_ssh_comes_in_elsewhere(caller: Mapping[str, Any]) -> None:
    (link,) = damage(FakeMachines(caller), "link", "node-1").links
    assert (link.place, link.device) == ("node-1", "eth1")


@pytest.mark.parametrize("words", [("link", "node-1"), ("mtu", "node-1", "1000")])
def test_underlay_that_ssh_comes_in_by_is_left_alone(words: tuple[str, ...]) -> None:
    assert "may be what ssh needs" in refused(FakeMachines(ALONG), *words)


@pytest.mark.parametrize("device", ["eth0", "lo"])
def test_no_device_but_the_overlays_is_broken(device: str) -> None:
    assert device in refused(FakeMachines(), "link", f"node-1:{device}")


def test_bridge_of_the_overlay_is_broken_whichever_way_ssh_comes() -> None:
    for caller in (BESIDE, ALONG, BY_NONE):
        (link,) = damage(FakeMachines(caller), "link", "node-1:cni0").links
        assert link.device == "cni0"


def test_route_to_where_ssh_comes_from_is_left_alone() -> None:
    assert "eth0" in refused(FakeMachines(), "route", "node-1", "default")
    far = {"client": "172.20.0.9", "address": "10.0.2.15"}
    assert "172.20.0.9" in refused(FakeMachines(far), "route", "node-1", "172.20.0.0/16")
    assert damage(FakeMachines(), "route", "node-1", "172.20.0.0/16").entries


def test_link_whose_routes_lead_to_where_ssh_comes_from_is_left_alone() -> None:
    far = {"client": "172.20.0.9", "address": "10.0.2.15"}
    assert "172.20.0.9" in refused(FakeMachines(far), "link", "node-1")


def test_nothing_is_cut_where_it_is_not_known_how_ssh_comes() -> None:
    with pytest.raises(EnvironmentProblem, match="not known"):
        damage(FakeMachines(knows_caller=False), "link", "node-1")


def test_partition_is_made_on_one_side_and_both_ways() -> None:
    found = damage(FakeMachines(), "partition", "node-1", "node-2")
    comment = '-m comment --comment "fault f1 of lab fake" -j DROP'
    assert {(e.place, e.change.chain): e.change.want for e in found.edits} == {
        ("node-1", "OUTPUT"): (f"-d 192.168.56.12/32 {comment}",),
        ("node-1", "INPUT"): (f"-s 192.168.56.12/32 {comment}",),
    }


def test_partition_never_shuts_out_who_heals_it() -> None:
    operator = FakeMachines({"client": "192.168.56.12", "address": "192.168.56.11"})
    assert "would be healed" in refused(operator, "partition", "node-1", "node-2")


def test_etcd_is_cut_off_by_its_port() -> None:
    found = damage(FakeMachines(ALONG), "partition", "etcd", "node-2")
    texts = [text for edit in found.edits for text in edit.change.want or ()]
    assert {edit.place for edit in found.edits} == {"node-2"}
    assert texts[0].startswith("-d 192.168.56.11/32 -p tcp -m tcp --dport 2379 ")
    assert texts[1].startswith("-s 192.168.56.11/32 -p tcp -m tcp --sport 2379 ")


def test_etcd_by_name_cannot_be_cut_off() -> None:
    named = FakeMachines(endpoint="https://etcd.example:2379")
    assert "etcd.example" in refused(named, "partition", "node-1", "etcd")


def test_nobody_is_an_address_of_the_underlay_that_no_host_has() -> None:
    assert site(FakeMachines()).nobody() == IPv4Address("192.168.56.254")
