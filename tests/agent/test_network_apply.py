"""A changed network config waits for a command; addresses wait for etcd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.agent import Agent, agent
from helpers.cluster import put_network
from helpers.eventually import eventually
from helpers.model import network

pytestmark = pytest.mark.fake


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Agent]:
    made = agent(tmp_path).start().until_ready()
    yield made
    made.stop()


def test_offered_network_is_taken_when_asked_for(one: Agent) -> None:
    put_network(one.store, network("10.99.0.0/16"))
    eventually(lambda: one.status()["network"]["pending"])
    assert one.ask("POST", "/v1/network/apply", {})[1]["applied"] is True
    eventually(lambda: one.status()["lease"] and one.status()["lease"]["subnets"][0].startswith("10.99."))
    status = one.status()
    assert (status["network"]["networks"], status["network"]["pending"]) == (["10.99.0.0/16"], False)
    assert one.ask("POST", "/v1/network/apply", {})[1]["applied"] is False


def test_network_that_strands_containers_is_a_conflict_unless_forced(one: Agent) -> None:
    assert one.attach("web")[0] == 201
    put_network(one.store, network("10.99.0.0/16"))
    eventually(lambda: one.status()["network"]["pending"])
    status, document = one.ask("POST", "/v1/network/apply", {})
    assert (status, document["error"]["code"]) == (409, "OVL-404")
    assert one.ask("POST", "/v1/network/apply", {"force": True})[0] == 200
    assert one.ask("POST", "/v1/network/apply", {"force": "yes"})[0] == 400


def test_nothing_is_attached_while_the_subnet_is_not_confirmed(one: Agent) -> None:
    lease = one.loop.engine.lease.lease_id

    def is_renewed() -> bool:
        """A first renewal follows the start, and would confirm it once more."""
        ends = one.loop.keepalive.ends_at(lease)
        return ends is not None and one.loop.engine._ends[lease] == ends

    def lose(loop) -> None:
        loop.engine._ends[lease] = loop.clock()

    eventually(is_renewed)
    one.loop.call(lose)
    status, document = one.attach("web")
    assert (status, document["error"]["code"]) == (503, "OVL-704")
    assert one.status()["lease"]["confirmed"] is False
