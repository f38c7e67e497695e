"""What is said where an ordinary user gets no lab: the reason, the evidence and what to type, by facts."""

from __future__ import annotations

import errno

import pytest

from overlaynet.kernel.userns import MAP, MOUNTS, NETWORK, USER
from overlaynet.lab import unprivileged
from overlaynet.lab.unprivileged import Facts, foreseen, refusal

pytestmark = pytest.mark.unit

PLENTY = (("user", 9), ("mnt", 9), ("net", 9))

CASES = [
    pytest.param(
        USER,
        errno.EPERM,
        Facts(clone=0, most=PLENTY),
        "only root may make user namespaces",
        "sudo sysctl -w kernel.unprivileged_userns_clone=1",
        id="debians-older-switch",
    ),
    pytest.param(
        USER,
        errno.ENOSPC,
        Facts(clone=1, most=(("user", 0),)),
        "it allows no user namespaces",
        "sudo sysctl -w user.max_user_namespaces=15000",
        id="none-allowed",
    ),
    pytest.param(
        NETWORK,
        errno.ENOSPC,
        Facts(most=(("user", 9), ("net", 0))),
        "it allows no net namespaces",
        "sudo sysctl -w user.max_net_namespaces=15000",
        id="no-network-namespaces",
    ),
    pytest.param(
        USER,
        errno.ENOSPC,
        Facts(most=PLENTY),
        "you have as many user namespaces as it allows",
        "overlaynet get labs",
        id="as-many-as-allowed",
    ),
    pytest.param(
        MAP,
        errno.EPERM,
        Facts(clone=1, apparmor=1, most=PLENTY),
        "AppArmor takes all rights from user namespaces",
        "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        id="ubuntu-made-without-rights",
    ),
    pytest.param(
        USER,
        errno.EACCES,
        Facts(apparmor=1, most=PLENTY),
        "AppArmor takes all rights from user namespaces",
        f"add an AppArmor profile for overlaynet as in {unprivileged.ADVICE}",
        id="ubuntu-refused",
    ),
    pytest.param(
        USER,
        errno.EPERM,
        Facts(filtered=True, most=PLENTY),
        "a seccomp filter",
        "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
        " --security-opt systempaths=unconfined ...",
        id="container-eperm",
    ),
    pytest.param(
        USER,
        errno.ENOSYS,
        Facts(filtered=True),
        "a seccomp filter",
        "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
        " --security-opt systempaths=unconfined ...",
        id="container-enosys",
    ),
    pytest.param(
        USER, errno.EINVAL, Facts(known=False), "its kernel has no user namespaces", None, id="old-kernel"
    ),
    pytest.param(
        MOUNTS,
        errno.EPERM,
        Facts(clone=1, most=PLENTY),
        "the kernel refused a step",
        f"see the distributions in {unprivileged.ADVICE}",
        id="nothing-known",
    ),
]


@pytest.mark.parametrize(("step", "number", "found", "reason", "typed"), CASES)
def test_refusal_says_why_what_was_refused_and_what_to_type(
    step: str, number: int, found: Facts, reason: str, typed: str | None
) -> None:
    error = refusal(step, number, found, "mine")
    assert (error.code, error.exit_code) == ("OVL-208", 3)
    assert error.message.startswith("this machine gives you no lab without root: ")
    assert reason in error.message
    assert error.evidence.startswith(f"{step}: ")
    assert error.next[-1] == "sudo overlaynet up -l mine", "the other way is always told"
    assert typed is None or typed in error.next


def test_evidence_has_every_setting_that_the_machine_has_and_none_that_it_has_not() -> None:
    told = refusal(USER, errno.EPERM, Facts(clone=1, most=PLENTY, filtered=True)).evidence
    assert "kernel.unprivileged_userns_clone = 1" in told
    assert "user.max_user_namespaces = 9" in told
    assert "a seccomp filter is set" in told
    assert "apparmor" not in told


@pytest.mark.parametrize(
    ("found", "word"),
    [
        pytest.param(Facts(clone=1, apparmor=0, most=PLENTY, filtered=True), None, id="well"),
        pytest.param(Facts(clone=0), "only root", id="switch"),
        pytest.param(Facts(apparmor=1, most=PLENTY), "AppArmor", id="apparmor"),
        pytest.param(Facts(most=(("user", 9), ("mnt", 0))), "no mnt namespaces", id="limit"),
        pytest.param(Facts(known=False), "no user namespaces", id="kernel"),
    ],
)
def test_settings_foretell_it_but_for_a_filter_which_may_forbid_something_else(
    found: Facts, word: str | None
) -> None:
    error = foreseen(found)
    assert (error is None) == (word is None)
    assert error is None or (word is not None and word in error.message)


def test_facts_of_this_machine_can_be_read() -> None:
    assert unprivileged.facts().known
