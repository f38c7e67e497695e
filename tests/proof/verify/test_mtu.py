"""What the fates of three packets prove about an MTU."""

from __future__ import annotations

import pytest

from overlaynet.proof.verify.mtu import Pair, judge
from overlaynet.proof.world import Where

pytestmark = pytest.mark.unit

WEB_1 = Where("web-1", "container", "node-1", None)
PAIR = Pair("web-1", "web-3", "node-1", "node-2", "10.244.1.2", "10.244.2.2", WEB_1, 1450)
ARRIVES, LOCAL, ROUTER, SILENT = "echo-reply", "not sent", "icmp fragmentation-needed", "silent"


def fate(answer: str) -> dict:
    error = "larger than the MTU of 1450 bytes (EMSGSIZE)" if answer == LOCAL else None
    return {"answers": {answer: 1}, "error": error, "rtt_ms": 0.3 if answer == ARRIVES else None}


@pytest.mark.parametrize(
    ("fates", "reason"),
    [
        ((ARRIVES, LOCAL, ARRIVES), None),
        ((ARRIVES, ROUTER, ARRIVES), None),
        ((SILENT, LOCAL, ARRIVES), "full_size_lost"),
        ((ROUTER, ROUTER, ARRIVES), "full_size_refused"),
        ((LOCAL, LOCAL, ARRIVES), "full_size_refused"),
        ((ARRIVES, SILENT, ARRIVES), "silent_loss"),
        ((ARRIVES, ARRIVES, ARRIVES), "not_refused"),
        ((ARRIVES, LOCAL, SILENT), "fragments_lost"),
    ],
)
def test_fates_prove(fates: tuple[str, ...], reason: str | None) -> None:
    check = judge(PAIR, [fate(answer) for answer in fates])
    assert (check.verdict, check.reason) == ("fail" if reason else "pass", reason)
    assert bool(check.evidence) == bool(reason)
    assert check.id == "node-1:node-2"
    assert check.next == "trace web-1 web-3 --icmp --size 1422 --df"


def test_note_tells_all_three() -> None:
    check = judge(PAIR, [fate(ARRIVES), fate(LOCAL), fate(SILENT)])
    assert check.note == "1450 arrive; 1451 refused at once, in pieces silent"
    assert check.rtt_ms == 0.3


@pytest.mark.parametrize("lacking", [None, {"answers": {}, "error": "no permission", "rtt_ms": None}])
def test_packet_that_was_not_sent_proves_nothing(lacking: dict | None) -> None:
    check = judge(PAIR, [fate(ARRIVES), lacking, fate(ARRIVES)])
    assert (check.verdict, check.reason) == ("inconclusive", "probe_failed")
