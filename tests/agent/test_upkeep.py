"""Readiness probes and grace periods of a whole agent on fakes; what is asked is a real socket."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from helpers.agent import Agent, agent
from helpers.eventually import eventually
from helpers.model import KEYS

from overlaynet.errors import KernelError
from overlaynet.store import codec

pytestmark = pytest.mark.fake

PROBE = {"exec": {"command": ["check"]}, "period_s": 0.1, "failure_threshold": 1}


@pytest.fixture
def fresh(tmp_path) -> Iterator[Agent]:
    one = agent(tmp_path).start().until_ready()
    yield one
    one.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[Agent]:
    """An agent for requests that it refuses, with a container that stays as it is."""
    one = agent(tmp_path_factory.mktemp("h1")).start().until_ready()
    one.attach("stays")
    yield one
    one.stop()


class Helper:
    """Somebody who is asked to run commands, and answers as the test wants."""

    def __init__(self, one: Agent, name: str = "probe-web.sock") -> None:
        self.path = one.config.paths.run / name
        self.answer: object = {"code": 0, "timed_out": False, "output": ""}
        self.asked: list[dict] = []
        self._socket = socket.socket(socket.AF_UNIX)
        directory = os.open(self.path.parent, os.O_PATH)
        self._socket.bind(f"/proc/self/fd/{directory}/{name}")
        os.close(directory)
        self._socket.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                self.asked.append(json.loads(connection.makefile().readline()))
                connection.sendall(json.dumps(self.answer).encode() + b"\n")

    def says(self, code: int | None, output: str = "") -> None:
        self.answer = {"code": code, "timed_out": False, "output": output}


def attach(one: Agent, helper: Helper, **more: object) -> dict:
    status, document = one.attach("web", probe={**PROBE, **more}, probe_socket=str(helper.path))
    assert status == 201, document
    return document


def conditions(one: Agent) -> tuple[bool, bool, bool]:
    (container,) = one.status()["containers"]
    return container["ready"], container["serving"], container["terminating"]


def published(one: Agent) -> tuple[bool, bool, bool] | None:
    items = one.store.read([KEYS.workloads]).items
    records = [codec.decode(item, KEYS).value for item in items]
    return next(((r.ready, r.serving, r.terminating) for r in records), None)


def detail(one: Agent) -> str | None:
    return one.status()["containers"][0]["probe_detail"]


# --- probes ---------------------------------------------------------------------------------------


def test_container_with_a_probe_is_ready_when_it_passes_and_no_longer_when_it_fails(fresh):
    helper = Helper(fresh)
    helper.says(1, "not yet")
    assert attach(fresh, helper)["ready"] is False
    eventually(lambda: detail(fresh) == "exit 1: not yet")
    eventually(lambda: published(fresh) == (False, False, False))
    helper.says(0)
    eventually(lambda: published(fresh) == (True, True, False))
    assert conditions(fresh) == (True, True, False)
    helper.says(None, "check: not found")
    eventually(lambda: published(fresh) == (False, False, False))
    assert detail(fresh) == "could not be started: check: not found"
    assert helper.asked[0] == {"command": ["check"], "timeout_s": 1.0}


def test_container_without_a_probe_is_ready_at_once(fresh):
    fresh.attach("web")
    assert conditions(fresh) == (True, True, False)
    assert fresh.status()["containers"][0]["probe"] is None


def test_thresholds_are_kept(fresh):
    helper = Helper(fresh)
    attach(fresh, helper, success_threshold=3, failure_threshold=2)
    eventually(lambda: conditions(fresh)[0])
    assert len(helper.asked) >= 3


def test_helper_that_hangs_talks_nonsense_or_is_gone_is_a_failure(fresh):
    helper = Helper(fresh)
    attach(fresh, helper)
    eventually(lambda: conditions(fresh)[0])
    helper.answer = [1, 2]
    eventually(lambda: not conditions(fresh)[0])
    helper.path.unlink()
    eventually(lambda: detail(fresh) == "No such file or directory")
    with socket.socket(socket.AF_UNIX) as silent:
        directory = os.open(helper.path.parent, os.O_PATH)
        silent.bind(f"/proc/self/fd/{directory}/{helper.path.name}")
        os.close(directory)
        silent.listen()
        eventually(lambda: detail(fresh) == "no answer within 1 s")
        assert fresh.get("/v1/health") == {"status": "ok"}


def test_probe_is_gone_with_its_container_and_its_helper_is_told(fresh):
    helper = Helper(fresh)
    attach(fresh, helper)
    eventually(lambda: conditions(fresh)[0])
    assert fresh.ask("DELETE", "/v1/containers/default/web")[0] == 200
    assert not helper.path.exists()
    eventually(lambda: "probe default/web" not in [thread.name for thread in threading.enumerate()])


def test_container_whose_device_vanished_is_probed_no_more(fresh):
    helper = Helper(fresh)
    device = attach(fresh, helper)["device"]
    fresh.loop.call(lambda loop: fresh.kernel.detach(device))
    fresh.ask("POST", "/v1/repair", {})
    eventually(lambda: not helper.path.exists())
    eventually(lambda: "probe default/web" not in [thread.name for thread in threading.enumerate()])


def test_restarted_agent_leaves_the_condition_until_the_probe_speaks(fresh):
    helper = Helper(fresh)
    attach(fresh, helper, failure_threshold=3, period_s=2)
    eventually(lambda: published(fresh) == (True, True, False))
    helper.says(1)
    again = fresh.restart()
    fresh.loop, fresh.thread, fresh.server = again.loop, again.thread, again.server
    assert conditions(fresh) == (True, True, False)
    eventually(lambda: published(fresh) == (False, False, False))
    assert fresh.status()["containers"][0]["probe"]["exec"] == {"command": ["check"]}


WRONG = [
    ({"probe": {}}, "OVL-108"),
    ({"probe": {"tcp": {"port": 80, "host": "10.0.0.1"}}}, "OVL-108"),
    ({"probe": PROBE}, "OVL-100"),
    ({"probe": PROBE, "probe_socket": 5}, "OVL-100"),
    ({"probe": PROBE, "probe_socket": "/etc/probe-a.sock"}, "OVL-100"),
    ({"probe": PROBE, "probe_socket": "{run}/agent.sock"}, "OVL-100"),
    ({"probe": PROBE, "probe_socket": "{run}/../run/probe-a.sock"}, "OVL-100"),
    ({"probe": {"tcp": {"port": 80}}, "probe_socket": "{run}/probe-a.sock"}, "OVL-100"),
    ({"probe_socket": "{run}/probe-a.sock"}, "OVL-100"),
]


@pytest.mark.parametrize(("body", "code"), WRONG)
def test_wrong_probe_is_refused_and_nothing_wired(shared, body, code):
    path = body.get("probe_socket")
    if isinstance(path, str):
        body = {**body, "probe_socket": path.replace("{run}", str(shared.config.paths.run))}
    status, document = shared.attach("web", **body)
    assert (status, document["error"]["code"]) == (400, code)
    assert [container["name"] for container in shared.status()["containers"]] == ["stays"]


# --- grace ----------------------------------------------------------------------------------------


def leave(one: Agent, grace_s: object, name: str = "web") -> tuple[int, dict]:
    return one.ask("DELETE", f"/v1/containers/default/{name}?grace_s={grace_s}")


def test_container_that_is_to_go_serves_until_its_time_is_over(fresh):
    device = fresh.attach("web")[1]["device"]
    status, document = leave(fresh, 5)
    assert (status, document["name"]) == (200, "web")
    assert 0 < document["ends_in_s"] <= 5
    assert conditions(fresh) == (False, True, True)
    assert device in fresh.kernel.links
    eventually(lambda: published(fresh) == (False, True, True))
    eventually(lambda: device not in fresh.kernel.links)
    eventually(lambda: published(fresh) is None)
    assert fresh.status()["containers"] == []


def test_probe_goes_on_while_its_container_terminates(fresh):
    helper = Helper(fresh)
    attach(fresh, helper)
    eventually(lambda: conditions(fresh)[0])
    leave(fresh, 600)
    assert conditions(fresh) == (False, True, True)
    helper.says(1)
    eventually(lambda: conditions(fresh) == (False, False, True))
    helper.says(0)
    eventually(lambda: conditions(fresh) == (False, True, True))


def test_second_delete_without_grace_ends_it_at_once(fresh):
    device = fresh.attach("web")[1]["device"]
    leave(fresh, 600)
    assert fresh.ask("DELETE", "/v1/containers/default/web") == (
        200,
        {"name": "web", "namespace": "default", "ends_in_s": None},
    )
    assert device not in fresh.kernel.links


def test_second_grace_may_only_be_shorter(fresh):
    fresh.attach("web")
    leave(fresh, 600)
    assert 500 < leave(fresh, 900)[1]["ends_in_s"] <= 600
    assert leave(fresh, 60)[1]["ends_in_s"] <= 60


def test_grace_survives_a_restart_and_goes_on_by_the_time_of_day(fresh):
    device = fresh.attach("web")[1]["device"]
    leave(fresh, 600)
    fresh.stop()
    record = json.loads(fresh.config.paths.workloads.read_text())
    (one,) = record.values()
    assert 500 < one["ends"] - time.time() <= 600
    one["ends"] = time.time() - 1
    fresh.config.paths.workloads.write_text(json.dumps(record))
    fresh.start().until_ready()
    eventually(lambda: device not in fresh.kernel.links)
    eventually(lambda: fresh.status()["containers"] == [])


@pytest.mark.parametrize(
    "query", ["grace_s=", "grace_s=-1", "grace_s=x", "grace_s=nan", "grace=3", "grace_s=1e9", "grace_s=1&a=b"]
)
def test_wrong_grace_is_refused(shared, query):
    status, document = shared.ask("DELETE", f"/v1/containers/default/stays?{query}")
    assert (status, document["error"]["code"]) == (400, "OVL-100")
    assert conditions(shared) == (True, True, False)


def test_grace_for_nobody_is_not_found(shared):
    assert leave(shared, 5, "nobody")[0] == 404


def test_container_that_cannot_be_unwired_is_tried_again(fresh, monkeypatch):
    device = fresh.attach("web")[1]["device"]
    detach, calls = fresh.kernel.detach, []

    def fails_once(name: str) -> None:
        calls.append(name)
        if len(calls) == 1:
            raise KernelError(name, 16)
        detach(name)

    monkeypatch.setattr(fresh.kernel, "detach", fails_once)
    leave(fresh, 0.1)
    eventually(lambda: device not in fresh.kernel.links)
    assert len(calls) == 2
