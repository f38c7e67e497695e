"""What a process may do is read from its capabilities."""

from __future__ import annotations

from pathlib import Path

import pytest

from overlaynet.errors import NotPermitted
from overlaynet.kernel import capability

pytestmark = pytest.mark.unit


@pytest.fixture
def status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "status"
    monkeypatch.setattr(capability, "STATUS", path)
    return path


@pytest.mark.parametrize(
    ("mask", "want"),
    [
        pytest.param("0000000000000000", set(), id="none"),
        pytest.param("0000000000003000", {"CAP_NET_ADMIN", "CAP_NET_RAW"}, id="the-agents"),
        pytest.param("0000000000200000", {"CAP_SYS_ADMIN"}, id="sys-admin"),
        pytest.param("000001ffffffffff", set(capability.NAMES), id="all"),
        pytest.param("ffffffffffffffff", set(capability.NAMES), id="more-than-we-know"),
    ],
)
def test_bits_are_named(status: Path, mask: str, want: set[str]) -> None:
    status.write_text(f"Name:\tx\nCapPrm:\t{'f' * 16}\nCapEff:\t{mask}\nCapBnd:\t{'f' * 16}\n")
    assert capability.effective() == want


def test_what_is_there_is_not_asked_for(status: Path) -> None:
    status.write_text("CapEff:\t0000000000003000\n")
    capability.require("CAP_NET_ADMIN", "CAP_NET_RAW")
    with pytest.raises(NotPermitted):
        capability.require("CAP_NET_ADMIN", "CAP_SYS_ADMIN")


def test_what_is_missing_is_named_with_evidence_and_a_way_out(status: Path) -> None:
    status.write_text("CapEff:\t0000000000001000\n")
    with pytest.raises(NotPermitted) as caught:
        capability.require("CAP_SYS_ADMIN", "CAP_NET_ADMIN", purpose="a lab")
    assert caught.value.message == "a lab needs CAP_SYS_ADMIN"
    assert "0000000000001000" in caught.value.evidence
    assert caught.value.next


def test_this_process_has_a_readable_set() -> None:
    assert capability.effective() <= set(capability.NAMES)
