"""Three etcd members with TLS, users and roles, and agents (without kernels) that know no other etcd.

What is shown: the agents' role is enough for all of an agent's life and for nothing else; no lease and no news
is lost when members die; and every way to be refused is told in words that lead on.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from helpers import secure_etcd
from helpers.etcd import requires_etcd
from helpers.eventually import eventually
from helpers.light_agent import LightAgent
from helpers.model import KEYS, flannel_lease, key_of, network, workload
from helpers.secure_etcd import AGENT, OPERATOR, CommandRefused, SecureEtcd, certificates

from overlaynet.errors import CertificateRefused, OverlayError, StoreRefused, StoreUnavailable
from overlaynet.events import Failed, StoreLost
from overlaynet.ports import Compare, Delete, Notice, Put, WatchEnded
from overlaynet.store import codec
from overlaynet.store.etcd import EtcdStore

pytestmark = [pytest.mark.lab, requires_etcd]

T = TypeVar("T")
PATIENCE_S = 60.0
SILENCE_S = 0.5
"""How long to listen where silence is expected."""


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureEtcd]:
    """Users have passwords. The certificates `node-1` (an agent's), `alice` (an operator's) and `root` are
    logins by themselves; `host` is nobody's, so that only a password makes it somebody."""
    with secure_etcd.running(tmp_path_factory.mktemp("etcd")) as made:
        certificates("client", made.folder, "host")
        put_network(made)
        yield made


def put_network(etcd: SecureEtcd) -> None:
    store = etcd.connect("alice")
    store.commit([], [Put(KEYS.network_config, codec.encode_network_config(network(count=199)))])
    store.close()


@pytest.fixture
def join(etcd: SecureEtcd) -> Iterator[Callable[..., LightAgent]]:
    """Starts an agent; each is stopped and its keys are removed."""
    agents: list[LightAgent] = []

    def start(number: int, store: EtcdStore | None = None) -> LightAgent:
        agent = LightAgent([], number, store or etcd.connect("node-1")).start()
        agents.append(agent)
        eventually(lambda: agent.settled, deadline_s=PATIENCE_S)
        return agent

    yield start
    for agent in agents:
        agent.stop()
    store = etcd.connect(deadline_s=10.0)
    everything = [KEYS.subnets, KEYS.nodes, KEYS.addresses, KEYS.vteps, KEYS.workloads]
    found = eventually(lambda: attempt(lambda: store.read(everything)), deadline_s=PATIENCE_S)
    store.commit([], [Delete(item.key) for item in found.items])
    store.close()


@pytest.fixture
def whole(etcd: SecureEtcd, join: Callable[..., LightAgent]) -> Iterator[None]:
    """Members that a test kills are back afterwards, before keys are removed."""
    yield
    for member in etcd.members:
        if not member.is_running:
            member.start()


def refusal(store: EtcdStore, kind: type[OverlayError] = StoreRefused) -> OverlayError:
    try:
        with pytest.raises(kind) as caught:
            store.read([KEYS.nodes])
    finally:
        store.close()
    return caught.value


# --- the role -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("certificate", "user"),
    [pytest.param("node-1", None, id="by-certificate"), pytest.param("host", AGENT, id="by-password")],
)
def test_agents_role_is_enough_for_an_agents_life(
    etcd: SecureEtcd, join: Callable[..., LightAgent], certificate: str, user: str | None
) -> None:
    one, other = join(1, etcd.store(certificate, user)), join(2)
    eventually(lambda: len(one.engine.view.leases) == len(other.engine.view.leases) == 2)
    assert one.etcd.time_to_live(one.engine.node_lease) > 0
    assert one.subnet is not None
    container = workload(int(one.subnet.split(".")[2]), node="node-1")
    key = KEYS.workload("node-1", container.id)
    one.inbox.put(lambda: one.engine.workloads.update({container.id: container}))
    eventually(lambda: list(other.engine.view.workloads) == [key])
    before = one.subnet
    one.end_loop()
    one.worker.linger(one.engine.view.nodes[KEYS.node("node-1")].value, [container], 300)
    one.stop()
    assert lease_left(etcd, KEYS.node("node-1")) > 200
    assert lease_left(etcd, key) > 200
    again = join(1, etcd.store(certificate, user))
    assert again.subnet == before
    eventually(lambda: not other.engine.view.workloads)
    assert not [event for event in (*one.heard, *again.heard) if isinstance(event, Failed | StoreLost)]


def lease_left(etcd: SecureEtcd, key: str) -> int:
    store = etcd.connect()
    try:
        return store.time_to_live(store.read([key]).items[0].lease_id)
    finally:
        store.close()


FORBIDDEN = {
    "network-config": Put(KEYS.network_config, b"{}"),
    "settings": Put(KEYS.settings, b"{}"),
    "service": Put(KEYS.service("default/web"), b"{}"),
    "slice": Delete(KEYS.slice("default/web")),
    "vip": Put(f"{KEYS.vips}10.112.0.1", b"x"),
    "node-port": Put(KEYS.node_port("tcp", 30_080), b"x"),
    "beside-the-leases": Put("/coreos.com/network/subnets-old", b"x"),
    "elsewhere": Put("/registry/pods/x", b"x"),
}


@pytest.mark.parametrize("write", FORBIDDEN.values(), ids=FORBIDDEN)
def test_agents_role_is_enough_for_nothing_else(etcd: SecureEtcd, write: Put | Delete) -> None:
    agent, root = etcd.store("host", AGENT), etcd.connect()
    before = root.read([write.key])
    with pytest.raises(StoreRefused) as caught:
        agent.commit([], [write])
    assert root.read([write.key]).items == before.items
    assert caught.value.message == f"etcd refused to write {write.key} as user {AGENT}: permission denied"
    assert f"user get {AGENT} --detail" in caught.value.next[0]
    assert "OVERLAYNET_ETCD_CERT=" in caught.value.next[1]
    agent.close()
    root.close()


def test_agent_that_is_let_down_by_its_certificate_is_told_which(etcd: SecureEtcd) -> None:
    agent, notices = etcd.connect("node-1"), list[Notice]()
    with pytest.raises(
        StoreRefused, match=r"refused to read /overlaynet/vips/ as the user named in .*/client\.crt"
    ):
        agent.read([KEYS.vips])
    agent.watch([KEYS.nodes, KEYS.vips], 0, notices.append)
    eventually(lambda: notices)
    assert isinstance(notices[0], WatchEnded)
    assert isinstance(notices[0].error, StoreRefused)
    assert notices[0].error.message.endswith("client.crt: permission denied")
    agent.close()


def test_operator_writes_network_and_services_and_no_nodes(etcd: SecureEtcd) -> None:
    operator = etcd.store("alice")
    assert operator.commit([Compare(KEYS.settings, 0)], [Put(KEYS.settings, b"{}")]).ok
    keys = (KEYS.service("default/x"), KEYS.slice("default/x"), f"{KEYS.vips}x", KEYS.node_port("tcp", 1))
    assert operator.commit([], [Put(key, b"{}") for key in keys]).ok
    assert operator.commit([], [Delete(key) for key in (*keys, KEYS.settings)]).ok
    operator.read(KEYS.watched)
    for key in (KEYS.node("node-1"), KEYS.workload("node-1", "default/x")):
        with pytest.raises(StoreRefused, match=f"refused to write {key}"):
            operator.commit([], [Put(key, b"{}")])
    operator.close()


def test_no_user_but_root_may_look_at_users(etcd: SecureEtcd) -> None:
    assert AGENT in etcd.etcdctl("user", "list")
    with pytest.raises(CommandRefused, match="permission denied"):
        etcd.etcdctl("user", "list", name="alice")


# --- members that die -----------------------------------------------------------------------------


@pytest.mark.usefixtures("whole")
def test_leader_killed_during_claims_and_watches_costs_no_lease_and_no_news(
    etcd: SecureEtcd, join: Callable[..., LightAgent]
) -> None:
    watching = [join(number) for number in (1, 2)]
    operator = etcd.connect("alice")
    put_peer(operator, 200)
    leader = etcd.leader
    claiming = [LightAgent([], number, etcd.connect("node-1")).start() for number in range(3, 8)]
    leader.kill()
    put_peer(operator, 201)
    agents = [*watching, *claiming]
    try:
        eventually(lambda: all(agent.settled for agent in agents), deadline_s=PATIENCE_S)
        eventually(lambda: all_know_all(operator, agents), deadline_s=PATIENCE_S)
        assert len({agent.subnet for agent in agents}) == len(agents)
        assert len(watching[0].engine.view.leases) == len(agents) + 2
        leader.start()
        put_peer(operator, 202)
        eventually(lambda: all_know_all(operator, agents), deadline_s=PATIENCE_S)
    finally:
        for agent in claiming:
            agent.stop()
        operator.close()


def all_know_all(store: EtcdStore, agents: list[LightAgent]) -> bool:
    leases = {item.key: item.mod_revision for item in attempt(lambda: store.read([KEYS.subnets])).items}
    known = [{key: item.mod_revision for key, item in dict(a.engine.view.leases).items()} for a in agents]
    return all(one == leases for one in known)


def put_peer(store: EtcdStore, number: int) -> None:
    lease = flannel_lease(number)
    write = Put(key_of(lease), codec.encode_lease(lease))
    eventually(lambda: attempt(lambda: store.commit([], [write])).ok, deadline_s=PATIENCE_S)


def attempt(call: Callable[[], T]) -> T:
    try:
        return call()
    except OverlayError as error:
        raise AssertionError(error.message) from error


@pytest.mark.usefixtures("whole")
def test_two_of_three_dead_is_an_outage_that_ends_with_one_of_them(
    etcd: SecureEtcd, join: Callable[..., LightAgent]
) -> None:
    agent, other = join(1), join(2)
    eventually(lambda: len(agent.engine.view.leases) == len(other.engine.view.leases) == 2)
    leases = dict(agent.engine.view.leases)
    for member in etcd.members[:2]:
        member.kill()
    store = etcd.connect("node-1")
    assert refusal(store, StoreUnavailable).code == "OVL-301"
    assert dict(agent.engine.view.leases) == leases
    assert agent.subnet is not None
    etcd.members[0].start()
    operator = etcd.connect("alice")
    put_peer(operator, 203)
    eventually(lambda: all_know_all(operator, [agent, other]), deadline_s=PATIENCE_S)
    operator.close()


@pytest.mark.usefixtures("whole")
def test_password_is_good_at_a_member_that_forgot_its_tokens(
    etcd: SecureEtcd, join: Callable[..., LightAgent]
) -> None:
    agent = join(1, etcd.store("host", AGENT))
    for member in etcd.members:
        member.kill()
        member.start()
    operator = etcd.connect("alice")
    put_peer(operator, 204)
    eventually(lambda: all_know_all(operator, [agent]), deadline_s=PATIENCE_S)
    operator.close()


# --- who is not let in ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strangers(etcd: SecureEtcd) -> Path:
    """Certificates of authorities that this etcd has never heard of."""
    folder = etcd.where / "strangers"
    certificates("new", folder)
    certificates("agent", folder, "node-1")
    return folder / "clients" / "node-1"


def test_authority_that_did_not_sign_etcds_certificate_is_refused_by_us(
    etcd: SecureEtcd, strangers: Path
) -> None:
    ours = etcd.client("node-1")
    store = EtcdStore(etcd.urls, ca=strangers / "ca.crt", cert=ours / "client.crt", key=ours / "client.key")
    error = refusal(store, CertificateRefused)
    assert error.message == "etcd's certificate is not valid by etcd.ca: unable to get local issuer certificate"
    assert error.next[0].startswith("openssl s_client -connect 127.0.0.1:")


def test_certificate_of_another_authority_is_refused_by_etcd(etcd: SecureEtcd, strangers: Path) -> None:
    ca = etcd.client("node-1") / "ca.crt"
    store = EtcdStore(etcd.urls, ca=ca, cert=strangers / "client.crt", key=strangers / "client.key")
    error = refusal(store, CertificateRefused)
    assert error.message == "etcd refuses our certificate: unable to get local issuer certificate"
    assert str(strangers / "client.crt") in error.evidence
    assert error.next[1] == f"openssl verify -CAfile {ca} {strangers / 'client.crt'}"


def test_lack_of_a_certificate_is_told(etcd: SecureEtcd) -> None:
    error = refusal(EtcdStore(etcd.urls, ca=etcd.client("node-1") / "ca.crt"), CertificateRefused)
    assert error.message == "etcd refuses our certificate: there is none: etcd.cert and etcd.key are not set"


def test_certificate_that_ran_out_is_told_and_one_that_was_renewed_taken_without_a_restart(
    etcd: SecureEtcd, join: Callable[..., LightAgent]
) -> None:
    certificates("-d", "0", "agent", etcd.folder, "late")
    place = etcd.client("late")
    store = etcd.connect("late")
    eventually(lambda: expired(place))
    with pytest.raises(CertificateRefused, match="etcd refuses our certificate: certificate has expired"):
        store.read([KEYS.nodes])
    certificates("renew", etcd.folder, "clients/late")
    assert join(1, store).subnet is not None


def expired(place: Path) -> bool:
    """Whether it is no longer valid. With no day of validity it ends in the second in which it begins."""
    argv = ["openssl", "x509", "-in", str(place / "client.crt"), "-noout", "-checkend", "0"]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 1


def test_wrong_password_is_told_and_leaves_no_trace_of_itself(etcd: SecureEtcd, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.touch(0o600)
    file.write_text("hunter2\n")
    place = etcd.client("host")
    store = EtcdStore(
        etcd.urls, ca=place / "ca.crt", cert=place / "client.crt", key=place / "client.key", username=AGENT,
        password_file=file,
    )  # fmt: skip
    error = refusal(store)
    assert "authentication failed" in error.message
    assert f"as user {AGENT}" in error.message
    assert "etcd.password_file" in error.next[0]
    assert "hunter2" not in repr(error.as_json()) + etcd.logs


def test_clients_certificate_opens_no_door_among_members(etcd: SecureEtcd) -> None:
    place, member = etcd.client("node-1"), etcd.members[0]
    peers = (member.certs / "peer-ca.crt", member.certs / "peer")
    assert shake_hands(member.peer_url, *peers, patience_s=SILENCE_S) is None
    refused = shake_hands(member.peer_url, member.certs / "peer-ca.crt", place / "client")
    assert refused is not None
    assert "BAD_CERTIFICATE" in refused
    assert "CERTIFICATE_VERIFY_FAILED" in (
        shake_hands(member.url, place / "ca.crt", place / "client", "x.y") or ""
    )


def shake_hands(
    url: str, ca: Path, pair: Path, name: str = "127.0.0.1", patience_s: float = 30.0
) -> str | None:
    """The reason for which a connection is refused; None if that is not told in time. With TLS 1.3 a client
    hears that its certificate is refused only when it reads."""
    context = ssl.create_default_context(cafile=str(ca))
    context.load_cert_chain(f"{pair}.crt", f"{pair}.key")
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=name) as connection:
                connection.settimeout(patience_s)
                connection.recv(1)
        except TimeoutError:
            return None
        except ssl.SSLError as error:
            return str(error.reason)
    return None


# --- changes while agents run ---------------------------------------------------------------------


def test_rotated_password_is_read_again(etcd: SecureEtcd, join: Callable[..., LightAgent]) -> None:
    agent = join(1, etcd.store("host", AGENT))
    file = etcd.passwords / f"{AGENT}.password"
    etcd.etcdctl("user", "passwd", AGENT, "--interactive=false", stdin="another\n")
    with pytest.raises(StoreRefused, match="authentication failed"):
        agent.etcd.read([KEYS.nodes])
    file.write_text("another\n")
    assert agent.etcd.read([KEYS.nodes]).items
    operator = etcd.connect("alice")
    put_peer(operator, 205)
    eventually(lambda: all_know_all(operator, [agent]), deadline_s=PATIENCE_S)
    assert agent.settled
    operator.close()


def test_authentication_turned_on_while_agents_run_costs_them_nothing(
    etcd: SecureEtcd, join: Callable[..., LightAgent]
) -> None:
    etcd.etcdctl("auth", "disable")
    agents = [join(1), join(2, etcd.store("host", AGENT))]
    before = [agent.subnet for agent in agents]
    etcd.authorize()
    operator = etcd.connect("alice")
    put_peer(operator, 206)
    eventually(lambda: all_know_all(operator, agents), deadline_s=PATIENCE_S)
    for agent in agents:
        assert agent.etcd.keep_alive(agent.engine.node_lease) > 0
        assert agent.etcd.read([KEYS.nodes]).items
    assert [agent.subnet for agent in agents] == before
    with pytest.raises(StoreRefused):
        agents[1].etcd.read([KEYS.vips])
    operator.close()


def test_authorize_needs_root_and_changes_nothing_when_it_is_repeated(etcd: SecureEtcd) -> None:
    before = [etcd.etcdctl("role", "get", role) for role in (AGENT, OPERATOR)]
    etcd.authorize()
    assert [etcd.etcdctl("role", "get", role) for role in (AGENT, OPERATOR)] == before
    with pytest.raises(CommandRefused, match="not user root's: CN=overlaynet-operator"):
        etcd.authorize(name="alice")
