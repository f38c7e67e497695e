"""A lesson's lab, as the lesson's own code changes it and looks at it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from types import TracebackType
from typing import Any

from overlaynet.cluster.breaking import changing_faults
from overlaynet.cluster.contexts import LabCluster
from overlaynet.errors import AgentUnreachable, LabFailed, OverlayError
from overlaynet.lab.faultkinds import Request
from overlaynet.lab.lab import Lab
from overlaynet.proof.network import Network
from overlaynet.proof.packets import Packets
from overlaynet.proof.predicates import Match

POLL_S = 0.1
COMMAND_S = 60.0
HOLD_S = 60.0
"""After which a hold of a check that was ended ends as well."""


def last_seen(packets: Packets, way: Sequence[str], wanted: Match | str) -> str:
    """The last point of a way at which there is a packet that matches. There must be one."""
    seen = {str(packet.point) for packet in packets.where(wanted)}
    return [point for point in way if point in seen][-1]


class Stage:
    """One running lab. It is entered for as long as it is used; `seed` decides what is left to chance. What
    `start` puts into `remembered` (values of JSON) `check` finds there."""

    def __init__(self, cluster: LabCluster, seed: int = 0, remembered: dict[str, Any] | None = None) -> None:
        self.cluster = cluster
        self.seed = seed
        self.remembered = {} if remembered is None else remembered
        self._open = ExitStack()

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def lab(self) -> Lab:
        return self.cluster.lab

    @cached_property
    def net(self) -> Network:
        """The lab as it is asked about packets: `capture`, `send`, `trace`. Its probes look at the lab as it
        was when this was first used; after containers came or went, take a new one (`fresh`)."""
        return self._open.enter_context(Network.of(self.cluster))

    def fresh(self) -> Network:
        """The same, looked at anew."""
        self.__dict__.pop("net", None)
        return self.net

    # --- doing ---

    def run(self, place: str, *argv: str, fails: bool = False) -> str:
        """Run a command in a host, container, ``underlay`` or ``outside``, and answer what it said. Raises
        LabFailed if it ends with an error, unless it `fails` on purpose or may."""
        done = self.lab.driver.run(place, argv, timeout_s=COMMAND_S)
        if done.returncode and not fails:
            raise LabFailed(
                f"{' '.join(argv)} failed in {place}",
                evidence=f"exit {done.returncode}: {done.stderr.decode(errors='replace').strip()[-400:]}",
            )
        return done.stdout.decode(errors="replace")

    def agent(self, host: str, path: str) -> dict[str, object]:
        """What a host's agent answers to GET `path` (docs/agent-api.md). Raises AgentUnreachable."""
        return dict(self.lab.agent(host).get(path))

    def break_(
        self,
        kind: str,
        *target: str,
        wrong: bool = False,
        to: str | None = None,
        action: str | None = None,
        hold: bool = True,
        hidden: bool = False,
    ) -> str:
        """As `overlaynet break` does it (docs/faults.md); `action`: ``DROP`` or ``REJECT``; `hidden`: it is to
        be found, and neither told of nor healed before. Answers the fault's id."""
        request = Request(target, wrong, to, action)
        with changing_faults(self.cluster) as faults:
            return faults.make(kind, request, time.time(), hold=hold, hidden=hidden).fault.id

    def heal(self, *ids: str, hidden: bool = False) -> None:
        """As `overlaynet heal` does it; without names, all faults. `hidden`: those as well."""
        with changing_faults(self.cluster) as faults:
            faults.heal(ids, time.time(), hidden=hidden)

    @contextmanager
    def broken(self, kind: str, *target: str, wrong: bool = False, to: str | None = None) -> Iterator[None]:
        """For the length of the block. What a check breaks to see where a packet is seen last, it heals
        again."""
        fault = self.break_(kind, *target, wrong=wrong, to=to)
        try:
            yield
        finally:
            self.heal(fault)

    @contextmanager
    def held(self, host: str, kind: str, key: str) -> Iterator[None]:
        """For the length of the block the host's agent, if one runs, leaves this object alone (`kind` and `key`
        as in docs/agent-api.md), so that a check may change it. Afterwards it puts right what is wrong."""
        what = {"kind": kind, "key": key}
        try:
            self.lab.agent(host).post("/v1/hold", {**what, "for_s": HOLD_S, "reason": "a lesson's check"})
        except AgentUnreachable:
            yield
            return
        try:
            yield
        finally:
            self.lab.agent(host).post("/v1/release", what)

    def until(self, condition: Callable[[], bool], words: str, seconds: float = 20.0) -> None:
        """Wait for something that comes by itself. AssertionError with these words if it does not; an error
        that the condition raises counts as "not yet"."""
        deadline, last = time.monotonic() + seconds, ""
        while True:
            try:
                if condition():
                    return
            except OverlayError as error:
                last = f" ({error})"
            assert time.monotonic() < deadline, f"{words}: not within {seconds:g} s{last}"
            time.sleep(POLL_S)

    def leads_to(self, host: str, *addresses: object) -> bool:
        """Whether rules of a host lead services to each of these addresses."""
        rules = self.run(host, "iptables", "-w", "-t", "nat", "-S")
        return all(f"--to-destination {address}:" in rules for address in addresses)

    def until_served(self, host: str, *containers: str) -> None:
        """Wait until rules of a host lead to each of these containers. A lab is there before the servers in its
        containers listen, and these are no endpoints until then."""
        wanted = [self.net.address_of(name) for name in containers]
        self.until(lambda: self.leads_to(host, *wanted), f"{host} leads no service to {', '.join(containers)}")
