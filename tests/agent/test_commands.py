"""`once`, `plan` and `clean`, on fakes; and the command line around them."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest
from helpers.agent import configured
from helpers.cluster import put_network
from helpers.flows import flow
from helpers.model import (
    KEYS,
    add_veth,
    flannel_lease,
    kernel,
    lease,
    local,
    network,
    stored,
    subnet,
    vtep_mac,
    workload,
)

from overlaynet.config import AgentConfig
from overlaynet.core import plan
from overlaynet.core.diff import changes
from overlaynet.core.handing import as_flannels
from overlaynet.core.view import View
from overlaynet.errors import (
    EnvironmentProblem,
    FlannelRunning,
    KernelError,
    NetworkNotConfigured,
    NotReady,
    PoolExhausted,
    StoreUnavailable,
)
from overlaynet.model import Claim, NodeRecord
from overlaynet.ports import Delete, Put
from overlaynet.reconcile import ServiceDoors
from overlaynet.state import Kind, Link, Object, Route, Sysctl
from overlaynet.store import codec, disk
from overlaynet.store.memory import MemoryStore
from overlaynet.testing.fake_firewall import FakeFirewall
from overlaynet.testing.fake_kernel import FakeKernel
from overlaynet.testing.fake_services import FakeConntrack, FakeSets
from overlaynet_agent import __main__, commands, files, flanneld, handover, wire

pytestmark = pytest.mark.fake


class Box:
    """One host: what the commands would find there instead of real adapters."""

    def __init__(self, config: AgentConfig, patch: pytest.MonkeyPatch) -> None:
        self.config = config
        self.store, self.kernel, self.rules = MemoryStore(), kernel(1), FakeFirewall()
        self.sets, self.flows = FakeSets(), FakeConntrack()
        put_network(self.store, network(count=199))
        self.store.close = lambda: None  # type: ignore[method-assign]
        patch.setattr(wire, "require_capabilities", lambda: None)
        patch.setattr(wire, "store", lambda config: self.store)
        doors = ServiceDoors(self.sets, self.flows)
        patch.setattr(wire, "service_doors", lambda config: contextlib.nullcontext(doors))
        patch.setattr(wire, "firewall", lambda config, doors: self.rules)
        patch.setattr(commands, "KernelAdapter", self)

    def open(self, instance: str) -> FakeKernel:
        return self.kernel

    @property
    def writes(self) -> int:
        return self.kernel.writes.total() + self.rules.restores.total()


@pytest.fixture
def box(tmp_path, monkeypatch) -> Box:
    return Box(configured(tmp_path), monkeypatch)


def put_peer(box: Box, number: int) -> None:
    box.store.commit([], [Put(KEYS.lease(lease(number).subnets), codec.encode_lease(lease(number)))])


# --- once -----------------------------------------------------------------------------------------


def test_once_claims_a_subnet_and_makes_the_host_right(box):
    put_peer(box, 250)
    document = commands.once(box.config)
    assert document["failures"] == []
    assert "flannel.1" in box.kernel.links
    assert any(str(route.dst) == "10.244.250.0/24" for route in box.kernel.routes.values())
    claimed = disk.read_identity(box.config.paths.identity)
    assert claimed
    assert KEYS.lease(claimed.subnets) in [item.key for item in box.store.read([KEYS.subnets]).items]


def test_once_more_does_nothing(box):
    commands.once(box.config)
    writes, revision = box.writes, box.store.read([]).revision
    document = commands.once(box.config)
    assert (document["count"], document["failures"]) == (0, [])
    assert (box.writes, box.store.read([]).revision) == (writes, revision)


def test_once_tries_another_subnet_when_it_was_too_late(box, monkeypatch):
    commit, rivals = box.store.commit, [lease(9)]

    def late(compares, writes):
        if rivals and writes and writes[0].key.startswith(KEYS.subnets):
            rival = rivals.pop()
            commit([], [Put(writes[0].key, codec.encode_lease(rival))])
        return commit(compares, writes)

    monkeypatch.setattr(box.store, "commit", late)
    commands.once(box.config)
    assert len(box.store.read([KEYS.subnets]).items) == 2


def test_once_keeps_containers_that_were_wired(box):
    commands.once(box.config)
    subnet = disk.read_identity(box.config.paths.identity).subnets[0]
    one = workload(1, 2, ips=(subnet.network_address + 2,))
    add_veth(box.kernel, one)
    disk.write_workloads(box.config.paths.workloads, [one])
    commands.once(box.config)
    assert box.kernel.links[one.device].master == "cni0"


def test_once_reports_what_failed(box):
    box.kernel.fail_next(Kind.LINK, errno.EPERM)
    document = commands.once(box.config)
    assert document["failures"][0]["error"]["code"] == "OVL-500"


def test_full_pool_is_an_error(box):
    put_network(box.store, network(count=1))
    put_peer(box, 1)
    with pytest.raises(PoolExhausted):
        commands.once(box.config)


@pytest.mark.parametrize(
    "command", [pytest.param(c, id=c.__name__) for c in (commands.once, commands.show_plan)]
)
def test_without_a_network_config_nothing_is_touched(box, command):
    box.store.commit([], [Delete(KEYS.network_config)])
    with pytest.raises(NetworkNotConfigured):
        command(box.config)
    assert box.writes == 0


@pytest.mark.parametrize(
    "command", [pytest.param(commands.once, id="once"), pytest.param(commands.clean, id="clean")]
)
def test_running_agent_is_not_disturbed(box, command):
    with files.only_one(box.config.paths.pid_file), pytest.raises(EnvironmentProblem, match="already"):
        command(box.config)
    assert box.writes == 0


# --- plan -----------------------------------------------------------------------------------------


def test_plan_without_a_lease_wants_nothing_and_writes_nothing(box):
    revision = box.store.read([]).revision
    document = commands.show_plan(box.config)
    assert (document["count"], document["lease"]) == (0, None)
    assert (box.writes, box.store.read([]).revision) == (0, revision)
    assert not box.config.paths.identity.exists()


def test_plan_of_a_host_whose_lease_is_lost_does_not_ask_to_remove_everything(box):
    commands.once(box.config)
    (held,) = box.store.read([KEYS.subnets]).items
    box.store.commit([], [Delete(held.key)])
    assert commands.show_plan(box.config)["count"] == 0


def test_plan_shows_what_once_would_do_beside_a_running_agent(box):
    commands.once(box.config)
    put_peer(box, 250)
    writes = box.writes
    with files.only_one(box.config.paths.pid_file):
        document = commands.show_plan(box.config)
    assert [change["object"] for change in document["changes"]] == ["neigh", "fdb", "route"]
    assert {change["op"] for change in document["changes"]} == {"missing"}
    assert {change["source"]["name"] for change in document["changes"]} == {"10.244.250.0-24"}
    assert box.writes == writes
    assert commands.once(box.config)["count"] == 3


# --- clean ----------------------------------------------------------------------------------------


def test_clean_removes_ours_and_nothing_else(box):
    before = box.kernel.observe()
    foreign = box.rules.observe().chains
    commands.once(box.config)
    add_veth(box.kernel, workload(1, 2))
    disk.write_if_different(box.config.paths.subnet_file, "x", 0o644)
    document = commands.clean(box.config)
    after = box.kernel.observe()
    assert document["failures"] == []
    assert (after.links.keys(), after.routes, after.addresses) == (
        before.links.keys(), before.routes, before.addresses
    )  # fmt: skip
    assert box.rules.observe().chains == foreign
    assert not box.config.paths.subnet_file.exists()
    assert disk.read_identity(box.config.paths.identity)
    assert box.store.read([KEYS.subnets]).items
    assert commands.clean(box.config)["count"] == 0


def test_clean_removes_sets_that_rules_let_go_of_late(box, monkeypatch):
    box.sets.sets = {"OVL-SEP-A": 10, "OVL-SEP-B": 10, "KUBE-A": 10}
    box.sets.used = {"OVL-SEP-B"}
    monkeypatch.setattr(commands.time, "sleep", lambda seconds: box.sets.used.clear())
    assert commands.clean(box.config)["failures"] == []
    assert box.sets.sets == {"KUBE-A": 10}


def test_clean_says_which_sets_stay(box, monkeypatch):
    box.sets.sets, box.sets.used = {"OVL-SEP-A": 10}, {"OVL-SEP-A"}
    monkeypatch.setattr(commands.time, "sleep", lambda seconds: None)
    (failure,) = commands.clean(box.config)["failures"]
    assert failure["error"]["code"] == "OVL-601"


def test_once_forgets_connections_that_lead_nowhere_and_says_which_it_could_not(box):
    dead = flow("udp", "10.244.1.7:4000", "10.112.0.10:53", "10.244.2.2:53")
    box.flows.table = [dead, dead._replace(dst=ip_address("8.8.8.8"))]
    box.flows.fail(KernelError("a deletion", errno.EBUSY))
    (failure,) = commands.once(box.config)["failures"]
    assert failure["error"]["code"] == "OVL-500"
    assert commands.once(box.config)["failures"] == []
    assert box.flows.deleted == [dead]


# --- flannel --------------------------------------------------------------------------------------


@pytest.fixture
def flannels(box) -> Box:
    """A host that flannel made: its device, its lease, entries for one peer, its subnet.env."""
    theirs = flannel_lease(1, subnets=(subnet(7),))
    box.store.commit([], [Put(KEYS.lease(theirs.subnets), codec.encode_lease(theirs))])
    put_peer(box, 250)
    view = View.of([stored(network(count=199)), stored(theirs), stored(lease(250))], KEYS)
    want = plan.desired(view, local(1), theirs, ()).objects.values()
    made = [as_flannel_has_it(obj) for obj in want if not isinstance(obj, Sysctl)]
    assert not box.kernel.apply(changes({obj.key: obj for obj in made}, {}))
    box.kernel.writes.clear()
    return box


def as_flannel_has_it(obj: Object) -> Object:
    match obj:
        case Link():
            return obj._replace(tag="")
        case Route():
            return as_flannels(obj)
    return obj


FLANNEL_RULES = """*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
COMMIT
"""


def held(box: Box) -> dict[str, Any]:
    """Our host's lease, as it is in etcd."""
    items = {item.key: json.loads(item.value) for item in box.store.read([KEYS.subnets]).items}
    value: dict[str, Any] = items[KEYS.lease((subnet(7),))]
    return value


def test_plan_beside_flannel_changes_nothing_and_says_what_taking_over_adds(flannels):
    revision = flannels.store.read([]).revision
    document = commands.show_plan(flannels.config)
    assert (document["count"], document["changes"], document["lease"]) == (0, [], ["10.244.7.0/24"])
    added = {change["object"] for change in document["taking_over_adds"]}
    assert {"link", "sysctl"} < added, "and chains"
    assert (flannels.writes, flannels.store.read([]).revision) == (0, revision)


def test_nothing_is_done_beside_a_running_flanneld(flannels, monkeypatch):
    monkeypatch.setattr(flanneld, "running", lambda: [4711])
    for command in (commands.once, lambda config: commands.run(config, lambda: config)):
        with pytest.raises(FlannelRunning, match="flanneld is running") as caught:
            command(flannels.config)
        assert "4711" in caught.value.evidence
    assert commands.show_plan(flannels.config)["flanneld"] == [4711]
    assert flannels.writes == 0


def test_once_takes_over_what_flannel_made_with_its_mac_and_its_routes(flannels):
    routes = dict(flannels.kernel.routes)
    document = commands.once(flannels.config)
    assert document["failures"] == []
    assert flannels.kernel.routes == routes
    assert flannels.kernel.links["flannel.1"].tag == "overlaynet-vxlan-1"
    identity = disk.read_identity(flannels.config.paths.identity)
    assert identity
    assert (identity.vtep_mac, identity.subnets) == (vtep_mac(1), (subnet(7),))
    assert held(flannels)["NodeID"] == identity.node_id


def test_host_handed_over_is_as_flannel_had_it(flannels):
    before = flannels.kernel.observe()
    commands.once(flannels.config)
    document = handover.hand_over(flannels.config)
    after = flannels.kernel.observe()
    assert (document["failures"], after.routes, after.links) == ([], before.routes, before.links)
    assert "NodeID" not in held(flannels)
    assert document["next"] == [handover.START, handover.AGAIN]
    assert ("filter", "OVL-FORWARD") in flannels.rules.observe().chains
    assert commands.show_plan(flannels.config)["count"] == 0


def test_our_chains_go_once_flannels_are_there(flannels):
    commands.once(flannels.config)
    flannels.rules.restore(FLANNEL_RULES)
    document = handover.hand_over(flannels.config)
    assert document["next"] == [handover.START]
    assert not any(chain.startswith("OVL-") for _, chain in flannels.rules.observe().chains)
    again = handover.hand_over(flannels.config)
    assert (again["count"], again["failures"]) == (0, [])


def test_handing_over_withdraws_what_the_node_said_of_itself(flannels):
    commands.once(flannels.config)
    identity = disk.read_identity(flannels.config.paths.identity)
    assert identity
    ours = NodeRecord("node-1", identity.node_id, (), "eth0")
    other = NodeRecord("node-2", "id-2", (), "eth0")
    claim = Claim("address", "192.168.50.1", identity.node_id, "node-1")
    flannels.store.commit([], [
        Put(KEYS.node("node-1"), codec.encode_node(ours)), Put(KEYS.node("node-2"), codec.encode_node(other)),
        Put(KEYS.address("192.168.50.1"), codec.encode_claim(claim)),
        Put(KEYS.workload("node-1", "default/web-2"), codec.encode_workload(workload(1))),
        Put(KEYS.workload("node-2", "default/web-2"), codec.encode_workload(workload(2))),
    ])  # fmt: skip
    handover.hand_over(flannels.config)
    left = [item.key for item in flannels.store.read(["/overlaynet/"]).items]
    assert left == [KEYS.node("node-2"), KEYS.workload("node-2", "default/web-2")]


def test_host_without_a_lease_has_nothing_to_hand_over(box):
    with pytest.raises(NotReady, match="no lease"):
        handover.hand_over(box.config)
    assert box.writes == 0


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def command(box, tmp_path) -> Callable[..., int]:
    file, paths = tmp_path / "agent.toml", box.config.paths
    file.write_text(
        f'[node]\nname = "node-1"\ninterface = "eth0"\n'
        f'[paths]\nrun = "{paths.run}"\nstate = "{paths.state}"\nsubnet_file = "{paths.subnet_file}"\n'
    )
    return lambda *words: __main__.main([*words, "--config", str(file)])


def test_exit_codes_tell_what_came_out(box, command, capsys):
    assert command("once") == 0
    assert capsys.readouterr().out.endswith("changes\n")
    assert command("plan") == 0
    put_peer(box, 250)
    assert command("plan") == 1
    assert "missing  route 10.244.250.0/24 via 10.244.250.0" in capsys.readouterr().out
    box.kernel.fail_next(Kind.ROUTE, errno.ENOBUFS)
    assert command("once") == 1
    assert "failed   put route" in capsys.readouterr().out
    assert command("once", "--interface", "eth9") == 3
    assert command("once", "--node-name", "NO") == 2
    box.store.fail_next(StoreUnavailable("etcd is away", next=["look"]))
    assert command("plan") == 3
    assert "error OVL-301: etcd is away\n  try       look\n" in capsys.readouterr().err


def test_documents_are_json_if_asked(box, command, capsys):
    assert command("once", "-o", "json") == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["kind"], done["schema"]) == ("Once", "overlaynet/v1")
    box.store.fail_next(StoreUnavailable("away"))
    assert command("plan", "-o", "json") == 3
    failed = json.loads(capsys.readouterr().out)
    assert (failed["kind"], failed["error"]["code"]) == ("Error", "OVL-301")
