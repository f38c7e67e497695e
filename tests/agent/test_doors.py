"""What services need of the kernel beside rules, as the agent opens it and lives without it."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
from helpers.agent import Agent, agent, configured
from helpers.eventually import eventually
from helpers.flows import flow
from helpers.private_netns import private_netns
from helpers.privilege import requires_netns
from helpers.service_net import named, service

from overlaynet.config import AgentConfig
from overlaynet.errors import KernelError, NoConntrack, NoIpset
from overlaynet.kernel import conntrack, ipset
from overlaynet.reconcile import ServiceDoors
from overlaynet.state import ServicesPolicy
from overlaynet.testing.fake_services import FakeConntrack, FakeSets
from overlaynet_agent import wire

NO_SUBSYSTEM = 200
DEAD = flow("udp", "10.244.1.7:4000", "10.112.0.10:53", "10.244.9.9:53")


@contextmanager
def opened(config: AgentConfig) -> Iterator[ServiceDoors]:
    with private_netns() as netns, netns.entered(), wire.service_doors(config) as doors:
        yield doors


def words(config: AgentConfig, doors: ServiceDoors) -> str:
    """The rules for a service with affinity, as one text."""
    want = {**named(service("b1", affinity_s=10)), "services": ServicesPolicy(())}
    rendered = wire.firewall(config, doors).rendered(want)
    return " ".join(rule for rules in rendered.chains.values() for rule in rules)


@pytest.mark.kernel
@requires_netns
def test_a_kernel_with_everything_lacks_nothing(tmp_path: Path):
    config = configured(tmp_path)
    with opened(config) as doors:
        assert doors.sets
        assert doors.conntrack
        assert doors.lacks == ()
        assert ip_address("127.0.0.1") in doors.own_addresses()
        assert "-m set --match-set" in words(config, doors)


@pytest.mark.kernel
@requires_netns
def test_without_ipsets_clients_are_known_by_recent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ipset, "IPSET", NO_SUBSYSTEM)
    config = configured(tmp_path)
    with opened(config) as doors:
        assert doors.sets is None
        assert [type(error) for error in doors.lacks] == [NoIpset]
        assert "-m recent" in words(config, doors)


@pytest.mark.kernel
@requires_netns
def test_without_ctnetlink_connections_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(conntrack, "CONNTRACK", NO_SUBSYSTEM)
    with opened(configured(tmp_path)) as doors:
        assert doors.conntrack is None
        assert [type(error) for error in doors.lacks] == [NoConntrack]


@pytest.mark.kernel
@requires_netns
def test_where_services_are_anothers_connections_are_too(tmp_path: Path):
    with opened(configured(tmp_path, service={"mode": "off"})) as doors:
        assert (doors.conntrack, doors.lacks) == (None, ())
        assert doors.sets


# --- the whole agent ------------------------------------------------------------------------------


@contextmanager
def running(where: Path, doors: ServiceDoors) -> Iterator[Agent]:
    one = agent(where)
    one.doors = doors
    one.start().until_ready()
    try:
        yield one
    finally:
        one.stop()


@pytest.mark.fake
def test_what_is_lacking_is_said_once_and_is_no_problem(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    with running(tmp_path, ServiceDoors(lacks=(NoIpset("the kernel has no ipsets"),))) as one:
        status = one.status()
        assert [error["code"] for error in status["services"]["fallbacks"]] == ["OVL-602"]
        assert status["problems"] == []
    assert sum("make do" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.fake
def test_connections_that_could_not_be_forgotten_are_tried_again(tmp_path: Path):
    table = FakeConntrack([DEAD])
    table.fail(*[KernelError("a deletion", errno.EBUSY)] * 2)
    with running(tmp_path, ServiceDoors(FakeSets(), table)) as one:
        eventually(lambda: table.deleted == [DEAD])
        services = eventually(lambda: (s := one.status()["services"])["connections_forgotten"] and s)
        assert services["sync_failures"] == 2
        assert one.status()["problems"] == []
        assert "overlaynet_conntrack_deleted_total 1.0" in one.server.metrics().decode()


@pytest.mark.fake
def test_a_restart_reads_the_table_once_and_forgets_nothing(tmp_path: Path):
    table = FakeConntrack([DEAD._replace(dst=ip_address("8.8.8.8"))])
    with running(tmp_path, ServiceDoors(FakeSets(), table)) as one:
        eventually(lambda: table.dumps)
        one.loop.call(lambda loop: loop.ask_firewall_again("repair"))
        eventually(lambda: one.loop.rules.reads >= 2)
        assert table.deleted == []
        assert len(table.dumps) == 2
