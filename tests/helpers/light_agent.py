"""An agent without a kernel: the real engine, store worker, keep-alive and etcd client, and a small loop.

As a program it forks many such agents, real processes that start to race at one moment::

    python light_agent.py ETCD_URL COUNT

It waits for a line on standard input before the race. Each agent then prints a line of JSON when it has its
subnet and is on record, and lives until standard input ends. They are forked from a process that has imported
everything and opened nothing, since fifty imports of gRPC would take longer than the race.
"""

from __future__ import annotations

import json
import os
import queue
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address

from overlaynet.addr import Mac
from overlaynet.core.engine import Engine
from overlaynet.core.keys import Keys
from overlaynet.events import Event
from overlaynet.model import Identity, LocalHost
from overlaynet.store.etcd import EtcdStore
from overlaynet_agent.storeworker import KeepAlive, StoreWorker

KEYS = Keys()
TURN_S = 0.2


def local_host(number: int) -> LocalHost:
    mac = Mac.parse(f"02:00:00:00:00:{number:02x}")
    return LocalHost(
        name=f"node-{number}",
        identity=Identity(f"id-{number}", mac),
        public_ips=(ip_address(f"192.168.50.{number}"),),
        interface="eth0",
        underlay_mtu=1_500,
    )


class LightAgent:
    """One agent; its loop is a thread of its own."""

    def __init__(self, endpoints: Sequence[str], number: int, etcd: EtcdStore | None = None) -> None:
        chance = random.SystemRandom()
        self.etcd = etcd or EtcdStore(endpoints, deadline_s=2.0)
        self.engine = Engine(KEYS, local_host(number), chance.randrange, chance.random, "light")
        self.inbox: queue.SimpleQueue[Event | Callable[[], None]] = queue.SimpleQueue()
        self.heard: list[Event] = []
        self.worker = StoreWorker(self.etcd, KEYS, self.inbox.put)
        self.keepalive = KeepAlive(self.etcd, self.inbox.put, lambda: True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"light-{number}", daemon=True)

    def start(self) -> LightAgent:
        self.worker.start()
        self.keepalive.start()
        self._thread.start()
        return self

    def end_loop(self) -> None:
        """Decide nothing any more; the other threads go on."""
        self._stop.set()
        self._thread.join(10)

    def stop(self) -> None:
        self.end_loop()
        self.keepalive.stop()
        self.worker.stop()
        self.etcd.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._turn()
            mind = self.engine
            self.worker.submit(*mind.tick(time.monotonic()))
            self.keepalive.keep(mind.node_lease, mind.lease.lease_id if mind.lease else 0)

    def _turn(self) -> None:
        try:
            item = self.inbox.get(timeout=TURN_S)
        except queue.Empty:
            return
        if callable(item):
            item()
            return
        self.heard.append(item)
        self.worker.submit(*self.engine.handle(item, time.monotonic()))

    @property
    def subnet(self) -> str | None:
        """The subnet that etcd confirms."""
        lease = self.engine.lease
        return str(lease.value.subnets[0]) if lease and self.engine.confirmed else None

    @property
    def settled(self) -> bool:
        """Whether it has its subnet, and its node record is in etcd on its present lease."""
        record = self.engine.view.nodes.get(KEYS.node(self.engine.local.name))
        return self.subnet is not None and record is not None and record.lease_id == self.engine.node_lease


def _one(url: str, number: int) -> None:
    """Race as agent `number`, say what came of it, stay until standard input ends."""
    agent = LightAgent([url], number).start()
    started = time.monotonic()
    while not agent.settled:
        time.sleep(0.01)
    answer = {"node": number, "pid": os.getpid(), "subnet": agent.subnet}
    answer["took_s"] = round(time.monotonic() - started, 3)
    os.write(1, json.dumps(answer).encode() + b"\n")
    sys.stdin.read()
    answer = {"node": number, "still": agent.subnet}
    os.write(1, json.dumps(answer).encode() + b"\n")
    os._exit(0)


def main() -> None:
    url, count = sys.argv[1], int(sys.argv[2])
    gate, opened = os.pipe()
    children = []
    for number in range(1, count + 1):
        pid = os.fork()
        if pid == 0:
            os.close(opened)
            os.read(gate, 1)  # ends when the parent closes the other end: for all at once
            _one(url, number)
        children.append(pid)
    os.close(gate)
    sys.stdin.readline()
    os.close(opened)
    for pid in children:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
