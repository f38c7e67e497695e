"""What doctor makes of a machine that lacks something."""

from __future__ import annotations

import errno
from dataclasses import asdict

import click
import pytest

from overlaynet.cli import doctor
from overlaynet.cli.doctor import Check, Tool
from overlaynet.errors import NoConntrack

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("needed", "state"), [(True, "fail"), (False, "warn")])
def test_missing_program_names_its_package(needed, state):
    check = doctor._tool(Tool("there-is-no-such-program", ("-V",), "some-package", needed))
    assert check == Check("there-is-no-such-program", state, "not installed", "apt-get install some-package")


def test_program_is_shown_with_the_first_line_of_its_version():
    check = doctor._tool(Tool("sh", ("-c", "echo 1.2; echo more"), "dash"))
    assert (check.state, check.detail) == ("ok", "1.2")


@pytest.mark.parametrize("a_host", [True, False])
def test_only_a_place_for_labs_needs_etcd(a_host):
    asked = {tool.program for tool in doctor._tools(a_host=a_host)}
    assert ("etcd" in asked, "iptables" in asked) == (not a_host, True)


def test_missing_capability_is_a_failure_that_names_it(monkeypatch):
    monkeypatch.setattr(doctor.capability, "effective", lambda: frozenset({"CAP_NET_RAW"}))
    check = doctor._privilege()
    assert (check.state, "CAP_NET_ADMIN" in check.detail, "CAP_NET_RAW" in check.detail) == (
        "fail",
        True,
        False,
    )


@pytest.mark.parametrize(("release", "state"), [("5.4.0-generic", "warn"), ("6.1.0", "ok"), ("weird", "warn")])
def test_old_kernel_is_warned_of(monkeypatch, release, state):
    monkeypatch.setattr(doctor.platform, "release", lambda: release)
    assert doctor._kernel().state == state


def test_what_services_make_do_without_is_a_warning():
    def lacking() -> None:
        raise NoConntrack(errno.EINVAL)

    check = doctor._optional("conntrack", "it is there", lacking)
    assert (check.state, "OVL-501" in check.detail, check.next) == (
        "warn",
        True,
        "modprobe nf_conntrack_netlink",
    )
    assert doctor._optional("conntrack", "it is there", lambda: None) == Check("conntrack", "ok", "it is there")


def test_report_is_a_table_then_commands_then_a_sum():
    found = [
        Check("kernel", "ok", "Linux 6.1"),
        Check("etcd", "fail", "not installed", "apt-get install etcd-server"),
    ]
    members = {"ok": 1, "warn": 0, "fail": 1, "checks": [asdict(check) for check in found]}
    assert click.unstyle(doctor.doctor_text(members)) == (
        "CHECK   STATE  DETAIL\n"
        "kernel  ok     Linux 6.1\n"
        "etcd    fail   not installed\n"
        "\n"
        "try  apt-get install etcd-server\n"
        "1 ok, 0 warnings, 1 failures"
    )
