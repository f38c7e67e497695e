"""The quickstart's lab and its service, under a name of its own: what labs/quickstart shows holds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from helpers.eventually import eventually
from helpers.lab import lab_name, requires_lab

from overlaynet import data
from overlaynet.kernel import netns
from overlaynet.lab.lab import Lab
from overlaynet.lab.netns_driver import namespace
from overlaynet.lab.topology import parse

pytestmark = [pytest.mark.lab, requires_lab]

WEB = "web-1 web-2 web-3 web-4"
CALLS = [
    ("client-1", "10.112.0.10:80", {"10.244.3.2"}),
    ("outside", "192.168.50.11:30080", {"10.244.1.0", "10.244.1.1"}),
    ("web-1", "10.112.0.10:80", {"10.244.1.1", "10.244.1.2"}),
]

BALANCED = """\
  - apiVersion: v1
    kind: Service
    metadata: {name: balanced}
    spec:
      type: LoadBalancer
      externalTrafficPolicy: Local
      healthCheckNodePort: 32000
      selector: {app: web}
      ports: [{port: 80}]
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    text = data.path("labs", "quickstart.yaml").read_text() + BALANCED
    with Lab.running(parse(text, "quickstart.yaml", lab_name("quick"))) as running:
        yield running


def inside(lab: Lab, place: str, *argv: str) -> subprocess.CompletedProcess[str]:
    words = ["nsenter", f"--net={netns.path(namespace(lab.name, place))}", "--", sys.executable, "-I", *argv]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("place", "target", "seen"), CALLS)
def test_service_answers_a_client_the_outside_and_one_of_its_own(
    lab: Lab, place: str, target: str, seen: set[str]
) -> None:
    call = data.path("labs", "quickstart.yaml").with_name("call.py")
    done = inside(lab, place, str(call), place, target, WEB)
    assert done.returncode == 0, done.stdout + done.stderr
    name, address, _, *rest = done.stdout.split()
    assert (name, address, rest[0:8:2]) == (place, target, WEB.split())
    assert set(rest[8:]) == seen


ASK = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], 32000, timeout=5)
connection.request("GET", "/")
answer = connection.getresponse()
print(answer.status, answer.read().decode())
"""


def health(lab: Lab, node_ip: str) -> tuple[int, int]:
    """What a load balancer outside hears from a node: the status, and how many endpoints are there."""
    done = inside(lab, "outside", "-c", ASK, node_ip)
    assert done.returncode == 0, done.stderr
    status, _, document = done.stdout.partition(" ")
    return int(status), json.loads(document)["localEndpoints"]


def test_load_balancer_hears_where_endpoints_are_and_leaves_those_that_terminate(lab: Lab) -> None:
    eventually(lambda: health(lab, "192.168.50.11") == (200, 2))
    eventually(lambda: health(lab, "192.168.50.13") == (503, 0))
    for name in ("web-1", "web-2"):
        lab.agent("node-1").delete(f"/v1/containers/default/{name}?grace_s=600")
    eventually(lambda: health(lab, "192.168.50.11") == (503, 0))
    assert Lab.up(lab.topology).converged
    eventually(lambda: health(lab, "192.168.50.11") == (200, 2))
