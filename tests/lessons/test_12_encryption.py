"""Lesson 12, who can read the underlay. Where the kernel has no WireGuard the lesson is refused; it is gone
through in a machine that has it (tests/vm). What its check says of a lab without is seen here all the same."""

from __future__ import annotations

import pytest
from helpers.etcd import requires_etcd
from helpers.lab import requires_lab
from helpers.lessons import goes_through, learning

from overlaynet.errors import LessonUnavailable
from overlaynet.lab.lab import Lab
from overlaynet.lab.lifecycle import down
from overlaynet.lab.paths import Paths
from overlaynet.lessons import classroom
from overlaynet.lessons.catalogue import Entry, find

pytestmark = [pytest.mark.lab, requires_lab, requires_etcd, pytest.mark.timeout(300)]

WHY = find("encryption").unavailable
PREDICTED = {"readable": "0", "overhead": "110", "mtu": "1370", "wrong-key": "node-1:flannel.1"}
VTEPS = {"node-1": ("02:0a:f4:02:00:00", "192.168.50.12"), "node-2": ("02:0a:f4:01:00:00", "192.168.50.11")}


@pytest.fixture(scope="module")
def started():
    """The lesson's lab, whatever this kernel has. In the end nothing is left of it."""
    entry, paths = find("encryption"), Paths.here()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(entry.__dict__, "unavailable", None)
        classroom.start(entry, paths)
    try:
        yield entry
    finally:
        down(entry.name, paths)


def run(entry: Entry, host: str, command: str) -> None:
    done = Lab.open(entry.name).driver.run(host, command.split())
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(WHY is not None, reason=str(WHY))
def test_lesson_is_proved_by_its_solution_and_by_nothing_before(record_property):
    with learning("encryption") as learner:
        goes_through(learner, record_property)


@pytest.mark.skipif(WHY is None, reason="it can be gone through here")
def test_lesson_that_cannot_be_run_here_is_refused_with_the_reason():
    with pytest.raises(LessonUnavailable) as refused:
        classroom.start(find("encryption"), Paths.here())
    assert refused.value.evidence == WHY


def test_plain_vxlan_can_be_read(started: Entry):
    claims = classroom.check(started, PREDICTED, Paths.here()).claims
    assert [claim.verdict for claim in claims] == ["pass", "fail"]
    assert "192.168.50.11 > 192.168.50.12 vxlan 1 [10.244.1.2 > 10.244.2.2 icmp" in claims[1].evidence


def test_cable_that_nobody_listens_at_is_no_encryption(started: Entry):
    """It carries VXLAN in the same way, past those who listen."""
    run(started, "node-1", f"ip link add wg0 type veth peer name wg0 netns ovl-{started.name}-node-2")
    for host, (mac, ip) in VTEPS.items():
        run(started, host, "ip link set wg0 up mtu 1420")
        run(started, host, f"bridge fdb replace {mac} dev flannel.1 dst {ip} via wg0 self permanent")
        run(started, host, "ip link set flannel.1 mtu 1370")
    claims = classroom.check(started, PREDICTED, Paths.here()).claims
    assert [claim.verdict for claim in claims] == ["pass", "pass", "fail"]
    assert "no packet between the hosts begins as such a message does" in claims[2].evidence
