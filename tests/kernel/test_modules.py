"""A module that is absent is named, with what to type."""

from __future__ import annotations

import errno
from ipaddress import ip_address

import pytest
from helpers.private_netns import private_netns
from helpers.privilege import requires_netns

from overlaynet.errors import KernelError
from overlaynet.kernel import modules, sysctl
from overlaynet.kernel.apply import KernelAdapter
from overlaynet.state import Change, Link, Op, Vxlan


def make(kind, vxlan=None):
    """The refusal of a link of that kind by the real kernel."""
    with private_netns():
        kernel = KernelAdapter.open()
        try:
            (failure,) = kernel.apply([Change(Op.PUT, Link("dev0", kind, 1400, True, vxlan=vxlan))])
        finally:
            kernel.close()
    return failure.error


@pytest.mark.kernel
@requires_netns
def test_kind_of_device_that_the_kernel_does_not_know_names_the_module():
    error = make("nosuchkind")
    assert (error.errno, error.next[0]) == (errno.EOPNOTSUPP, "modprobe nosuchkind")
    assert "the module nosuchkind is not loaded, and did not load by itself" in error.message


@pytest.mark.kernel
@requires_netns
def test_any_other_refusal_stays_what_it_is():
    error = make("vxlan", Vxlan(1, 8472, ip_address("192.0.2.1"), "no-such-underlay"))
    assert (error.errno, error.next) == (errno.ENODEV, ())


@pytest.mark.unit
@pytest.mark.parametrize("text", ["", "Unknown device type"])
def test_old_kernels_say_less(text):
    told = modules.explained(KernelError("put link flannel.1", errno.EOPNOTSUPP, text), device="vxlan")
    assert told.next[0] == "modprobe vxlan"


@pytest.mark.unit
def test_setting_of_a_device_that_is_gone_is_no_matter_of_modules():
    gone = KernelError("sysctl net/ipv4/conf/cni0/rp_filter = 2", errno.ENOENT)
    assert modules.explained(gone) is gone


@pytest.mark.unit
def test_bridge_settings_without_br_netfilter_name_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sysctl, "PROC_SYS", tmp_path)
    with pytest.raises(KernelError, match="the module br_netfilter is not loaded") as caught:
        sysctl.write("net/bridge/bridge-nf-call-iptables", "1")
    assert caught.value.next[0] == "modprobe br_netfilter"
