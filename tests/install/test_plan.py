"""Files wanted against files there: what may be replaced or removed, and what is somebody else's."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from overlaynet.install.plan import Change, File, Link, Op, Other, to_install, to_uninstall

pytestmark = pytest.mark.unit

FILE = PurePosixPath("/usr/local/lib/sysctl.d/90-overlaynet.conf")
LINK = PurePosixPath("/usr/local/bin/overlaynet-agent")
WANTED = File(FILE, "ours, new")
WANTED_LINK = Link(LINK, PurePosixPath("/opt/overlaynet/2/bin/overlaynet-agent"))


def is_ours(file):
    return file.text.startswith("ours")


def installed(want, have):
    return to_install([want], {have.path: have} if have else {}, is_ours)


def uninstalled(want, have):
    return to_uninstall([want], {have.path: have} if have else {}, is_ours)


@pytest.mark.parametrize("want", [WANTED, WANTED_LINK])
def test_what_is_missing_is_created_and_what_is_right_left(want):
    assert installed(want, None) == [Change(Op.CREATED, want.path)]
    assert installed(want, want) == []
    assert uninstalled(want, want) == [Change(Op.REMOVED, want.path)]
    assert uninstalled(want, None) == []


@pytest.mark.parametrize(
    ("want", "have"),
    [
        (WANTED, File(FILE, "ours, old")),
        (WANTED, File(FILE, "ours, new", 0o600)),
        (WANTED_LINK, Link(LINK, PurePosixPath("/opt/overlaynet/1/bin/overlaynet-agent"))),
    ],
    ids=["content", "mode", "another version's link"],
)
def test_what_another_version_wrote_is_replaced_and_removed(want, have):
    assert installed(want, have) == [Change(Op.REPLACED, want.path)]
    assert uninstalled(want, have) == [Change(Op.REMOVED, want.path)]


@pytest.mark.parametrize(
    ("want", "have", "why"),
    [
        (WANTED, File(FILE, "an administrator's"), "somebody has written or changed it"),
        (WANTED, Link(FILE, PurePosixPath("/dev/null")), "it is a link"),
        (WANTED, Other(FILE, "a folder"), "it is a folder"),
        (WANTED_LINK, Link(LINK, PurePosixPath("/srv/agent")), "it leads to /srv/agent"),
        (WANTED_LINK, File(LINK, "ours or not, a program"), "it is a file of somebody's"),
    ],
    ids=["file", "link for a file", "folder", "link elsewhere", "file for a link"],
)
def test_what_is_somebody_elses_is_told_and_left(want, have, why):
    kept = [Change(Op.KEPT, want.path, why)]
    assert installed(want, have) == kept
    assert uninstalled(want, have) == kept
    assert not kept[0].real
