"""Kernel settings, on a directory that stands for /proc/sys."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from overlaynet.errors import KernelError
from overlaynet.kernel import sysctl

pytestmark = pytest.mark.unit


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sysctl, "PROC_SYS", tmp_path / "sys")
    (tmp_path / "sys/net/ipv4/conf/flannel.1").mkdir(parents=True)
    (tmp_path / "outside").write_text("untouched")
    return tmp_path / "sys"


def test_a_device_with_a_dot_in_its_name_is_one_part(root: Path) -> None:
    (root / "net/ipv4/conf/flannel.1/rp_filter").touch()
    sysctl.write("net/ipv4/conf/flannel.1/rp_filter", "2")
    assert sysctl.read("net/ipv4/conf/flannel.1/rp_filter") == "2"


def test_any_white_space_between_values_counts_as_one_blank(root: Path) -> None:
    (root / "net/range").write_text("32768\t60999\n")
    assert sysctl.read("net/range") == "32768 60999"


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "net/../../outside", ""])
def test_a_name_cannot_leave_the_tree(root: Path, name: str) -> None:
    with pytest.raises(KernelError) as caught:
        sysctl.write(name, "x")
    assert caught.value.errno == errno.EINVAL
    assert (root.parent / "outside").read_text() == "untouched"


def test_an_unknown_name_reads_as_none(root: Path) -> None:
    assert sysctl.read("net/nothing") is None
