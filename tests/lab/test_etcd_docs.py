"""docs/etcd.md as it is typed: from three machines to a secured cluster with agents, and what comes later.

The machines are namespaces with files of their own (`helpers.machines`). What they lack is played: systemctl
starts and stops etcd and the agent in the way their units do, sudo and apt-get do nothing. Home is this machine
in the network of a fourth one; ssh and scp find the machines by an inventory. Commands are the page's, in its
order; each test reads on where the one before it ended.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.docs import Page, Step, page
from helpers.etcd import requires_etcd
from helpers.eventually import eventually
from helpers.machines import (
    CONFIG,
    HOME,
    LOG,
    SOCKET,
    Machine,
    Machines,
    bare_machines,
    requires_machines,
)

from overlaynet.client import UnixConnection
from overlaynet.lab.launch import toml

pytestmark = [pytest.mark.lab, requires_etcd, requires_machines, pytest.mark.timeout(240)]

CLONE = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0

SUDO = r"""#!/bin/sh
if [ "$1" = -u ]; then set -- setpriv --reuid="$2" --regid="$2" --clear-groups -- "$@"; shift 7; fi
exec env "$@"
"""
SYSTEMCTL = r"""#!/bin/sh
for unit in "$@"; do :; done
pid=/run/played-$unit.pid
stop() {
    [ -f $pid ] || return 0
    kill "$(cat $pid)" 2>/dev/null
    while kill -0 "$(cat $pid)" 2>/dev/null; do sleep 0.05; done
    rm $pid
}
begin() { setsid setpriv "$@" </dev/null >>"$log" 2>&1 & echo $! >$pid; }
start() {
    case $unit in
    etcd)
        log=/var/log/etcd.log
        install -d -o etcd -g etcd /var/lib/etcd
        set -a; . /etc/default/etcd; set +a
        begin --reuid=etcd --regid=etcd --init-groups -- etcd
        ;;
    overlaynet-agent)
        log=/run/overlaynet/agent.log
        set -- --no-new-privs --bounding-set=-all,+net_admin,+net_raw
        begin "$@" -- overlaynet-agent run --log-level debug
        ;;
    esac
}
case $1 in
start) start ;;
stop) stop ;;
restart) stop; start ;;
enable) ;;
*) echo "not played: $*" >&2; exit 1 ;;
esac
"""
SSH = '#!/bin/sh\nexec {tool} -F {inventory} "$@"\n'


class Reader:
    """Types what the page says."""

    def __init__(self, machines: Machines, page: Page, where: Path) -> None:
        *self.machines, self._at_home = machines
        self.page = page
        self.home = where / "home"
        self.bin = where / "bin"
        for directory in (self.home, self.bin):
            directory.mkdir()
        for tool in ("ssh", "scp"):
            program = shutil.which(tool)
            self._put(self.bin / tool, SSH.format(tool=program, inventory=machines.inventory))
        self._put(self.bin / "sudo", SUDO)
        self._put(self.bin / "apt-get", "#!/bin/sh\n")
        for machine in machines:
            for name, text in {"sudo": SUDO, "apt-get": "#!/bin/sh\n", "systemctl": SYSTEMCTL}.items():
                self._put(machine.path(f"/usr/local/bin/{name}"), text)
        self._exported = ""

    def _put(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def read(self, *headings: str) -> None:
        for step in self.page.of(*headings):
            self.type(step)

    def type(self, step: Step) -> None:
        if step.place == "at home":
            self.at_home(step.commands)
            return
        for machine in self.machines:
            if step.place in ("on each machine", f"on {machine.name}"):
                self.at(machine, step.commands)

    def at_home(self, commands: str) -> str:
        """What was exported before still is: it is one terminal."""
        self._exported += "".join(re.findall(r"^export .*\n", commands, re.M))
        environ = {**os.environ, "HOME": str(self.home), "PATH": f"{self.bin}:{os.environ['PATH']}"}
        argv = ["nsenter", f"--target={self._at_home.pid}", "--net", "--", "sh", "-eu"]
        return self._sh(argv, self._exported + commands, env=environ, cwd=CLONE)

    def at(self, machine: Machine, commands: str) -> str:
        return self._sh(machine.argv("sh", "-eu"), f"cd {HOME}\n{commands}")

    def _sh(self, argv: list[str], commands: str, **more: Any) -> str:
        done = subprocess.run(
            argv, input=commands, capture_output=True, text=True, timeout=60, check=False, **more
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def write_settings(self, machine: Machine, *fences: int) -> None:
        """The page's settings of etcd in place of those that are there."""
        texts = [content for kind, content in self.page.fences if kind == "toml"]
        settings = tomllib.loads("".join(texts[number] for number in fences))
        machine.path(CONFIG).write_text(toml({"node": {"interface": "eth0"}, **settings}))

    def settled(self, machine: Machine) -> bool:
        """Whether the agent knows all peers and has nothing to complain of."""
        answer = machine.agent().readiness()
        assert answer["state"] == "ready", answer
        return len(machine.agent().get("/v1/status")["peers"]) == len(self.machines) - 1


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Whoever has read the page up to the first network config."""
    where = tmp_path_factory.mktemp("docs")
    with bare_machines(where, 4) as machines:
        made = Reader(machines, page("etcd.md"), where)
        made.read("Certificates", "Members")
        eventually(lambda: etcd_serves(made.machines), deadline_s=PATIENCE_S)
        made.read("Users")
        steps = made.page.of("Hosts")
        for step in steps[:-1]:
            made.type(step)
        for machine in made.machines:
            made.write_settings(machine, 0)
        made.type(steps[-1])
        for machine in made.machines:
            eventually(machine.path(SOCKET).exists, deadline_s=PATIENCE_S)
        made.read("As an operator")
        for machine in made.machines:
            machine.wait_for_agent()
        yield made


def etcd_serves(machines: Sequence[Machine]) -> bool:
    return all(b"ready to serve client requests" in m.path("/var/log/etcd.log").read_bytes() for m in machines)


def test_agents_form_a_network(reader: Reader) -> None:
    for machine in reader.machines:
        eventually(lambda machine=machine: reader.settled(machine), deadline_s=PATIENCE_S)


SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
"""


def test_agent_may_not_write_a_service_and_an_operator_may(reader: Reader) -> None:
    machine = reader.machines[0]
    machine.path("/run/web.yaml").write_text(SERVICE)
    apply = ("overlaynet", "-l", "local", "apply", "-f", "/run/web.yaml")
    who = "as the user named in /etc/overlaynet/etcd/client.crt: permission denied"
    for argv, asked in ((apply, "read /overlaynet/config"), (SET_NETWORK, "write /coreos.com/network/config")):
        said = refusal(machine, *argv)
        assert f"error OVL-302: etcd refused to {asked}" in said
        assert who in said
        assert "sudo OVERLAYNET_ETCD_CERT=" in said
    operator = [f"OVERLAYNET_ETCD_{name.upper()}={HOME}/operator/client.{end}" for name, end in PAIR.items()]
    machine.run("env", *operator, *apply)
    assert services_of(reader.machines[2]) == ["web"]


SET_NETWORK = ("overlaynet", "-l", "local", "network", "set", "-y", f"{HOME}/network.json")
PAIR = {"cert": "crt", "key": "key"}


def refusal(machine: Machine, *argv: str) -> str:
    done = subprocess.run(machine.argv(*argv), capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert done.returncode == 3, done.stdout + done.stderr
    return done.stdout + done.stderr


def services_of(machine: Machine) -> list[str]:
    document = json.loads(machine.run("overlaynet", "-l", "local", "get", "services", "-o", "json"))
    return [item["name"] for item in document["items"]]


def test_container_is_attached_under_the_agents_role(reader: Reader) -> None:
    machine = reader.machines[0]
    machine.run("ip", "netns", "add", "web")
    machine.run("overlaynet", "-l", "local", "attach", "web", "--netns", "web", "--label", "app=web")
    there = ["/overlaynet/workloads/node-1/default/web"]
    eventually(lambda: containers(reader) == there, deadline_s=PATIENCE_S)
    machine.run("overlaynet", "-l", "local", "detach", "web")
    eventually(lambda: not containers(reader), deadline_s=PATIENCE_S)


def containers(reader: Reader) -> list[str]:
    return reader.at_home("etcdctl get --prefix --keys-only /overlaynet/workloads/").split()


def test_host_with_a_password_leaves_no_trace_of_it(reader: Reader) -> None:
    reader.read("Passwords")
    machine = reader.machines[2]
    reader.write_settings(machine, 0, 1)
    machine.run("systemctl", "restart", "overlaynet-agent")
    machine.wait_for_agent()
    eventually(lambda: reader.settled(machine), deadline_s=PATIENCE_S)
    secrets = [(reader.home / "etcd-passwords" / "agent-3.password").read_text().strip()]
    assert machine.path("/etc/overlaynet/etcd/password").read_text().strip() in secrets
    said = everything_said(machine)
    assert "endpoints=https://192.168.56.11:2379" in said
    for secret in (*secrets, "PRIVATE KEY"):
        assert secret not in said
    assert not TOKEN.search(said)


TOKEN = re.compile(r"\b[A-Za-z]{16}\.\d+\b")
"""What etcd gives whoever logs in (etcd's auth/simple_token.go): sixteen letters and the index of the entry."""


ANSWERS = ("/v1/health", "/v1/ready", "/v1/status", "/v1/state", "/v1/stale", "/v1/plan", "/metrics")


def answer(machine: Machine, path: str) -> str:
    connection = UnixConnection(machine.path(SOCKET), 20.0)
    connection.request("GET", path)
    text = connection.getresponse().read().decode()
    connection.close()
    assert text
    return text


def everything_said(machine: Machine) -> str:
    """The agent's log at debug level, its answers, its files, what commands say, and every command line."""
    said = [machine.path(LOG).read_text()]
    assert " DEBUG " in said[0]
    said += [answer(machine, path) for path in ANSWERS]
    for words in ("status", "get leases -o json", "doctor", "apply -f /run/none.yaml -o json"):
        argv = machine.argv("overlaynet", "-l", "local", *words.split())
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd="/")
        assert done.stdout
        said += [done.stdout, done.stderr]
    for place in ("/run/overlaynet", "/run/flannel", "/var/lib/overlaynet"):
        said += [contents(path) for path in machine.path(place).rglob("*") if path.is_file()]
    for process in machine.path("/proc").glob("[0-9]*"):
        said += [contents(process / name) for name in ("cmdline", "environ")]
    return "".join(said)


def contents(path: Path) -> str:
    """Nothing of a file that was replaced meanwhile, or of a process that has ended."""
    try:
        return path.read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_password_is_changed_and_certificates_are_renewed_while_agents_run(reader: Reader) -> None:
    machine = reader.machines[2]
    pid = machine.path("/run/overlaynet/agent.pid").read_text()
    change = [
        step
        for step in reader.page.of("Passwords")
        if "passwd" in step.commands or "agent-3.p" in step.commands
    ]
    for step in change[-2:]:
        reader.type(step)
    reader.read("Renewal")
    served = reader.at_home(
        "openssl s_client -connect 192.168.56.13:2379 </dev/null 2>/dev/null | openssl x509 -noout -serial"
    )
    renewed = reader.at_home("openssl x509 -in ~/etcd-certificates/members/node-3/server.crt -noout -serial")
    assert served == renewed
    peer = put_peer(reader, 9)
    for one in reader.machines:
        eventually(lambda one=one: knows(one, peer), deadline_s=PATIENCE_S)
    machine.run("overlaynet-agent", "plan")  # a login of its own, by the new password
    assert machine.path("/run/overlaynet/agent.pid").read_text() == pid


def put_peer(reader: Reader, number: int) -> str:
    """Reserve a subnet, as an operator does; answer which. An agent may have taken any, by chance."""
    operator = [f"OVERLAYNET_ETCD_{name.upper()}={HOME}/operator/client.{end}" for name, end in PAIR.items()]
    taken = [eventually(lambda one=one: own_subnet(one), deadline_s=PATIENCE_S) for one in reader.machines]
    subnet = next(s for n in range(number, 256, 10) if (s := f"10.244.{n}.0/24") not in taken)
    argv = [
        "overlaynet",
        "-l",
        "local",
        "lease",
        "reserve",
        subnet,
        "--public-ip",
        f"192.168.56.{100 + number}",
    ]
    reader.machines[0].run("env", *operator, *argv)
    return subnet


def knows(machine: Machine, subnet: str) -> bool:
    return subnet in json.dumps(machine.agent().get("/v1/status")["peers"])


def test_restored_backup_is_corrected_by_agents_and_a_lost_member_replaced(reader: Reader) -> None:
    """One of the agents has a token from before, which a restored etcd neither takes nor refuses."""
    subnets = {one.name: own_subnet(one) for one in reader.machines}
    reader.read("Backup and restore")
    eventually(lambda: healthy(reader), deadline_s=PATIENCE_S)
    for step in reader.page.of("A member that is gone for good"):
        eventually(lambda step=step: reader.type(step) or True, deadline_s=PATIENCE_S)  # "type it again"
    eventually(lambda: healthy(reader), deadline_s=PATIENCE_S)
    peer = put_peer(reader, 20)
    for one in reader.machines:
        eventually(lambda one=one: knows(one, peer), deadline_s=PATIENCE_S)
        eventually(lambda one=one: own_subnet(one) == subnets[one.name], deadline_s=PATIENCE_S)


def healthy(reader: Reader) -> bool:
    said = reader.at_home("etcdctl endpoint health 2>&1 || true")
    return said.count(" is healthy") == len(reader.machines)


def own_subnet(machine: Machine) -> str:
    """Nothing as long as it has none."""
    lease = machine.agent().get("/v1/status")["lease"]
    return str(lease["subnets"][0]) if lease else ""
