"""Engines over one store in memory, driven step by step and without threads.

A `Member` is an engine with its hands on the store. What it asks for waits in `todo` until a step carries
it out, so that a test decides who is faster.
"""

from __future__ import annotations

import gc
import random
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from helpers.model import KEYS, engine, subnet, vtep_mac

from overlaynet.core.engine import Engine
from overlaynet.errors import OverlayError
from overlaynet.events import Event, Failed, Intent, Relist
from overlaynet.model import Identity, NetworkConfig
from overlaynet.ports import Put
from overlaynet.store import codec
from overlaynet.store.memory import MemoryStore
from overlaynet_agent.storeworker import StoreWorker


def put_network(store: MemoryStore, network: NetworkConfig) -> None:
    store.commit([], [Put(KEYS.network_config, codec.encode_network_config(network))])


@dataclass
class Member:
    """One engine over a store. `asked` is everything it ever asked for."""

    store: MemoryStore
    engine: Engine
    now: float = 0.0
    events: deque[Event] = field(default_factory=deque)
    todo: deque[Intent] = field(default_factory=lambda: deque([Relist()]))
    asked: list[Intent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.worker = StoreWorker(self.store, KEYS, self.events.append, lambda: self.now)

    def hear(self, event: Event) -> list[Intent]:
        """Tell the engine one thing; answer what it asks for."""
        intents = self.engine.handle(event, self.now)
        self._note(intents)
        return intents

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self._note(self.engine.tick(self.now))

    def step(self) -> bool:
        """Carry out one intent, or hear one event; False if there is neither."""
        if self.events:
            self.hear(self.events.popleft())
            return True
        if self.todo:
            self._carry_out(self.todo.popleft())
            return True
        return False

    def settle(self, limit: int = 1_000) -> None:
        """Step until nothing is left to do."""
        for _ in range(limit):
            if not self.step():
                return
        raise AssertionError(f"still busy after {limit} steps: {self.asked[-4:]}")

    def _note(self, intents: Sequence[Intent]) -> None:
        self.asked += intents
        self.todo.extend(intents)

    def _carry_out(self, intent: Intent) -> None:
        try:
            self.worker.carry_out(intent)
        except OverlayError as error:
            self.events.append(Failed(intent, error))


def joined(store: MemoryStore, number: int = 1, **changes: Any) -> Member:
    """A host that has its subnet: 10.244.`number`.0/24, if that is free."""
    member = Member(store, remembering(number, **changes))
    member.settle()
    assert member.engine.confirmed
    return member


def remembering(number: int = 1, **changes: Any) -> Engine:
    """An engine whose identity file names 10.244.`number`.0/24."""
    identity = Identity(f"id-{number}", vtep_mac(number), (subnet(number),))
    return engine(number, **{"identity": identity, **changes})


def codes(member: Member | Engine) -> list[str]:
    mind = member.engine if isinstance(member, Member) else member
    return [problem.code for problem in mind.problems()]


def later(member: Member, seconds: float = 60.0) -> None:
    member.wait(seconds)
    member.settle()


def settle(members: Sequence[Member], chance: random.Random | None = None, limit: int = 100_000) -> None:
    """Let all take steps in turn, or in an order of `chance`, until nobody has anything to do."""
    for _ in range(limit):
        order = list(members)
        if chance:
            chance.shuffle(order)
        if sum(member.step() for member in order) == 0:
            return
    raise AssertionError(f"still busy after {limit} rounds")


def steps_of(mind: Engine, event: Event) -> int:
    """How many byte codes are run for one event: what it costs, whatever the machine is at. What others have
    left for the garbage is not collected meanwhile: that runs byte codes too."""
    counted = 0

    def trace(frame: FrameType, what: str, _: Any) -> Any:
        nonlocal counted
        frame.f_trace_opcodes = True
        counted += what == "opcode"
        return trace

    before = sys.gettrace()
    gc.disable()
    sys.settrace(trace)
    try:
        mind.handle(event, 0.0)
    finally:
        sys.settrace(before)
        gc.enable()
    return counted
