"""What machines tell of themselves."""

from __future__ import annotations

import pytest

from overlaynet.cluster.machines import Facts
from overlaynet.errors import MachineUnreachable

pytestmark = pytest.mark.unit


def test_answer_of_another_kind_of_probe_is_an_error_of_that_machine_alone():
    told = Facts.of("node-1", {"version": "0.1.0", "release": "6.1.0"})
    assert isinstance(told, MachineUnreachable)
    assert "node-1" in told.message
    assert "boot_id" in told.evidence


def test_answer_becomes_facts():
    answer = dict.fromkeys(Facts._fields) | {"version": "0.1.0", "kind": "Host"}
    told = Facts.of("node-1", answer)
    assert isinstance(told, Facts)
    assert told.version == "0.1.0"
