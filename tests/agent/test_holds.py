"""Holds through the API: who may, what is refused, what is shown, and when they end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers.agent import Agent, agent
from helpers.eventually import eventually

pytestmark = pytest.mark.fake

HOLD = {"kind": "sysctl", "key": "net/ipv4/ip_forward", "for_s": None, "reason": "a lesson"}


@pytest.fixture
def one(tmp_path) -> Iterator[Agent]:
    running = agent(tmp_path).start().until_ready()
    yield running
    running.stop()


def test_hold_is_shown_counted_and_kept_until_released(one: Agent):
    assert one.ask("POST", "/v1/hold", HOLD) == (
        200,
        {"kind": "sysctl", "key": "net/ipv4/ip_forward", "reason": "a lesson", "expires_in_s": None},
    )
    assert [hold["key"] for hold in one.status()["holds"]] == ["net/ipv4/ip_forward"]
    assert b"overlaynet_holds 1.0" in one.server.metrics()
    one.kernel.sysctls["net/ipv4/ip_forward"] = "0"
    one.ask("POST", "/v1/repair", {})
    assert one.kernel.sysctls["net/ipv4/ip_forward"] == "0"
    name = {"kind": HOLD["kind"], "key": HOLD["key"]}
    assert one.ask("POST", "/v1/release", name) == (200, name)
    eventually(lambda: one.kernel.sysctls["net/ipv4/ip_forward"] == "1")
    assert one.status()["holds"] == []


def test_hold_ends_by_itself(one: Agent):
    one.ask("POST", "/v1/hold", {**HOLD, "for_s": 0.05})
    eventually(lambda: one.status()["holds"] == [])


def test_second_hold_of_an_object_takes_the_place_of_the_first(one: Agent):
    one.ask("POST", "/v1/hold", HOLD)
    answer = one.ask("POST", "/v1/hold", {**HOLD, "for_s": 600})[1]
    assert 500 < answer["expires_in_s"] <= 600
    assert len(one.status()["holds"]) == 1


def test_plan_tells_of_what_is_held(one: Agent):
    """Left alone is not right: `diff` still shows it."""
    one.ask("POST", "/v1/hold", HOLD)
    one.kernel.sysctls["net/ipv4/ip_forward"] = "0"
    assert [change["key"] for change in one.get("/v1/plan")["changes"]] == ["net/ipv4/ip_forward"]


@pytest.mark.parametrize("quiet", [False, True])
def test_log_tells_of_holds_that_are_not_quiet(one: Agent, quiet: bool, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    one.ask("POST", "/v1/hold", {**HOLD, "quiet": quiet})
    one.ask("POST", "/v1/release", {"kind": HOLD["kind"], "key": HOLD["key"]})
    said = [record.getMessage() for record in caplog.records]
    told = [text.partition(" kind=")[0] for text in said if "hold " in text]
    assert told == ([] if quiet else ["hold placed", "hold over how=released"])


def test_hold_does_not_survive_the_agent(one: Agent):
    one.ask("POST", "/v1/hold", HOLD)
    two = one.restart().until_ready()
    assert two.status()["holds"] == []
    two.stop()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param({**HOLD, "kind": "ghost"}, 400, "OVL-100", id="no-such-kind"),
        pytest.param({**HOLD, "key": 7}, 400, "OVL-100", id="key-is-no-text"),
        pytest.param({**HOLD, "quiet": 1}, 400, "OVL-100", id="quiet-is-a-number"),
        pytest.param({**HOLD, "for_s": 0}, 400, "OVL-100", id="for-no-time"),
        pytest.param({**HOLD, "for_s": -1}, 400, "OVL-100", id="for-less-than-no-time"),
        pytest.param({**HOLD, "for_s": True}, 400, "OVL-100", id="for-true"),
        pytest.param({**HOLD, "for_s": float("inf")}, 400, "OVL-100", id="for-ever-as-a-number"),
        pytest.param({**HOLD, "reason": "two\nlines"}, 400, "OVL-100", id="reason-of-two-lines"),
        pytest.param({**HOLD, "until": 5}, 400, "OVL-100", id="unknown-member"),
        pytest.param({"kind": "route", "key": "254 10.244.300.0/24 7"}, 400, "OVL-100", id="no-network"),
        pytest.param({"kind": "route", "key": "10.244.2.0/24"}, 400, "OVL-100", id="half-a-key"),
        pytest.param({"kind": "rule", "key": "FORWARD"}, 400, "OVL-100", id="no-table"),
        pytest.param({"kind": "route", "key": "254 10.99.0.0/24 7"}, 404, "OVL-105", id="nobody-wants-it"),
    ],
)
def test_hold_that_makes_no_sense_is_refused(one: Agent, body: dict, status: int, code: str):
    answer = one.ask("POST", "/v1/hold", body)
    assert (answer[0], answer[1]["error"]["code"]) == (status, code)
    assert one.status()["holds"] == []


def test_release_of_what_is_not_held_is_refused(one: Agent):
    assert one.ask("POST", "/v1/release", {"kind": "link", "key": "flannel.1"})[0] == 404


def test_every_wanted_object_can_be_held_by_the_name_the_plan_gives_it(one: Agent):
    assert one.attach("web")[0] == 201
    from_plan = {"kernel": set(one.loop.engine.desired.objects)}
    one.kernel.links.pop("flannel.1")
    for entry in one.get("/v1/plan")["changes"]:
        body = {"kind": entry["object"], "key": entry["key"]}
        assert one.ask("POST", "/v1/hold", body)[0] == 200, body
    assert one.loop.host.drift.holds.keys <= from_plan["kernel"]
