"""`overlaynet doctor`: has this machine what labs and agents need?

Each check ends in ``ok``, ``warn`` (some things will not work, or somebody should look) or ``fail``
(nothing will work). Where it can be found out by trying, it is tried, in a network namespace made for it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import click

from overlaynet.cli import machinechecks, surroundings
from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cli.checks import FAIL, OK, WARN, Check
from overlaynet.cli.leftovers import leftovers
from overlaynet.cli.output import member, table
from overlaynet.errors import OverlayError
from overlaynet.kernel import capability, netns
from overlaynet.kernel.conntrack import ConntrackAdapter
from overlaynet.kernel.ipset import AffinitySetsAdapter
from overlaynet.lab import sandbox, unprivileged
from overlaynet.lab.paths import Paths
from overlaynet.lab.state import running_labs
from overlaynet.state import VxlanGuard

_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
_OLDEST_KERNEL = (5, 7)
"""Older ones get the checksum of VXLAN packets wrong when the underlay offloads it."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A program, the words that make it tell its version, and whether nothing works without it. `in_labs`: only
    labs start it; on a host whose agent is a service, nobody needs it."""

    program: str
    version: tuple[str, ...]
    package: str
    needed: bool = True
    in_labs: bool = False


TOOLS = (
    Tool("ip", ("-V",), "iproute2"),
    Tool("bridge", ("-V",), "iproute2", needed=False),
    Tool("iptables", ("--version",), "iptables"),
    Tool("etcd", ("--version",), "etcd-server", in_labs=True),
    Tool("nsenter", ("--version",), "util-linux"),
    Tool("setpriv", ("--version",), "util-linux"),
    Tool("ping", ("-V",), "iputils-ping", needed=False),
    Tool("ssh", ("-V",), "openssh-client", needed=False),
)


@click.command()
@shared
@pass_app
def doctor(app: App) -> int:
    """Check whether this machine has what is needed, and how the machines of labs are.

    Exit code 1 if something that everything depends on is missing.
    """
    with app.progress("looking"):
        machines = list(machinechecks.checks(Paths.here(), app.lab if app.named else None))
        found = [*checks(Paths.here()), *machines]
    counts = {state: sum(check.state == state for check in found) for state in (OK, WARN, FAIL)}
    members = {**counts, "checks": [asdict(check) for check in found]}
    app.result("Doctor", members, lambda: doctor_text(members), [c.name for c in found if c.state != OK])
    return 1 if counts[FAIL] else 0


def doctor_text(members: Mapping[str, Any]) -> str:
    """The table, what to type, and a sum."""
    found = members["checks"]
    lines = [table((member("CHECK", "name"), member("STATE", "state"), member("DETAIL", "detail")), found)]
    steps = dict.fromkeys(f"try  {check['next']}" for check in found if check["next"])
    return "\n".join(
        [*lines, "", *steps, f"{members[OK]} ok, {members[WARN]} warnings, {members[FAIL]} failures"]
    )


def checks(paths: Paths) -> Iterator[Check]:
    """Everything, in the order in which it would stop a lab. What is about this very host is looked at first,
    for an ordinary user tries the rest in a sandbox, from which there is no way back."""
    here = [_nftables(), *surroundings.checks()]
    labs = [_labs(paths), _leftovers(paths)]
    yield _sandbox(paths) if sandbox.is_wanted() else _privilege()
    yield _kernel()
    yield _tried("namespaces", netns.can_make_and_enter, "network namespaces can be made and entered")
    yield from map(_tool, _tools(a_host=surroundings.is_service_installed()))
    if netns.can_make_and_enter():
        yield from _features()
    yield from here
    yield _user_namespaces()
    yield from labs


def _privilege() -> Check:
    missing = sorted(set(sandbox.CAPABILITIES) - capability.effective())
    if missing:
        return Check("privilege", FAIL, "missing: " + ", ".join(missing), "sudo overlaynet doctor")
    return Check("privilege", OK, "all capabilities a lab needs")


def _sandbox(paths: Paths) -> Check:
    """Whether an ordinary user can have labs, found out by being in a sandbox from here on."""
    try:
        sandbox.visit(paths.mine)
    except OverlayError as error:
        return Check("privilege", FAIL, f"{error.message} ({error.evidence})", next(iter(error.next), None))
    return Check("privilege", OK, "none needed: your labs are in user namespaces of yours, without sudo")


def _kernel() -> Check:
    release = platform.release()
    parts = release.split(".")
    version = tuple(int(p) for p in parts[:2] if p.isdigit())
    if version < _OLDEST_KERNEL:
        return Check("kernel", WARN, f"Linux {release}; before 5.7 VXLAN checksums may be wrong")
    return Check("kernel", OK, f"Linux {release}")


def _tried(name: str, attempt: Callable[[], bool], good: str) -> Check:
    return Check(name, OK, good) if attempt() else Check(name, FAIL, f"not true here: {good}")


def _tools(*, a_host: bool) -> list[Tool]:
    return [tool for tool in TOOLS if not (tool.in_labs and a_host)]


def _tool(tool: Tool) -> Check:
    found = shutil.which(tool.program, path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")
    if found is None:
        state = FAIL if tool.needed else WARN
        return Check(tool.program, state, "not installed", f"apt-get install {tool.package}")
    return Check(tool.program, OK, _first_line([found, *tool.version]))


def _first_line(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{argv[0]}, whose version cannot be asked: {error}"
    lines = (done.stdout or done.stderr).splitlines()
    return lines[0].strip() if lines else argv[0]


def _features() -> Iterator[Check]:
    """What the kernel can do, in a namespace that is gone afterwards."""
    home = netns.new()
    try:
        with netns.entered(home):
            yield _link("vxlan", "id", "1", "dstport", "8472", "local", "127.0.0.1", "dev", "lo")
            yield _link("bridge")
            yield _link("veth", "peer", "name", "doctor1")
            yield _firewall()
            yield _optional("ipsets", "services can know any number of clients again", _try_ipset)
            yield _optional("conntrack", "connections can be read and forgotten", _try_conntrack)
    finally:
        os.close(home)


def _try_ipset() -> None:
    with closing(AffinitySetsAdapter(bool)) as sets:
        sets.check()


def _try_conntrack() -> None:
    with closing(ConntrackAdapter()) as table:
        table.check()


def _optional(name: str, good: str, check: Callable[[], None]) -> Check:
    """What services make do without."""
    try:
        check()
    except OverlayError as error:
        return Check(name, WARN, f"{error.code} {error.message}", next(iter(error.next), None))
    return Check(name, OK, good)


def _link(kind: str, *words: str) -> Check:
    tool = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")
    if tool is None:
        return Check(f"{kind}-device", FAIL, "cannot be tried without ip", "apt-get install iproute2")
    argv = [tool, "link", "add", f"dr{kind[:6]}", "type", kind, *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    if done.returncode:
        return Check(f"{kind}-device", FAIL, done.stderr.strip() or "the kernel refused it", f"modprobe {kind}")
    return Check(f"{kind}-device", OK, f"{kind} devices can be made")


def _firewall() -> Check:
    from overlaynet.firewall.iptables import Iptables

    firewall = Iptables()
    try:
        flavour = firewall.flavour
        firewall.observe()
    except OverlayError as error:
        return Check("rules", FAIL, error.message, next(iter(error.next), None))
    return Check("rules", OK, f"iptables-{flavour} can be read")


def _nftables() -> Check:
    """What an agent on this very host would meet; labs are in namespaces of their own."""
    from overlaynet.firewall.iptables import Iptables

    guard = VxlanGuard(8472, (), devices=("cni0", "flannel.1"))
    try:
        found = Iptables().strangers({"vxlan": guard})
    except OverlayError as error:
        return Check("nftables", OK, f"not read: {error.message}")
    if found is None:
        return Check("nftables", OK, "not read: that takes the program nft, and root")
    if found:
        return Check("nftables", WARN, "; ".join(found), "nft list ruleset")
    return Check("nftables", OK, "no chain of nftables' own would stop an agent on this host")


def _user_namespaces() -> Check:
    """As far as settings tell: it is tried only by whoever needs them."""
    found = unprivileged.facts()
    obstacle = unprivileged.foreseen(found)
    if obstacle is not None:
        return Check("user-namespaces", WARN, f"{obstacle.message} ({obstacle.evidence})", obstacle.next[0])
    return Check(
        "user-namespaces", OK, f"up to {found.limit('user')}; ordinary users can have labs without root"
    )


def _labs(paths: Paths) -> Check:
    names = running_labs(paths)
    return Check("labs", OK, "running: " + (", ".join(names) or "none"))


def _leftovers(paths: Paths) -> Check:
    found = leftovers(paths)
    if found:
        return Check(
            "leftovers", WARN, "of labs that do not run: " + ", ".join(i.lab for i in found), "overlaynet clean"
        )
    return Check("leftovers", OK, "none")
