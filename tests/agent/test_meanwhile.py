"""What is asked for, announced or wanted while something older is under way is not lost to it."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from ipaddress import ip_interface

import pytest
from helpers.agent import Agent, agent, descriptors, hanging
from helpers.cluster import put_network
from helpers.eventually import eventually
from helpers.model import KEYS, engine, kernel, key_of, lease, network, stored

from overlaynet.addr import container_mac
from overlaynet.errors import KernelError, StoreUnavailable
from overlaynet.events import Claimed, Gone, Synced
from overlaynet.ports import Noticed
from overlaynet.reconcile import FirewallOutcome
from overlaynet.state import Address, BridgePort, Change, Fdb, Kind, Neigh, Op
from overlaynet.store.memory import MemoryStore
from overlaynet.testing.fake_firewall import FakeFirewall
from overlaynet_agent.firewallworker import FirewallDone, FirewallWorker, Task
from overlaynet_agent.host import AttachRequest, Host
from overlaynet_agent.lookworker import Looked
from overlaynet_agent.loop import Request

pytestmark = pytest.mark.fake

CHAIN = ("filter", "OVL-FORWARD")
HOLD = {"kind": "rule", "key": "filter OVL-FORWARD", "for_s": None, "reason": "a fault"}
EMPTIED = "*filter\n:OVL-FORWARD - [0:0]\nCOMMIT\n"
VTEP_GONE = Change(Op.DROP, Address("flannel.1", ip_interface("10.244.1.0/32")))


@pytest.fixture
def one(tmp_path) -> Iterator[Agent]:
    running = agent(tmp_path).start().until_ready()
    yield running
    running.stop()


def new_host(**changes: object) -> Host:
    """A host with peers before its first look."""
    mind = engine(1, **changes)
    mind.handle(Synced(9, (stored(network()), *(stored(lease(n)) for n in (2, 3)))), 0.0)
    mind.handle(Claimed(stored(lease(1)), 86_400, 86_400.0), 0.0)
    return Host(mind, kernel(1))


def host(**changes: object) -> Host:
    """The same after it."""
    made = new_host(**changes)
    made.look("start", 0.0)
    return made


def attach(to: Host, name: str) -> None:
    with descriptors() as (netns, netlink):
        to.attach(AttachRequest(name, "default", {}, (), (), None, netns, netlink), 0.0)


# --- rules ----------------------------------------------------------------------------------------


def test_rules_asked_for_again_are_read_though_a_round_is_over_at_the_same_moment(one: Agent):
    """Both are taken out of the inbox at once; the end of the round must not put the other off to the timer."""
    before = one.loop.rules.reads
    with hanging(one.loop):
        one.loop.inbox.put(Request(lambda loop: loop.ask_firewall_again("release"), Future()))
        one.loop.inbox.put(FirewallDone(FirewallOutcome()))
    eventually(lambda: one.loop.rules.reads == before + 2)


def test_hold_of_rules_is_answered_once_no_round_of_before_can_write_any(one: Agent, monkeypatch):
    begun, go_on, observe = threading.Event(), threading.Event(), one.rules.observe

    def slowly() -> object:
        begun.set()
        assert go_on.wait(20)
        return observe()

    def break_it() -> None:
        assert one.ask("POST", "/v1/hold", HOLD)[0] == 200
        one.rules.restore(EMPTIED)

    monkeypatch.setattr(one.rules, "observe", slowly)
    one.ask("POST", "/v1/repair")
    assert begun.wait(20)
    before, breaking = one.loop.rules.reads, threading.Thread(target=break_it)
    breaking.start()
    eventually(lambda: one.loop.host.drift.holds.chains)
    breaking.join(0.5)
    go_on.set()
    breaking.join(20)
    one.ask("POST", "/v1/repair")
    eventually(lambda: one.loop.rules.reads >= before + 2)
    assert one.rules.observe().chains[CHAIN] == ()


def test_rules_are_read_in_full_though_others_are_wanted_before_it_is_done():
    rules, done = FakeFirewall(), threading.Event()
    worker = FirewallWorker(rules, lambda _: done.set())
    rules.observe()
    reads, observe = [], rules.observe
    rules.observe = lambda: reads.append(1) or observe()  # type: ignore[method-assign]
    worker.want(Task({}, why="repair"))
    worker.want(Task({}))
    worker.start()
    assert done.wait(20)
    worker.stop()
    assert reads


# --- looks ----------------------------------------------------------------------------------------


def test_devices_are_listened_to_before_they_are_looked_at_for_the_first_time(monkeypatch):
    """What changes while the first look is read and written is news like any other."""
    one, told, heard = new_host(), [], []
    observe = one.kernel.observe
    one.drift.watch = told.append
    monkeypatch.setattr(one.kernel, "observe", lambda names: heard.extend(told) or observe(names))
    one.look("start", 0.0)
    assert heard[0].devices == {"eth0", "flannel.1"}
    assert heard[0].tunnels == {"flannel.1"}


def test_news_that_could_not_be_looked_into_is_not_forgotten_for_an_older_look():
    one = host()
    look = one.begin_look("timer", 0.0)
    reading = look.read()
    one.kernel.tamper(VTEP_GONE)
    one.kernel.fail_next("observe", errno.ENOBUFS)
    one.hear(Noticed(devices=frozenset({"flannel.1"})), 0.0)
    assert one.blind
    assert one.land(Looked(look, reading), 0.0)
    assert one.drift.look == "notice"
    again = one.begin_look("notice", 0.0)
    one.land(Looked(again, again.read()), 0.0)
    assert VTEP_GONE.obj.key in one.kernel.addresses


def test_whoever_asks_what_differs_does_not_keep_it_from_being_noticed(one: Agent):
    address = next(address for address in one.kernel.addresses.values() if address.dev == "flannel.1")
    one.kernel.tamper(Change(Op.DROP, address))
    assert one.get("/v1/plan")["count"] > 0
    one.loop.inbox.put(Noticed(devices=frozenset({"flannel.1"})))
    eventually(lambda: address.key in one.kernel.addresses)


@pytest.mark.parametrize("mode", ["managed", "none"])
def test_container_that_is_attached_during_a_look_is_there_after_it(mode):
    """The reading is older than its device; and what was seen after it was wired may be, too."""
    one = host(bridge_mode=mode)
    attach(one, "first")
    look = one.begin_look("timer", 0.0)
    reading = look.read()
    one.kernel.fail_next("observe", errno.EAGAIN, times=mode == "managed")
    attach(one, "second")
    one.land(Looked(look, reading), 0.0)
    assert sorted(one.engine.workloads) == ["default/first", "default/second"]


def test_container_that_may_be_gone_is_kept_until_somebody_can_look():
    one = host()
    attach(one, "web")
    device = one.engine.workloads["default/web"].device
    look = one.begin_look("timer", 0.0)
    one.kernel.detach(device)
    reading = look.read()
    one.kernel.fail_next("observe", errno.EAGAIN)
    one.land(Looked(look, reading), 0.0)
    assert one.blind
    assert "default/web" in one.engine.workloads
    again = one.begin_look("retry", 0.0)
    one.land(Looked(again, again.read()), 0.0)
    assert not one.engine.workloads


def test_what_is_not_wanted_since_a_moment_ago_is_not_written_for_that_moment():
    """The news waited in the same queue as the reading, and nobody has followed it yet."""
    one = host()
    gone = next(route for route in one.kernel.routes.values() if str(route.dst) == "10.244.2.0/24")
    one.kernel.tamper(Change(Op.DROP, gone))
    look = one.begin_look("timer", 0.0)
    reading, written = look.read(), one.kernel.writes[Kind.ROUTE, Op.PUT]
    one.engine.handle(Gone(key_of(lease(2)), 100), 0.0)
    one.land(Looked(look, reading), 0.0)
    one.follow(0.0)
    assert one.kernel.writes[Kind.ROUTE, Op.PUT] == written
    assert gone.key not in one.kernel.routes


def test_container_that_cannot_be_wired_is_none_though_its_device_cannot_be_removed_either():
    one = host()
    attach(one, "first")
    one.kernel.fail_next(Kind.PORT, errno.EBUSY)
    one.kernel.fail_next("detach", errno.ENOBUFS)
    with pytest.raises(KernelError, match="port"):
        attach(one, "second")
    assert list(one.engine.workloads) == ["default/first"]
    one.detach("default", "second", 0.0)
    attach(one, "second")


def test_address_of_a_container_that_has_left_since_the_last_look_is_free():
    """It was seen as a neighbour then, its MAC on a port. What is behind somebody else's port stays taken."""
    one = host()
    for name in ("stays", "leaves"):
        attach(one, name)
    left = one.engine.workloads["default/leaves"].ips[0]
    other = left + 1
    one.kernel.add_device("vethother")
    one.kernel.tamper(
        Change(Op.PUT, Neigh("cni0", left, container_mac(left))),
        Change(Op.PUT, BridgePort("vethother", "cni0")),
        Change(Op.PUT, Neigh("cni0", other, container_mac(other))),
        Change(Op.PUT, Fdb("vethother", container_mac(other), master="cni0")),
    )
    one.look("timer", 0.0)
    one.detach("default", "leaves", 0.0)
    for name, ip in (("again", left), ("new", other + 1)):
        attach(one, name)
        assert one.engine.workloads[f"default/{name}"].ips == (ip,)


# --- the underlay ---------------------------------------------------------------------------------


def narrow(one: Agent) -> None:
    one.kernel.links["eth0"] = one.kernel.links["eth0"]._replace(mtu=1_400)


def is_narrow(one: Agent) -> bool:
    link = one.kernel.links.get("flannel.1")
    return link is not None and link.mtu == 1_350


def test_underlay_that_was_seen_anew_by_a_look_for_another_sake_is_taken_up(one: Agent):
    """The first container takes a bridge, and a bridge a look; the announcement comes after it."""
    narrow(one)
    assert one.attach("web")[0] == 201
    one.loop.inbox.put(Noticed(devices=frozenset({"eth0"})))
    eventually(lambda: is_narrow(one))


def test_underlay_that_changed_before_the_first_look_is_taken_up_with_it(tmp_path):
    one = agent(tmp_path, store=MemoryStore()).start()
    try:
        eventually(lambda: one.loop.engine.synced)
        narrow(one)
        put_network(one.store, network(count=199))
        eventually(lambda: is_narrow(one))
    finally:
        one.stop()


def test_address_from_before_etcd_could_be_reached_is_never_claimed(tmp_path):
    one = agent(tmp_path)
    one.store.fail_next(StoreUnavailable("away"), times=10_000)
    claimed: list[str] = []
    one.store.watch([KEYS.addresses], 1, lambda notice: claimed.append(notice.item.key))
    one.start()
    try:
        eventually(lambda: one.loop.engine.store_error)
        old, new = (Address("eth0", ip_interface(f"192.168.50.{n}/24")) for n in (1, 77))
        one.kernel.tamper(Change(Op.DROP, old), Change(Op.PUT, new))
        one.store.recover()
        one.until_ready()
        assert claimed == [KEYS.address(new.interface.ip)]
    finally:
        one.stop()
