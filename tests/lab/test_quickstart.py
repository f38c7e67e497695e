"""The quickstart's lab and its service, under a name of its own: what labs/quickstart shows holds."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers.lab import lab_name, requires_lab

from overlaynet import data
from overlaynet.kernel import netns
from overlaynet.lab.lab import Lab
from overlaynet.lab.netns_driver import namespace
from overlaynet.lab.topology import Topology

pytestmark = [pytest.mark.lab, requires_lab]

WEB = "web-1 web-2 web-3 web-4"
CALLS = [
    ("client-1", "10.112.0.10:80", {"10.244.3.2"}),
    ("outside", "192.168.50.11:30080", {"10.244.1.0", "10.244.1.1"}),
    ("web-1", "10.112.0.10:80", {"10.244.1.1", "10.244.1.2"}),
]


def test_service_answers_a_client_the_outside_and_one_of_its_own() -> None:
    topology = Topology.load(data.path("labs", "quickstart.yaml"), lab_name("quick"))
    with Lab.running(topology) as lab:
        for place, target, seen in CALLS:
            inside = f"--net={netns.path(namespace(lab.name, place))}"
            call = [sys.executable, "-I", str(data.path("labs", "quickstart.yaml").parent / "call.py")]
            argv = ["nsenter", inside, "--", *call, place, target, WEB]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            name, address, _, *rest = done.stdout.split()
            assert (name, address) == (place, target)
            assert rest[0:8:2] == WEB.split()
            assert set(rest[8:]) == seen
        assert Lab.up(topology).changes == 0
