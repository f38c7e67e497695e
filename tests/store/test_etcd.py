"""What only a real etcd can do to us: restart, freeze, lose its disk, ask for a password, speak TLS."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from helpers.etcd import EtcdServer, requires_etcd, running_etcd
from helpers.eventually import eventually

from overlaynet.errors import Compacted, StoreRefused, StoreUnavailable
from overlaynet.ports import KeyPut, Notice, Put, WatchEnded
from overlaynet.store.etcd import EtcdStore
from overlaynet.store.etcd.rpc import etcdrpc, grpc

pytestmark = [pytest.mark.lab, requires_etcd]

T = TypeVar("T")

NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path) as server:
        yield server


@pytest.fixture
def store(etcd: EtcdServer) -> Iterator[EtcdStore]:
    """With patience: a write that was given up may have been carried out, and is then made twice."""
    made = EtcdStore([etcd.url], deadline_s=20.0)
    yield made
    made.close()


def patiently(call: Callable[[], T]) -> T:
    """etcd may just have started, or its disk be busy."""

    def attempt() -> T:
        try:
            return call()
        except StoreUnavailable as error:
            raise AssertionError(error.evidence) from error

    return eventually(attempt, deadline_s=30)


def put(store: EtcdStore, key: str, value: bytes = b"x") -> int:
    return patiently(lambda: store.commit([], [Put(key, value)]).revision)


def values(notices: Sequence[Notice]) -> list[bytes]:
    return [notice.item.value for notice in notices if isinstance(notice, KeyPut)]


READER = """
import sys
from overlaynet.errors import StoreUnavailable
from overlaynet.store.etcd import EtcdStore

store = EtcdStore([sys.argv[1]])
store.read(["/a/"])
store.watch(["/a/"], 1, lambda notice: None)
print("ready", flush=True)
sys.stdin.readline()
try:
    store.read(["/a/"])
except StoreUnavailable:
    print("unavailable")
store.close()
"""
"""Reads, waits for a line, reads again."""


# --- watches that last ----------------------------------------------------------------------------


def test_watch_loses_nothing_and_repeats_nothing_when_etcd_restarts(etcd: EtcdServer, store: EtcdStore) -> None:
    notices: list[Notice] = []
    store.watch(["/a/", "/b/"], put(store, "/a/1") + 1, notices.append)
    for number in range(12):
        put(store, f"/{'ab'[number % 2]}/", b"%d" % number)
        if number in (3, 7):
            etcd.kill()
            etcd.start()
    eventually(lambda: len(notices) >= 12, deadline_s=30)
    for key, numbers in (("/a/", range(0, 12, 2)), ("/b/", range(1, 12, 2))):
        of_prefix = [n for n in notices if isinstance(n, KeyPut) and n.item.key == key]
        assert values(of_prefix) == [b"%d" % number for number in numbers]


def test_watch_begun_while_etcd_is_down_starts_when_it_is_up(etcd: EtcdServer, store: EtcdStore) -> None:
    notices: list[Notice] = []
    revision = put(store, "/a/1")
    etcd.kill()
    store.watch(["/a/"], revision + 1, notices.append)
    etcd.start()
    put(store, "/a/2", b"2")
    eventually(lambda: values(notices) == [b"2"], deadline_s=30)


def test_watch_ends_when_etcd_has_lost_its_disk(etcd: EtcdServer, store: EtcdStore) -> None:
    notices: list[Notice] = []
    for _ in range(5):
        revision = put(store, "/a/1")
    store.watch(["/a/"], revision + 1, notices.append)
    put(store, "/a/2")
    eventually(lambda: len(notices) == 1)
    etcd.kill()
    etcd.empty()
    etcd.start()
    eventually(lambda: len(notices) == 2, deadline_s=30)
    ended = notices[-1]
    assert isinstance(ended, WatchEnded)
    assert isinstance(ended.error, Compacted)
    assert "history" in ended.error.message


def test_nothing_stays_behind_when_a_store_is_closed_in_an_outage(etcd: EtcdServer) -> None:
    store = EtcdStore([etcd.url])
    before = set(threading.enumerate())
    revision = put(store, "/a/1")
    notices: list[Notice] = []
    for _ in range(3):
        store.watch(["/a/", "/b/"], revision + 1, notices.append)
    put(store, "/a/2")
    eventually(lambda: len(notices) == 3)
    etcd.kill()
    store.close()
    eventually(lambda: set(threading.enumerate()) <= before)
    assert len(notices) == 3


def test_watch_may_be_cancelled_by_its_own_sink(store: EtcdStore) -> None:
    notices: list[Notice] = []
    watches = []

    def once(notice: Notice) -> None:
        notices.append(notice)
        watches[0].cancel()

    watches.append(store.watch(["/a/"], put(store, "/a/1") + 1, once))
    put(store, "/a/2")
    put(store, "/a/3")
    eventually(lambda: watches[0].over)
    assert len(notices) == 1


# --- members that do not answer -------------------------------------------------------------------


def test_unreachable_etcd_is_unavailable_with_evidence_and_advice() -> None:
    store = EtcdStore([NOBODY])
    with pytest.raises(StoreUnavailable) as caught:
        store.read(["/a/"])
    store.close()
    assert NOBODY in caught.value.evidence
    assert "refused" in caught.value.message
    assert caught.value.next == (f"etcdctl --endpoints {NOBODY} endpoint health",)


def test_call_to_a_frozen_etcd_ends_at_its_deadline(etcd: EtcdServer) -> None:
    store = EtcdStore([etcd.url], deadline_s=0.5)
    lease = patiently(lambda: store.grant(60).lease_id)
    etcd.freeze()
    for call in (lambda: store.read(["/a/"]), lambda: store.keep_alive(lease), lambda: store.grant(5)):
        with pytest.raises(StoreUnavailable):
            call()
    etcd.thaw()
    put(store, "/a/1")
    assert patiently(lambda: store.keep_alive(lease)) == 60
    store.close()


def test_next_member_is_asked_when_one_does_not_answer(etcd: EtcdServer) -> None:
    store = EtcdStore([NOBODY, etcd.url])
    assert store.commit([], [Put("/a/1", b"1")]).ok
    assert values_of(store) == [b"1"]
    store.close()


def test_frozen_member_costs_one_call_and_is_left(etcd: EtcdServer, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    with running_etcd(second) as other:
        for server, value in ((etcd, b"first"), (other, b"second")):
            beside = EtcdStore([server.url])
            put(beside, "/a/1", value)
            beside.close()
        store = EtcdStore([etcd.url, other.url], deadline_s=4.0)
        assert values_of(store) == [b"first"]
        etcd.freeze()
        with pytest.raises(StoreUnavailable):
            store.read(["/a/"])
        assert values_of(store) == [b"second"]
        store.close()


def test_watch_notices_that_its_member_is_frozen(etcd: EtcdServer, tmp_path: Path) -> None:
    """Nothing is asked on a watch's stream: only pings tell. The other member has a history of its own, and
    the watch ending over that proves that it has moved."""
    second = tmp_path / "second"
    second.mkdir()
    with running_etcd(second) as other:
        store, notices = EtcdStore([etcd.url, other.url]), list[Notice]()
        revision = [put(store, "/a/1") for _ in range(5)][-1]
        store.watch(["/a/"], revision, notices.append)
        eventually(lambda: len(notices) == 1)
        etcd.freeze()
        eventually(lambda: len(notices) == 2, deadline_s=60)
        store.close()
    assert isinstance(notices[1], WatchEnded)


def test_watch_goes_to_the_next_member_when_one_does_not_answer(etcd: EtcdServer) -> None:
    store, notices = EtcdStore([NOBODY, etcd.url]), list[Notice]()
    store.watch(["/a/"], 1, notices.append)
    put(store, "/a/1", b"1")
    eventually(lambda: values(notices) == [b"1"])
    store.close()


def values_of(store: EtcdStore) -> list[bytes]:
    return [kv.value for kv in store.read(["/a/"]).items]


def test_unix_socket_is_an_endpoint(etcd: EtcdServer, store: EtcdStore) -> None:
    put(store, "/a/1", b"1")
    local = EtcdStore([etcd.unix_url])
    assert values_of(local) == [b"1"]
    local.close()


def test_nothing_is_written_to_stderr_when_etcd_vanishes(etcd: EtcdServer, store: EtcdStore) -> None:
    put(store, "/a/1")
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", READER, etcd.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        etcd.kill()
        stdout, stderr = process.communicate("\n", timeout=30)
    assert (stdout, stderr) == ("unavailable\n", "")


# --- passwords ------------------------------------------------------------------------------------


@pytest.fixture
def guarded(etcd: EtcdServer) -> EtcdServer:
    """An etcd that knows root, who may do everything, and reader, who may read /a/."""
    with grpc.insecure_channel(etcd.url.removeprefix("http://")) as channel:
        auth = etcdrpc.AuthStub(channel)
        _users(auth)
        auth.AuthEnable(etcdrpc.AuthEnableRequest(), timeout=30)
    return etcd


def _users(auth: Any) -> None:
    for user, role in (("root", "root"), ("reader", "read-a")):
        auth.UserAdd(etcdrpc.AuthUserAddRequest(name=user, password=f"{user}-password"), timeout=30)
        auth.RoleAdd(etcdrpc.AuthRoleAddRequest(name=role), timeout=30)
        auth.UserGrantRole(etcdrpc.AuthUserGrantRoleRequest(user=user, role=role), timeout=30)
    request = etcdrpc.AuthRoleGrantPermissionRequest(name="read-a")
    request.perm.permType, request.perm.key, request.perm.range_end = 0, b"/a/", b"/a0"
    auth.RoleGrantPermission(request, timeout=30)


def logged_in(server: EtcdServer, user: str, password: str | None = None) -> EtcdStore:
    file = server.directory / f"{user}.password"
    file.write_text(f"{password or f'{user}-password'}\n")
    file.chmod(0o600)
    return EtcdStore([server.url], username=user, password_file=file)


def test_password_is_taken_and_its_lack_or_a_wrong_one_refused(guarded: EtcdServer) -> None:
    root, nobody = logged_in(guarded, "root"), EtcdStore([guarded.url])
    assert put(root, "/a/1", b"1")
    wrong = logged_in(guarded, "root", "no")
    for store, who, word in ((nobody, "nobody", "etcd.cert"), (wrong, "user root", "etcd.password_file")):
        with pytest.raises(StoreRefused, match=f"refused to read /a/ as {who}") as caught:
            store.read(["/a/"])
        assert word in caught.value.next[0]
    assert values_of(root) == [b"1"]
    for store in (root, nobody, wrong):
        store.close()


def test_right_that_is_lacking_is_refused_for_calls_and_watches(guarded: EtcdServer) -> None:
    reader, notices = logged_in(guarded, "reader"), list[Notice]()
    assert values_of(reader) == []
    with pytest.raises(StoreRefused, match="permission denied"):
        reader.commit([], [Put("/a/1", b"1")])
    reader.watch(["/b/"], 1, notices.append)
    eventually(lambda: notices)
    assert isinstance(notices[0], WatchEnded)
    assert isinstance(notices[0].error, StoreRefused)
    reader.close()


def test_token_forgotten_by_a_restarted_member_is_renewed(guarded: EtcdServer) -> None:
    root, notices = logged_in(guarded, "root"), list[Notice]()
    root.watch(["/a/"], put(root, "/a/1", b"1") + 1, notices.append)
    put(root, "/a/2", b"2")
    eventually(lambda: values(notices) == [b"2"])
    guarded.kill()
    guarded.start()
    put(root, "/a/3", b"3")
    eventually(lambda: values(notices) == [b"2", b"3"], deadline_s=30)
    root.close()


def test_password_that_nobody_asks_for_does_no_harm(etcd: EtcdServer) -> None:
    store = logged_in(etcd, "root")
    put(store, "/a/1", b"1")
    assert values_of(store) == [b"1"]
    store.close()


# --- TLS ------------------------------------------------------------------------------------------


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.crt, and a server's and a client's certificate signed by it."""
    there = tmp_path_factory.mktemp("certificates")
    ca = [str(there / "ca.crt"), str(there / "ca.key")]
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *new_key, "-days", "2", "-subj", "/CN=ca", "-out", ca[0], "-keyout", ca[1])
    for name in ("server", "client"):
        crt, csr, key, ext = (str(there / f"{name}.{suffix}") for suffix in ("crt", "csr", "key", "ext"))
        Path(ext).write_text("subjectAltName=IP:127.0.0.1\n")
        openssl("req", *new_key, "-subj", f"/CN={name}", "-out", csr, "-keyout", key)
        openssl(
            *("x509", "-req", "-days", "2", "-in", csr, "-CA", ca[0], "-CAkey", ca[1], "-CAcreateserial"),
            *("-extfile", ext, "-out", crt),
        )
    return there


def serving(certificates: Path, *more: str) -> list[str]:
    return [*("--cert-file", f"{certificates}/server.crt", "--key-file", f"{certificates}/server.key"), *more]


def test_authority_alone_is_enough_for_tls(tmp_path: Path, certificates: Path) -> None:
    with running_etcd(tmp_path, scheme="https", extra=serving(certificates)) as server:
        store = EtcdStore([NOBODY.replace("http:", "https:"), server.url], ca=certificates / "ca.crt")
        put(store, "/a/1", b"1")
        assert values_of(store) == [b"1"]
        store.close()
        stranger = EtcdStore([server.url])
        with pytest.raises(StoreUnavailable) as caught:
            stranger.read(["/a/"])
        stranger.close()
        assert "not valid by etcd.ca" in caught.value.message


def test_client_certificate_is_shown_where_etcd_wants_one(tmp_path: Path, certificates: Path) -> None:
    wanted = ("--client-cert-auth", "--trusted-ca-file", f"{certificates}/ca.crt")
    with running_etcd(tmp_path, scheme="https", extra=serving(certificates, *wanted)) as server:
        ca, cert, key = (certificates / name for name in ("ca.crt", "client.crt", "client.key"))
        store = EtcdStore([server.url], ca=ca, cert=cert, key=key)
        put(store, "/a/1", b"1")
        assert values_of(store) == [b"1"]
        store.close()
        bare = EtcdStore([server.url], ca=ca)
        with pytest.raises(StoreUnavailable):
            bare.read(["/a/"])
        bare.close()
