"""Everything on a packet's path through one network namespace, as JSON: kernel tables, sysctls, rules."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from overlaynet.core.jsonstate import kernel_to_json, rules_to_json
from overlaynet.errors import OverlayError
from overlaynet.firewall.iptables import Iptables
from overlaynet.kernel.handle import Rtnl
from overlaynet.kernel.netns import entered
from overlaynet.kernel.observe import observe
from overlaynet.probe.job import member, netns


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"netns", "sysctls": [name], "firewall": bool, "instance"}``; `rules` is null unless asked
    for. `instance`: as whose agent to see it.

    Raises KernelError, FirewallError, NotPermitted or ToolMissing.
    """
    name, instance = netns(job), member(job, "instance", str, "")
    with nullcontext() if name is None else entered(name):
        with Rtnl.open() as rtnl:
            state = observe(rtnl, member(job, "sysctls", list, []), instance=instance)
        rules = Iptables(instance=instance).observe() if member(job, "firewall", bool, False) else None
    return {
        "kind": "Observation",
        "kernel": kernel_to_json(state),
        "rules": None if rules is None else rules_to_json(rules),
    }


def addresses(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"netns": [name]}``: the addresses of each, but for loopback and link-local ones.

    A namespace that cannot be entered has none."""
    names = member(job, "netns", list)
    return {"kind": "Addresses", "addresses": {name: _addresses(name) for name in names}}


def _addresses(name: str) -> list[str]:
    try:
        with Rtnl.inside(name) as rtnl:
            found = [a.interface.ip for a in observe(rtnl).addresses]
    except OverlayError:
        return []
    return [str(ip) for ip in found if not ip.is_loopback and not ip.is_link_local]
