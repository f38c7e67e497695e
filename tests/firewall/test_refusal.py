from __future__ import annotations

import pytest

from overlaynet.errors import FirewallBusy, FirewallError, NotPermitted
from overlaynet.firewall.refusal import refusal

pytestmark = pytest.mark.unit

SENT = """\
*nat
:OVL-X - [0:0]
-A OVL-X -j NOPE
-D POSTROUTING -j OVL-X
COMMIT
"""


@pytest.mark.parametrize(
    ("stderr", "line"),
    [
        pytest.param("iptables-restore: line 3 failed", "-A OVL-X -j NOPE", id="legacy-kernel"),
        pytest.param(
            "iptables-nft-restore: line 3 failed: No chain/target/match by that name.",
            "-A OVL-X -j NOPE",
            id="nft-program",
        ),
        pytest.param(
            "iptables-nft-restore v1.8.9: \nline 2: CHAIN_ADD failed (Invalid argument): chain OVL-X",
            ":OVL-X - [0:0]",
            id="nft-kernel",
        ),
        pytest.param(
            "iptables-restore v1.8.9 (legacy): Couldn't load target `NOPE':No such file or directory\n\n"
            "Error occurred at line: 3\nTry `iptables-restore -h' or 'iptables-restore --help' for more.",
            "-A OVL-X -j NOPE",
            id="legacy-parser",
        ),
        pytest.param(
            "iptables-nft-restore v1.8.9 (nf_tables): Chain 'NOPE' does not exist\nError occurred at line: 5",
            "-A OVL-X -j NOPE",
            id="nft-blames-commit",
        ),
        pytest.param("something quite different", "", id="no-line"),
        pytest.param("iptables-restore: line 99 failed", "", id="line-beyond-the-input"),
    ],
)
def test_the_refused_line_is_named(stderr: str, line: str):
    error = refusal("iptables-restore", SENT, stderr, privileged=True)
    assert isinstance(error, FirewallError)
    assert not error.transient
    assert error.line == line
    assert line in error.message
    assert "Try" not in error.evidence


@pytest.mark.parametrize(
    "stderr",
    [
        pytest.param(
            "Another app is currently holding the xtables lock. Stopped waiting after 5s.", id="legacy-lock"
        ),
        pytest.param("iptables-restore: line 4 failed", id="hook-gone-legacy"),
        pytest.param(
            "iptables-nft-restore: line 4 failed: Bad rule (does a matching rule exist in that chain?).",
            id="hook-gone-nft",
        ),
        pytest.param(
            "line 3: CHAIN_DEL failed (Device or resource busy): chain OVL-X", id="somebody-jumps-to-it-nft"
        ),
    ],
)
def test_another_program_at_work_is_worth_another_try(stderr: str):
    error = refusal("iptables-restore", SENT, stderr, privileged=True)
    assert isinstance(error, FirewallBusy)
    assert error.transient


@pytest.mark.parametrize(
    ("stderr", "privileged"),
    [
        ("Could not fetch rule set generation id: Permission denied (you must be root)", False),
        ("Failed to list table names in /proc/net/ip_tables_names: Permission denied", False),
        ("iptables-restore: unable to initialize table 'nat'\n\nError occurred at line: 1", False),
    ],
)
def test_missing_privilege_is_said(stderr: str, privileged: bool):
    error = refusal("iptables-restore", SENT, stderr, privileged=privileged)
    assert isinstance(error, NotPermitted)
    assert error.next


def test_missing_table_names_the_module():
    error = refusal("iptables-restore", SENT, "unable to initialize table 'nat'", privileged=True)
    assert error.next == ("modprobe iptable_nat",)


def test_lock_file_that_cannot_be_opened_names_the_variable():
    stderr = "Fatal: can't open lock file /run/xtables.lock: Permission denied"
    error = refusal("iptables-restore", SENT, stderr, privileged=True)
    assert "XTABLES_LOCKFILE" in error.next[0]


@pytest.mark.parametrize(
    ("stderr", "module"),
    [
        ("iptables/1.8.9 Failed to initialize nft: Protocol not supported", "nf_tables"),
        (
            "Warning: Extension statistic revision 0 not supported, missing kernel module?\n"
            "iptables-nft-restore: line 3 failed: No chain/target/match by that name.",
            "ipt_statistic",
        ),
    ],
    ids=["nf_tables", "match"],
)
def test_missing_module_is_named_with_what_to_type(stderr: str, module: str):
    error = refusal("iptables-restore", SENT, stderr, privileged=True)
    assert not error.transient
    assert (module in error.message, error.next) == (True, (f"modprobe {module}",))
