"""One real agent in a network namespace of its own: kernel, iptables and listener are real, etcd is in memory.

Much cheaper than a lab, and all that the repair of one host's objects needs.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from helpers.agent import configured
from helpers.cluster import put_network
from helpers.drift_cases import Case
from helpers.eventually import eventually
from helpers.kernel_hosts import RealHost, real_host
from helpers.model import KEYS, lease, network, vtep_mac

from overlaynet.errors import Contested, OverlayError
from overlaynet.firewall.chains import is_ours
from overlaynet.firewall.iptables import Iptables
from overlaynet.model import Identity
from overlaynet.ports import Put
from overlaynet.store import codec, disk
from overlaynet.store.memory import MemoryStore
from overlaynet_agent import wire
from overlaynet_agent.host import AttachRequest
from overlaynet_agent.loop import Loop, Stop

PEERS = (2, 3)
SYSCTLS = ("net/ipv4/ip_forward", "net/ipv4/conf/flannel.1/rp_filter", "net/ipv4/conf/cni0/rp_filter")
FOREIGN = """\
ip address del 192.168.50.11/24 dev eth0
ip address add 192.168.50.1/24 dev eth0
ip link add foreign type veth peer name elsewhere
ip link set elsewhere up
ip link set foreign up
ip address add 10.9.0.1/24 dev foreign
ip address add 10.99.0.1/32 dev eth0
ip neigh add 10.9.0.7 lladdr 02:00:00:00:09:07 dev foreign nud permanent
ip route add 10.77.0.0/16 via 10.9.0.7 dev foreign
ip route add 10.244.2.0/24 via 10.9.0.7 dev foreign metric 4000000
"""
"""What belongs to others and must be there, as it is, whatever happens to ours."""
FOREIGN_RULES = """\
-N FOREIGN
-A FOREIGN -s 10.77.0.0/16 -j RETURN
-A FORWARD -j FOREIGN
-t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE
"""


@dataclass
class RealAgent:
    """An agent that runs. `device` is its container's host end, `flavour` its iptables."""

    host: RealHost
    loop: Loop
    rules: Iptables
    flavour: str
    store: MemoryStore
    device: str = ""

    def sh(self, text: str) -> None:
        """Another program's hand: one command a line; `iptables`, the variant in use, waits for its lock."""
        for line in text.strip().splitlines():
            words = shlex.split(line.replace("{port}", self.device))
            if words[0] == "iptables":
                words[:1] = [f"iptables-{self.flavour}", "-w"]
            self._run(words)

    def _run(self, words: list[str], stdin: str = "") -> None:
        with self.host.netns.entered():
            subprocess.run(words, check=True, input=stdin, capture_output=True, text=True)

    def break_by(self, case: Case) -> None:
        self.sh(case.commands)
        if case.commit:
            self._run([f"iptables-{self.flavour}-restore", "-w", "--noflush"], case.commit)
        for name, value in case.settings:
            self.write_sysctl(name, value)

    def write_sysctl(self, name: str, value: str) -> None:
        with self.host.netns.entered():
            Path("/proc/sys", name).write_text(value)

    def state(self) -> dict[str, object]:
        """Kernel and rules, ours and foreign, without what the kernel does in its own time."""
        with self.host.netns.entered():
            return {**self._kernel(), **self._rules()}

    def _kernel(self) -> dict[str, object]:
        seen = self.loop.host.kernel.__class__.open()
        try:
            state = seen.observe(SYSCTLS)
        finally:
            seen.close()
        return {
            "links": {
                (x.name, x.type, x.mac, x.mtu, x.up, x.master, x.altnames, x.vxlan, x.hairpin)
                for x in state.links.values()
            },
            "addresses": {x for x in state.addresses if x.interface.version == 4},
            "neighs": {x for x in state.neighs if x.state == "permanent"},
            "fdb": {x for x in state.fdb if x.dst or x.state == "static"},
            "routes": {x for x in state.routes if x.dst.version == 4},
            "sysctls": dict(state.sysctls),
        }

    def _rules(self) -> dict[str, object]:
        """Our chains, and everything else that has a rule."""
        rules = Iptables(self.flavour).observe()  # type: ignore[arg-type]
        texts = {key: tuple(line.text for line in lines) for key, lines in rules.chains.items()}
        return {f"rules {key}": lines for key, lines in texts.items() if lines or is_ours(key[1])}

    def counters(self) -> dict[str, int]:
        """Full looks, readings of the rules, writes to the kernel and to the rules."""
        loop = self.loop
        return {
            "looks": loop.host.looks,
            "reads": loop.rules.reads,
            "writes": sum(loop.host.writes.values()),
            "restores": sum(self.rules.restores.values()),
        }

    def add_peers(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            one = lease(number)
            self.put_lease(KEYS.lease(one.subnets), codec.encode_lease(one))

    def calm_down(self) -> None:
        """Forget that things were broken before: what comes is the first time."""

        def forget(loop: Loop) -> None:
            loop.host.drift.fought.streaks.clear()
            loop._looks.streaks.clear()
            loop._noticed_look = 0.0

        self.loop.call(forget)

    def put_lease(self, key: str, value: bytes) -> None:
        self.store.commit([], [Put(key, value)])

    def problems(self) -> list[OverlayError]:
        """As the loop's thread sees them, which else would be at them just then."""
        return list(self.loop.call(Loop.problems))

    def quiet(self) -> bool:
        """Whether there is nothing to do: nothing failed, nothing suspected. That it was all broken often is
        no matter here."""
        host, problems = self.loop.host, self.problems()
        troubles = [problem for problem in problems if not isinstance(problem, Contested)]
        under_way = host.failures or host.drift.suspects or host.drift.look or host.looking or host.due
        return not (under_way or troubles)


@contextmanager
def real_agent(
    where: Path, flavour: str = "legacy", *, resync_s: float = 60, direct_routing: bool = False
) -> Iterator[RealAgent]:
    """An agent that is ready, with peers 2 and 3, a container, and a good deal of others' objects. `resync_s`:
    between full looks, and full readings of the rules, that nothing has asked for."""
    where.mkdir(exist_ok=True)
    lock = {"XTABLES_LOCKFILE": str(where / "xtables.lock")}
    with ExitStack() as stack:
        host = stack.enter_context(real_host())
        stack.enter_context(mock.patch.dict(os.environ, lock))
        agent = _start(where, flavour, host, stack, resync_s, direct_routing)
        eventually(lambda: agent.loop.ready and agent.loop.engine.confirmed, deadline_s=30)
        eventually(lambda: len(agent.loop.engine.view.leases) == 1 + len(PEERS))
        _attach(agent, host)
        eventually(agent.quiet)
        yield agent


def _start(
    where: Path, flavour: str, host: RealHost, stack: ExitStack, resync_s: float, direct_routing: bool
) -> RealAgent:
    for line in FOREIGN.splitlines():
        host.netns.run(line)
    for line in FOREIGN_RULES.splitlines():
        host.netns.run(f"iptables-{flavour} {line}")
    seldom = {"firewall": {"backend": flavour, "resync_s": resync_s}, "service": {"max_sync_s": resync_s}}
    config = configured(where, 1, **seldom)
    disk.write_identity(config.paths.identity, Identity("id-1", vtep_mac(1)))
    store, rules = MemoryStore(), Iptables(flavour)  # type: ignore[arg-type]
    put_network(store, network(count=1, direct_routing=direct_routing))
    for number in PEERS:
        store.commit([], [Put(KEYS.lease(lease(number).subnets), codec.encode_lease(lease(number)))])
    loop = wire.loop(config, host.kernel, store, rules)  # type: ignore[arg-type]
    loops = threading.Thread(target=loop.run, name="loop", daemon=True)
    threads = (wire.notices(host.kernel, loop), *loop.threads)
    for thread in threads:
        thread.start()
        stack.callback(thread.stop)
    loops.start()
    stack.callback(loops.join, 10)
    stack.callback(loop.inbox.put, Stop())
    return RealAgent(host, loop, rules, flavour, store)


def _attach(agent: RealAgent, host: RealHost) -> None:
    inside = host.container()
    request = AttachRequest("web", "default", {}, (), (), None, inside.netns_fd, inside.netlink_fd)
    agent.device = agent.loop.call(lambda loop: loop.host.attach(request, loop.clock())).device
