"""`once`, `plan` and `clean`, on fakes; and the command line around them."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable, Iterator

import pytest
from helpers.agent import configured
from helpers.cluster import put_network
from helpers.model import KEYS, add_veth, kernel, lease, network, workload

from overlaynet.config import AgentConfig
from overlaynet.errors import EnvironmentProblem, NetworkNotConfigured, PoolExhausted, StoreUnavailable
from overlaynet.ports import Delete, Put
from overlaynet.state import Kind
from overlaynet.store import codec, disk
from overlaynet.store.memory import MemoryStore
from overlaynet.testing.fake_firewall import FakeFirewall
from overlaynet.testing.fake_kernel import FakeKernel
from overlaynet_agent import __main__, commands, files, wire

pytestmark = pytest.mark.fake


class Box:
    """One host: what the commands would find there instead of real adapters."""

    def __init__(self, config: AgentConfig, patch: pytest.MonkeyPatch) -> None:
        self.config = config
        self.store, self.kernel, self.rules = MemoryStore(), kernel(1), FakeFirewall()
        put_network(self.store, network(count=199))
        self.store.close = lambda: None  # type: ignore[method-assign]
        patch.setattr(wire, "require_capabilities", lambda: None)
        patch.setattr(wire, "store", lambda config: self.store)
        patch.setattr(wire, "firewall", lambda config: self.rules)
        patch.setattr(commands, "KernelAdapter", self)

    def open(self) -> FakeKernel:
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


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def command(box, tmp_path) -> Iterator[Callable[..., int]]:
    file, paths = tmp_path / "agent.toml", box.config.paths
    file.write_text(
        f'[node]\nname = "node-1"\ninterface = "eth0"\n'
        f'[paths]\nrun = "{paths.run}"\nstate = "{paths.state}"\nsubnet_file = "{paths.subnet_file}"\n'
    )
    log = logging.getLogger("overlaynet")
    before = (log.handlers, log.level, log.propagate)
    yield lambda *words: __main__.main([*words, "--config", str(file)])
    log.handlers, log.level, log.propagate = before


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
