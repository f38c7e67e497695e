"""A row of a table of behaviour: these services, this question, that outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from helpers.answering import DENIED, REFUSED, SILENT, Answer
from helpers.service_net import ADDRESS, COMMON, VIP, ServiceNet

from overlaynet.state import ServicePortPolicy, ServicesPolicy

Outcome: TypeAlias = str | Mapping[str, str]
"""One of the words of `helpers.answering`, or whom each endpoint that answers sees asking, by name."""

TIMES = 20
"""Questions for each endpoint but one. Of two endpoints one is missed by chance once in half a million times,
of three once in four millions."""


@dataclass(frozen=True)
class Case:
    """`client` asks `address` and `port`. `seen` may name a place instead of its address."""

    name: str
    ports: tuple[ServicePortPolicy, ...]
    client: str
    seen: Outcome
    address: str = VIP
    port: int = 80
    protocol: str = "tcp"
    common: ServicesPolicy = COMMON
    times: int = 1
    source: str = ""

    def __str__(self) -> str:
        return self.name

    def check(self, net: ServiceNet) -> None:
        net.serve(*self.ports, common=self.common)
        others = 0 if isinstance(self.seen, str) else len(self.seen) - 1
        said = {self._outcome(net) for _ in range(TIMES * others or self.times)}
        assert said == self._expected()

    def _outcome(self, net: ServiceNet) -> str | tuple[str, str]:
        silent = self.seen == SILENT
        client, address, port = self.client, self.address, self.port
        said = net.ask(client, address, port, self.protocol, source=self.source, silent=silent)
        if isinstance(said, Answer):
            return said.name, said.peer
        return REFUSED if said == DENIED and self._may_be_denied() else said

    def _may_be_denied(self) -> bool:
        """A host's own datagram that is rejected is refused in its own way: sending it fails."""
        return self.client in ("A", "B") and self.protocol == "udp"

    def _expected(self) -> set[str | tuple[str, str]]:
        if isinstance(self.seen, str):
            return {self.seen}
        return {(name, ADDRESS.get(peer, peer)) for name, peer in self.seen.items()}
