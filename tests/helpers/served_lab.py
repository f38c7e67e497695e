"""A lab whose containers answer, and the services and slices that a test puts in front of them."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from helpers.answering import KINDS, PATIENCE_S, Answer, Servers, ask, servers
from helpers.calling import Calling, calling, named_netns
from helpers.eventually import eventually
from helpers.private_netns import PrivateNetns

from overlaynet.client import UnixConnection
from overlaynet.core.keys import Keys
from overlaynet.errors import OverlayError
from overlaynet.kernel import process
from overlaynet.lab.lab import Lab
from overlaynet.lab.netns_driver import namespace
from overlaynet.lab.topology import Topology
from overlaynet.model import Settings
from overlaynet.ports import Delete, Put, Store
from overlaynet.store import services

KEYS = Keys()
PORT = 8080
VIP, SLICED_VIP = "10.112.0.10", "10.112.0.11"
NODE_PORT = 30_080
NODE_TTL_S = 5
FIRST_ENDPOINT = "10.244.1.2"
CLIENT = "web-3"
"""The container that calls, on node-3; its own host is never the one that is hurt, but for its agent."""


def web(name: str, vip: str, **spec: object) -> dict[str, Any]:
    """A Service at TCP and UDP port 80."""
    ports = [
        {"name": protocol.lower(), "protocol": protocol, "port": 80, "targetPort": PORT}
        for protocol in ("TCP", "UDP")
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": vip, "ports": ports, **spec},
    }


def by_selector() -> dict[str, Any]:
    """`web`: every container of the lab, also at a nodePort."""
    found = web("web", VIP, selector={"app": "web"}, type="NodePort")
    found["spec"]["ports"][0]["nodePort"] = NODE_PORT
    return found


def slice_of(name: str, *addresses: str, port: int = PORT) -> dict[str, Any]:
    """The EndpointSlice of a service without selector."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-1" if port == PORT else f"{name}-{port}",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": [{"name": p.lower(), "protocol": p, "port": port} for p in ("TCP", "UDP")],
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address in addresses],
    }


@dataclass
class ServedLab:
    """`lab` is looked up anew after `up`, since processes are others then."""

    lab: Lab
    servers: Servers
    places: Mapping[str, PrivateNetns]
    store: Store

    def apply(self, *objects: Mapping[str, Any]) -> None:
        services.apply(self.store, KEYS, [dict(value) for value in objects])

    def put(self, key: str, value: bytes) -> None:
        """Whatever it is."""
        self.store.commit([], [Put(key, value)])

    def delete(self, *keys: str) -> None:
        self.store.commit([], [Delete(key) for key in keys])

    def change(self, batch: Iterable[int]) -> set[str]:
        """Endpoints of `api` come, each at a port of its own and named by a slice of its own, in one revision.
        Answers them as rules have them."""
        values = {
            KEYS.slice(f"default/api-{port}"): slice_of("api", FIRST_ENDPOINT, port=port) for port in batch
        }
        self.store.commit([], [Put(key, json.dumps(value).encode()) for key, value in values.items()])
        return {f"{FIRST_ENDPOINT}:{port}" for port in batch}

    def targets(self, host: str) -> set[str]:
        """Where a host's rules lead the TCP port of `api`."""
        flavour = self.status(host)["firewall"]["flavour"]
        rules = self.lab.driver.run(host, [f"iptables-{flavour}-save", "-t", "nat"]).stdout.decode()
        return set(re.findall(r"default/api:tcp.* --to-destination (\S+)", rules))

    def remembered(self, host: str) -> set[str]:
        """Clients that a host keeps to their endpoints, each with its set."""
        lines = self.lab.driver.run(host, ["ipset", "save"]).stdout.decode().splitlines()
        return {" ".join(line.split()[1:3]) for line in lines if line.startswith("add ")}

    def iptables(self, host: str, *words: str) -> None:
        """Somebody else's hand on a host's rules."""
        flavour = self.status(host)["firewall"]["flavour"]
        done = self.lab.driver.run(host, [f"iptables-{flavour}", "-w", *words])
        assert done.returncode == 0, done.stderr

    def ask(self, place: str, address: str, port: int = 80, protocol: str = "tcp") -> Answer | str:
        with self.places[place].entered():
            return ask(protocol, address, port, patience_s=PATIENCE_S)

    def await_everybody(self, place: str) -> None:
        """Until every container has answered a call of `web` from this place, by TCP and by UDP."""
        for protocol in KINDS:
            missing = {container.name for container in self.lab.containers}

            def heard(protocol: str = protocol, missing: set[str] = missing) -> bool:
                said = self.ask(place, VIP, protocol=protocol)
                missing.discard(said.name if isinstance(said, Answer) else "")
                assert not missing, (missing, said)
                return True

            eventually(heard, deadline_s=60)

    def calling(self, address: str, patience_s: float = 1.0) -> AbstractContextManager[Calling]:
        return calling(self.places[CLIENT], address, 80, patience_s=patience_s)

    def status(self, host: str) -> dict[str, Any]:
        """What the agent says; an AssertionError, to wait by, if it does not answer."""
        try:
            return dict(self.lab.agent(host).get("/v1/status"))
        except OverlayError as error:
            raise AssertionError(error.message) from error

    def well(self, host: str) -> bool:
        now = self.status(host)
        return bool(now["agent"]["state"] == "ready" and now["pending"] == 0)

    def metric(self, host: str, name: str) -> float:
        """The sum over all labels of one family; an AssertionError if the agent has no such family."""
        connection = UnixConnection(self.lab.agent(host).socket_path, PATIENCE_S)
        with closing(connection):
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        found = [float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[ {{]", line)]
        assert found, f"no metric {name}"
        return sum(found)

    def forgotten(self, host: str) -> int:
        """How many connections the host's agents have deleted, by their log, which outlives each of them."""
        text = self.lab.paths.host(host).log.read_text()
        return sum(map(int, re.findall(r"connections forgotten count=(\d+)", text)))

    def kill(self, host: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End the agent of a host and see it gone."""
        pid = self.lab.pid(f"agent/{host}")
        assert pid is not None
        os.kill(pid, number)
        eventually(lambda: process.start_time(pid) is None, deadline_s=20)

    def up(self) -> None:
        """Start what is missing."""
        result = Lab.up(self.lab.topology)
        assert result.converged, result.waiting
        self.lab = Lab.open(self.lab.name)

    def cut_off(self, host: str) -> None:
        """No packet reaches the host any more, nor leaves it."""
        self.lab.driver.run(host, ["ip", "link", "set", "eth0", "down"])


def topology(name: str, node_ttl_s: int, containers: int, backend: str) -> Topology:
    """Three hosts with so many containers each. node-3 has the legacy iptables, which has a lock."""
    simple = Topology.simple(name, hosts=3, containers=containers)
    flavours = ("nft", "nft", "legacy")
    hosts = [
        replace(host, agent={"firewall": {"backend": flavour}})
        for host, flavour in zip(simple.hosts, flavours, strict=True)
    ]
    network = replace(simple.network, backend={"type": backend})
    return replace(simple, hosts=tuple(hosts), network=network, settings=Settings(node_ttl_s=node_ttl_s))


@contextmanager
def served_lab(
    name: str, *, node_ttl_s: int = NODE_TTL_S, containers: int = 1, backend: str = "vxlan"
) -> Iterator[ServedLab]:
    """Up, with `web` in place and answered by every container to every host. Hosts refuse each call at once,
    where otherwise the kernel would tell one client of at most one a second (icmp(7), icmp_ratelimit)."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab.running(topology(name, node_ttl_s, containers, backend)))
        listening = stack.enter_context(servers())
        places = {
            place: stack.enter_context(named_netns(namespace(name, place)))
            for place in (*(host.name for host in lab.hosts), *(c.name for c in lab.containers), "outside")
        }
        for container in lab.containers:
            for protocol in ("tcp", "udp"):
                listening.listen(places[container.name], container.name, protocol, PORT)
            lab.driver.run(container.host, ["sysctl", "-w", "net.ipv4.icmp_ratelimit=0"])
        store = lab.store()
        stack.callback(store.close)
        served = ServedLab(lab, listening, places, store)
        served.apply(by_selector())
        for host in lab.hosts:
            served.await_everybody(host.name)
        yield served
