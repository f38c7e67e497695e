"""Readiness in a whole lab: probes of every kind, commands, helpers, grace, and nothing left."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest
from helpers.eventually import eventually
from helpers.lab import cleaned_up, lab_name, requires_lab

from overlaynet.kernel import netns, process
from overlaynet.lab.lab import Lab
from overlaynet.lab.netns_driver import namespace
from overlaynet.lab.paths import Paths
from overlaynet.lab.topology import Topology, parse

pytestmark = [pytest.mark.lab, requires_lab]

BODY = dedent(
    """\
    apiVersion: overlaynet/v1
    kind: Lab
    hosts: [{name: node-1}]
    outside: false
    containers:
    - name: web-1
      host: node-1
      command: [python3, -m, http.server, "8080"]
      probe: {http: {port: 8080}, period_s: 0.2}
    - name: web-2
      host: node-1
      command: [python3, -m, http.server, "8080"]
      probe:
        exec: {command: [sh, -c, "ss -ltnH sport = :8080 | grep -q . && test ! -e FILE"]}
        period_s: 0.2
        timeout_s: 30
        failure_threshold: 1
    - name: web-3
      host: node-1
    """
)


@pytest.fixture(scope="module")
def off_switch(tmp_path_factory) -> str:
    """A file that, while it is there, makes web-2's probe fail."""
    return str(tmp_path_factory.mktemp("probe") / "off")


@pytest.fixture(scope="module")
def topology(off_switch: str) -> Topology:
    return parse(BODY.replace("FILE", off_switch), "probes.yaml", lab_name("probes"))


@pytest.fixture(scope="module")
def lab(topology: Topology) -> Iterator[Lab]:
    with Lab.running(topology) as running:
        yield running


def container(lab: Lab, name: str) -> dict:
    containers = lab.agent("node-1").get("/v1/status")["containers"]
    return next(c for c in containers if c["name"] == name)


def conditions(lab: Lab, name: str) -> tuple[bool, bool, bool]:
    found = container(lab, name)
    return found["ready"], found["serving"], found["terminating"]


def test_up_waits_until_what_it_started_is_ready(lab: Lab) -> None:
    assert [conditions(lab, f"web-{n}") for n in (1, 2, 3)] == [(True, True, False)] * 3
    assert Lab.up(lab.topology).changes == 0


def test_probe_command_runs_inside_and_its_end_shows(lab: Lab, off_switch: str) -> None:
    helper = lab.pid("helper/web-2")
    assert helper is not None
    inside = process.namespace_id(netns.path(namespace(lab.name, "web-2")))
    assert process.namespace_id(process.own_namespace(helper)) == inside
    Path(off_switch).touch()
    eventually(lambda: conditions(lab, "web-2") == (False, False, False))
    assert container(lab, "web-2")["probe_detail"] == "exit 1"
    Path(off_switch).unlink()
    eventually(lambda: conditions(lab, "web-2")[0])


def test_helper_that_died_is_started_again(lab: Lab) -> None:
    pid = lab.pid("helper/web-2")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: process.start_time(pid) is None)
    assert Lab.up(lab.topology).changes == 1
    again = Lab.open(lab.name)
    assert again.pid("helper/web-2") not in (None, pid)


def test_lab_with_a_container_that_leaves_is_made_whole(lab: Lab) -> None:
    lab.agent("node-1").delete("/v1/containers/default/web-2?grace_s=600")
    assert conditions(lab, "web-2")[2]
    result = Lab.up(lab.topology)
    assert (result.changes, result.converged) == (1, True)
    assert not conditions(lab, "web-2")[2]


def test_probe_that_never_passes_is_told_and_nothing_left(topology: Topology) -> None:
    """In a lab where all else is up by then, lest the time be needed for that."""
    name = lab_name("never")
    text = BODY.replace("FILE", "/dev/null")
    with cleaned_up(name, Paths()):
        assert Lab.up(replace(topology, name=name)).converged
        result = Lab.up(parse(text, "never.yaml", name), timeout_s=8.0)
        assert not result.converged
        assert result.waiting == ("web-2 is not ready: exit 1",)
        assert Lab.open(name).pid("helper/web-2")
    assert not [n for n in netns.names() if n.startswith(f"ovl-{name}-")]
