"""A cluster in memory for the command line: two hosts with a container each, etcd, kernels, rules, agents.

Every part can be broken by hand: take a route from `kernels`, let `store_error` or `probe_errors` speak,
stop an agent by leaving it out of `agents`, decide what a ping finds in `unreachable`. No packet can be sent,
so traces are inconclusive; they are kept where `traces_in` says, which is nowhere at first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from subprocess import Popen
from typing import Any

from overlaynet.addr import Mac, container_mac, gateway_address, vtep_address
from overlaynet.cluster.cluster import Container, Host, Outside
from overlaynet.config import AgentConfig, build
from overlaynet.core.jsonstate import kernel_to_json, rules_to_json
from overlaynet.core.keys import Keys
from overlaynet.core.view import View
from overlaynet.core.workload import host_device, veth_tag
from overlaynet.errors import AgentUnreachable, LabFailed, NotFound, OverlayError, UsageError
from overlaynet.model import Identity, Lease, NodeRecord, Vtep, Workload
from overlaynet.ports import Put, Store, Wiring
from overlaynet.probe import survey as surveying
from overlaynet.probe.place import sysctls
from overlaynet.state import RuleSet
from overlaynet.store import codec
from overlaynet.store.memory import MemoryStore
from overlaynet.testing.fake_firewall import FakeFirewall
from overlaynet.testing.fake_kernel import FakeKernel

CONTAINER_FD = 100
NETWORK = b'{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}'


class Unclosed(MemoryStore):
    """Commands close what they open; the next one opens the same."""

    def close(self) -> None:
        """Stay open."""


class FakeAgent:
    """An agent that answers from a table, and fails like one that is not there without it."""

    def __init__(self, answers: Mapping[str, Any] | None) -> None:
        self.answers = answers

    def get(self, path: str) -> Any:
        if self.answers is None:
            raise AgentUnreachable(
                "no agent answers at agent.sock", evidence="connection refused; pid file: none"
            )
        return self.answers[path]

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self.get(path)


class FakeSession:
    """A probe that stays, of a fake cluster: every place is on the one machine."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, job: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        if job["op"] != "places":
            raise UsageError(f"there is no operation {job['op']!r}", evidence="operations: places")
        found = [self._cluster.place(p["name"], firewall=job.get("firewall", False)) for p in job["places"]]
        return {"kind": "Places", "places": found}

    def close(self) -> None:
        """Nothing was opened."""


class FakeCluster:
    """`overlaynet.cluster.cluster.Cluster` without a machine."""

    name = "fake"
    one_machine = True

    def __init__(self) -> None:
        self.memory = Unclosed()
        self.store_error: OverlayError | None = None
        self.broken = False
        self.probe_errors: dict[str, OverlayError] = {}
        self.agents: dict[str, Mapping[str, Any]] = {}
        self.connections: dict[str, list[dict[str, Any]]] = {}
        self.unreachable: dict[str, tuple[str, str]] = {}
        self.traces_in = Path("/dev/null/traces")
        self.kernels = {host.name: _kernel(host) for host in self.hosts()}
        self.rules = {host.name: FakeFirewall(random_fully=True) for host in self.hosts()}
        self._fill_etcd()
        for host in self.hosts():
            self._wire(host.name)
            self.once(host.name, 1)

    # --- what there is ---------------------------------------------------------------------------

    def hosts(self) -> Sequence[Host]:
        return [Host(f"node-{n}", "netns", f"ovl-fake-node-{n}", f"192.168.50.1{n}") for n in (1, 2)]

    def containers(self) -> Sequence[Container]:
        return [
            Container(w.name, w.node, w.namespace, w.netns).with_record(w)
            for w in (_workload(host.name) for host in self.hosts())
        ]

    def outside(self) -> Outside | None:
        return None

    def has_faults(self) -> bool:
        return self.broken

    def traces(self) -> Path:
        return self.traces_in

    def places(self) -> Sequence[str]:
        return [h.name for h in self.hosts()] + [c.name for c in self.containers()]

    def config(self, host: str) -> AgentConfig:
        return build({("node", "name"): host, ("node", "interface"): ("eth0",)})

    def identity(self, host: str) -> Identity | None:
        return _identity(host)

    def workloads(self, host: str) -> Sequence[Workload] | None:
        return None

    def keys(self) -> Keys:
        return Keys()

    # --- ways of asking --------------------------------------------------------------------------

    def store(self) -> Store:
        if self.store_error:
            raise self.store_error
        return self.memory

    def probe(self, host: str, job: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        if host in self.probe_errors:
            raise self.probe_errors[host]
        if job["op"] == "ping":
            return {"results": [self._ping(item) for item in job["pings"]]}
        if job["op"] == "connections":
            return {"endpoints": self.connections.get(host, [])}
        kernel = self.kernels[host].observe(job["sysctls"])
        return {"kernel": kernel_to_json(kernel), "rules": rules_to_json(self.rules[host].observe())}

    def session(self, host: str, timeout_s: float) -> FakeSession:
        if host in self.probe_errors:
            raise self.probe_errors[host]
        return FakeSession(self)

    def stream(self, host: str, job: Mapping[str, Any]) -> Popen[bytes]:
        raise LabFailed(f"the probe on {host} could not be started", evidence="there is nothing to listen at")

    def place(self, name: str, *, firewall: bool) -> dict[str, Any]:
        """A host or container of that name as a probe tells of it."""
        host = next(h.name for h in self.hosts() if name in (h.name, f"web-{_number(h.name)}"))
        kernel = self.kernels[host] if name == host else self.kernels[host].container(CONTAINER_FD)
        rules = self.rules[host].observe() if name == host else RuleSet("nft")
        seen = kernel.observe(list(sysctls(kernel.observe())))
        return {
            "name": name,
            "kernel": kernel_to_json(seen),
            "rules": rules_to_json(rules) if firewall else None,
            "nft": None,
            "listening": [],
            "unread": [],
            "error": None,
        }

    def _ping(self, item: Mapping[str, Any]) -> dict[str, Any]:
        error, evidence = self.unreachable.get(item["id"], (None, ""))
        rtt_ms = 0.5 if error is None else None
        return {"id": item["id"], "sent": 1, "rtt_ms": rtt_ms, "error": error, "evidence": evidence}

    def agent(self, host: str, timeout_s: float) -> Any:
        return FakeAgent(self.agents.get(host))

    def wire(self, host: str, body: Mapping[str, Any], where: str, pid: int | None) -> Mapping[str, Any]:
        raise AgentUnreachable(f"no agent answers on {host}")

    def log(self, host: str, lines: int) -> Sequence[str]:
        raise NotFound(f"there is no log of {host}'s agent")

    def follow(self, host: str) -> Popen[bytes]:
        raise NotFound(f"there is no log of {host}'s agent")

    def start(self, target: str, argv: Sequence[str]) -> Popen[bytes]:
        return Popen(["env", f"TARGET={target}", *argv])

    def once(self, host: str, timeout_s: float) -> Mapping[str, Any]:
        survey = self.survey(host)
        assert survey.plan is not None
        failures = self.kernels[host].apply(survey.plan.changes)
        self.rules[host].apply(survey.plan.rule_changes, survey.rules)
        failed = [{"change": str(f.change), "error": f.error.as_json()} for f in failures]
        return {"changes": len(survey.plan.changes) + len(survey.plan.rule_changes), "failures": failed}

    def survey(self, host: str) -> surveying.Survey:
        keys = self.keys()
        view = View.of([codec.decode(i, keys) for i in self.memory.read(keys.watched).items], keys)
        known = surveying.Known(host, self.config(host), self.identity(host), view)
        return surveying.survey(known, self.probe(host, surveying.job(view, known.config), 1))

    # --- making it -------------------------------------------------------------------------------

    def _fill_etcd(self) -> None:
        keys, lease_id = self.keys(), self.memory.grant(86_400).lease_id
        writes = [Put(keys.network_config, NETWORK)]
        for host in self.hosts():
            lease, record, workload = _lease(host.name), _record(host.name), _workload(host.name)
            writes.append(Put(keys.lease(lease.subnets), codec.encode_lease(lease), lease_id))
            writes.append(Put(keys.node(host.name), codec.encode_node(record), lease_id))
            writes.append(Put(keys.workload(host.name, workload.id), codec.encode_workload(workload), lease_id))
        assert self.memory.commit([], writes).ok

    def _wire(self, host: str) -> None:
        workload = _workload(host)
        self.kernels[host].attach(
            Wiring(
                host_device=workload.device,
                tag=veth_tag(workload.id),
                container_device="eth0",
                mac=workload.mac,
                addresses=(ip_interface(f"{workload.ips[0]}/24"),),
                gateways=(gateway_address(_identity(host).subnets[0]),),
                mtu=1450,
                netns_fd=CONTAINER_FD,
                netlink_fd=101,
            )
        )


def ready_agent(host: str) -> dict[str, Any]:
    """The answers of a host's agent that is well."""
    status = {
        "agent": {"state": "ready", "pid": 100 + int(host[-1]), "version": "0.1.0", "uptime_s": 5.0},
        "lease": {"subnets": [f"10.244.{host[-1]}.0/24"]},
        "network": {
            "networks": ["10.244.0.0/16"],
            "backend_type": "vxlan",
            "vni": 1,
            "port": 8472,
            "mtu": 1450,
        },
        "peers": [{}],
        "containers": [{}],
        "services": {
            "served": 1,
            "ports": 2,
            "endpoints": 3,
            "outside_service_network": [],
            "without_local_endpoints": {"internal": 0, "external": 0},
            "synced_s_ago": 0.5,
            "sync_failures": 0,
            "connections_forgotten": 0,
            "fallbacks": [],
        },
        "pending": 0,
        "problems": [],
        "failures": [],
        "holds": [],
    }
    return {
        "/v1/status": status,
        "/v1/stale": {"leases": []},
        "/v1/repair": {"changes": 0, "failures": []},
    }


def _number(host: str) -> int:
    return int(host[-1])


def _kernel(host: Host) -> FakeKernel:
    kernel = FakeKernel()
    ip = ip_interface(f"{host.underlay_ip}/24")
    kernel.add_device("eth0", mac=container_mac(ip.ip), addresses=(ip,))
    return kernel


def _identity(host: str) -> Identity:
    subnet = ip_network(f"10.244.{_number(host)}.0/24")
    return Identity(f"id-{host}", Mac.from_bytes(b"\x02" + subnet.network_address.packed + b"\x00"), (subnet,))


def _lease(host: str) -> Lease:
    identity = _identity(host)
    return Lease(
        subnets=identity.subnets,
        public_ips=(ip_address(f"192.168.50.1{_number(host)}"),),
        backend_type="vxlan",
        vteps=(Vtep(4, 1, identity.vtep_mac),),
        node_id=identity.node_id,
        node_name=host,
    )


def _record(host: str) -> NodeRecord:
    return NodeRecord(host, _identity(host).node_id, _lease(host).public_ips, "eth0")


def _workload(host: str) -> Workload:
    name = f"web-{_number(host)}"
    ip = vtep_address(_identity(host).subnets[0]) + 2
    return Workload(
        name=name,
        namespace="default",
        node=host,
        ips=(ip,),
        mac=container_mac(ip),
        device=host_device(f"default/{name}"),
        netns=f"ovl-fake-{name}",
        labels={"app": "web"},
    )
