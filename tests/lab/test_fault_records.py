"""Faults in memory: what is recorded, what is refused, and that a crash anywhere leaves nothing that cannot be
healed."""

from __future__ import annotations

import json
import os
from ipaddress import ip_address
from pathlib import Path

import pytest
from helpers.fault_lab import SERVICE_RULES, Crash, FakeGrip, FakeTimers, fake_faults

from overlaynet.addr import Mac
from overlaynet.errors import (
    EnvironmentProblem,
    KernelError,
    LabChoice,
    LabFailed,
    NotFound,
    OverlayError,
    UsageError,
)
from overlaynet.kernel import process
from overlaynet.lab import faulttimer
from overlaynet.lab.faultkinds import KINDS, Request
from overlaynet.lab.faultrecords import making, mending
from overlaynet.lab.faults import Faults
from overlaynet.state import Change, Fdb, Op

pytestmark = pytest.mark.fake

NOW = 1_000_000.0
FDB = "02:0a:f4:02:00:00"
REQUESTS = {
    "link-cable": ("link", Request(("node-2",))),
    "link-vxlan": ("link", Request(("node-1:flannel.1",))),
    "link-container": ("link", Request(("web-1",))),
    "mtu": ("mtu", Request(("node-1:eth0", "1400"))),
    "node": ("node", Request(("node-2",))),
    "server": ("server", Request(("web-1",))),
    "agent": ("agent", Request(("node-2",))),
    "etcd": ("etcd", Request(())),
    "route": ("route", Request(("node-1", "node-2"))),
    "route-wrong": ("route", Request(("node-1", "web-2"), wrong=True)),
    "route-default": ("route", Request(("node-1", "default"), to="192.168.50.12")),
    "neigh": ("neigh", Request(("node-1", "node-2"))),
    "neigh-wrong": ("neigh", Request(("node-1", "192.168.50.12"), wrong=True)),
    "fdb": ("fdb", Request(("node-1", FDB))),
    "fdb-wrong": ("fdb", Request(("node-1", "node-2"), wrong=True)),
    "rule": ("rule", Request(("node-1", "nat", "OVL-SERVICES", "2"))),
    "rule-service": ("rule", Request(("node-1", "svc/api"))),
    "rule-hook": ("rule", Request(("node-1", "nat", "PREROUTING", "1"))),
    "rule-drop": ("rule", Request(("node-1", "web-1", "any"), target="DROP")),
    "forwarding": ("forwarding", Request(("node-1",))),
    "rp_filter": ("rp_filter", Request(("node-1", "flannel.1"))),
    "loss": ("loss", Request(("node-1", "30"))),
    "partition": ("partition", Request(("node-1,etcd", "node-2"))),
}
ANY = pytest.mark.parametrize("name", REQUESTS)


@pytest.fixture
def grip() -> FakeGrip:
    return FakeGrip()


@pytest.fixture
def faults(tmp_path: Path, grip: FakeGrip) -> Faults:
    return fake_faults(tmp_path, grip)


def ids(faults: Faults) -> list[str]:
    return [fault.id for fault in faults.all]


def fdb_of(grip: FakeGrip) -> list[str]:
    return [str(entry.dst) for entry in grip.kernels["node-1"].fdb.values()]


def put_fdb(grip: FakeGrip, dst: str | None) -> None:
    """Somebody else's hand on node-1's entry for node-2."""
    (there,) = list(grip.kernels["node-1"].fdb.values()) or [None]
    kernel = grip.kernels["node-1"]
    if there is not None:
        kernel.tamper(Change(Op.DROP, there))
    if dst is not None:
        kernel.tamper(Change(Op.PUT, Fdb("flannel.1", Mac.parse(FDB), ip_address(dst))))


# --- made and healed ------------------------------------------------------------------------------


def test_every_kind_is_among_the_requests() -> None:
    assert {kind for kind, _ in REQUESTS.values()} == set(KINDS)


@ANY
def test_fault_changes_something_and_healing_undoes_just_that(faults, grip, name) -> None:
    before = grip.everything()
    fault = faults.make(*REQUESTS[name], NOW).fault
    assert grip.everything() != before or grip.ended
    assert faults.heal((), NOW) == (fault,)
    assert (grip.everything(), faults.all) == (before, ())
    assert grip.started == list(fault.damage.ends)
    assert not faults.paths.faults_json.exists()


@ANY
def test_record_is_read_as_it_was_written(faults, name) -> None:
    fault = faults.make(*REQUESTS[name], NOW, 60.0).fault
    assert faults.all == (fault,)


@ANY
def test_record_is_on_disk_before_anything_is_changed(faults, grip, name) -> None:
    seen: list[list[str]] = []
    grip.before_change = lambda: seen.append(ids(faults))
    faults.make(*REQUESTS[name], NOW)
    assert seen
    assert all(there == ["f1"] for there in seen)


@ANY
def test_words_say_what_is_done_and_how_it_is_undone(faults, name) -> None:
    damage = faults.make(*REQUESTS[name], NOW).fault.damage
    assert all(line.place and line.command for line in (*making(damage), *mending(damage)))
    assert making(damage)
    assert mending(damage)


def test_words_are_those_of_the_tools(faults) -> None:
    said = {
        name: [str(w) for w in making(planned(faults, name))]
        for name in ("link-vxlan", "route-wrong", "fdb", "rule")
    }
    assert said == {
        "link-vxlan": ["node-1: ip link set dev flannel.1 down"],
        "route-wrong": [
            "node-1: ip route replace 10.244.2.0/24 via 10.244.2.254 dev flannel.1 onlink"
            " metric 717827 proto 111"
        ],
        "fdb": [f"node-1: bridge fdb del {FDB} dev flannel.1 dst 192.168.50.12 self permanent"],
        "rule": [f"node-1: iptables -t nat -D OVL-SERVICES {SERVICE_RULES[1]}"],
    }


def planned(faults: Faults, name: str):
    damage = faults.make(*REQUESTS[name], NOW).fault.damage
    faults.heal((), NOW)
    return damage


# --- crashes --------------------------------------------------------------------------------------


def last_change(faults: Faults, grip: FakeGrip, name: str) -> int:
    """How many changes it takes to make this."""
    faults.make(*REQUESTS[name], NOW)
    made = grip.changes
    faults.heal((), NOW)
    return made


def test_healing_lets_all_senders_forget_what_they_learned(faults, grip) -> None:
    faults.make(*REQUESTS["mtu"], NOW)
    assert grip.forgot == []
    faults.heal((), NOW)
    assert grip.forgot == ["node-1", "node-2", "web-1", "web-2", "outside"]


@ANY
def test_crash_while_breaking_leaves_what_heal_undoes(tmp_path, name) -> None:
    spare = FakeGrip()
    for number in range(last_change(fake_faults(tmp_path / "spare", spare), spare, name)):
        grip = FakeGrip(die_after=None)
        faults = fake_faults(tmp_path / str(number), grip)
        before = grip.everything()
        grip.die_after = number
        with pytest.raises(Crash):
            faults.make(*REQUESTS[name], NOW)
        grip.die_after = None
        for host, agent in grip.agents.items():
            assert set(agent.held) <= {
                (h.kind, h.key) for f in faults.all for h in f.damage.holds if h.host == host
            }
        faults.heal((), NOW)
        assert (grip.everything(), faults.all) == (before, ())


@ANY
def test_crash_while_healing_is_healed_by_the_next(tmp_path, name) -> None:
    spare = FakeGrip()
    fake_faults(tmp_path / "spare", spare).make(*REQUESTS[name], NOW)
    made = spare.changes
    fake_faults(tmp_path / "spare", spare).heal((), NOW)
    for number in range(made, spare.changes):
        grip = FakeGrip()
        faults = fake_faults(tmp_path / str(number), grip)
        before = grip.everything()
        faults.make(*REQUESTS[name], NOW)
        grip.die_after = number
        with pytest.raises(Crash):
            faults.heal((), NOW)
        grip.die_after = None
        assert ids(faults) == ["f1"]
        faults.heal((), NOW)
        assert (grip.everything(), faults.all) == (before, ())


def test_fault_that_cannot_be_made_leaves_nothing(faults, grip) -> None:
    before = grip.everything()
    grip.kernels["node-1"].fail_next("fdb", 1)
    with pytest.raises(KernelError):
        faults.make(*REQUESTS["fdb"], NOW)
    assert (grip.everything(), faults.all) == (before, ())


def test_fault_that_does_not_last_is_none(faults, grip) -> None:
    """As where the hold was not honoured: a lab that works must not be taken for a broken one."""
    grip.kernels["node-1"].apply = lambda changes: []
    with pytest.raises(LabFailed, match="is not broken"):
        faults.make(*REQUESTS["fdb"], NOW)
    assert faults.all == ()


def test_what_cannot_be_healed_stays_recorded_and_stops_nobody_else(faults, grip) -> None:
    faults.make(*REQUESTS["link-container"], NOW)
    faults.make(*REQUESTS["fdb"], NOW + 1)
    grip.agents["node-1"].alive = False
    grip.kernels["node-1"].fail_next("fdb", 1)
    with pytest.raises(LabFailed, match="not healed: f2"):
        faults.heal((), NOW)
    assert (ids(faults), grip.kernels["web-1"].links["eth0"].up) == (["f2"], True)
    faults.heal((), NOW)
    assert fdb_of(grip) == ["192.168.50.12"]


def test_damaged_file_is_told(faults) -> None:
    faults.paths.faults_json.write_text('{"faults": [{"id": "f1"}]}')
    with pytest.raises(LabFailed, match="cannot be read"):
        faults.heal((), NOW)


# --- levels, not edges ----------------------------------------------------------------------------


def test_what_was_put_right_already_is_left_alone(faults, grip) -> None:
    faults.make(*REQUESTS["fdb-wrong"], NOW)
    put_fdb(grip, "192.168.50.12")
    changes = grip.changes
    faults.heal((), NOW)
    assert (grip.changes, fdb_of(grip)) == (changes, ["192.168.50.12"])


def test_what_the_agent_wants_by_now_is_not_undone(faults, grip) -> None:
    """The peer has another address since: the agent wrote that as soon as the hold was gone."""
    faults.make(*REQUESTS["fdb-wrong"], NOW)
    grip.agents["node-1"].repair = lambda: put_fdb(grip, "192.168.50.77")
    faults.heal((), NOW)
    assert fdb_of(grip) == ["192.168.50.77"]


def test_without_an_agent_the_entry_comes_back_all_the_same(faults, grip) -> None:
    faults.make(*REQUESTS["fdb-wrong"], NOW)
    grip.agents["node-1"].alive = False
    faults.heal((), NOW)
    assert fdb_of(grip) == ["192.168.50.12"]


def test_what_no_agent_looks_after_is_put_back_whatever_it_is_now(faults, grip) -> None:
    faults.make(*REQUESTS["mtu"], NOW)
    kernel = grip.kernels["node-1"]
    kernel.links["eth0"] = kernel.links["eth0"]._replace(mtu=1300)
    faults.heal((), NOW)
    assert kernel.links["eth0"].mtu == 1500


@pytest.mark.parametrize("name", ["link-container", "route", "mtu", "link-vxlan"])
def test_place_that_is_gone_needs_no_healing(faults, grip, name) -> None:
    (place,) = faults.make(*REQUESTS[name], NOW).fault.damage.places
    del grip.kernels[place]
    grip.agents["node-1"].alive = False
    faults.heal((), NOW)
    assert faults.all == ()


def test_device_that_is_gone_needs_no_healing(faults, grip) -> None:
    faults.make(*REQUESTS["fdb"], NOW)
    faults.make(*REQUESTS["rp_filter"], NOW + 1)
    grip.kernels["node-1"]._delete("flannel.1")
    faults.heal((), NOW)
    assert faults.all == ()


# --- holds ----------------------------------------------------------------------------------------


def test_agent_is_asked_to_leave_it_alone_for_as_long_as_the_fault_lasts(faults, grip) -> None:
    made = faults.make(*REQUESTS["fdb"], NOW, 30.0)
    assert made.fault.as_item()["hold"] == [f"fdb flannel.1 {FDB}"]
    (body,) = grip.agents["node-1"].held.values()
    assert (body["for_s"], body["reason"]) == (30.0, f"fault f1: fdb node-1 {FDB}")


def test_hold_comes_before_the_damage(faults, grip) -> None:
    held: list[int] = []
    grip.before_change = lambda: held.append(len(grip.agents["node-1"].held))
    faults.make(*REQUESTS["route"], NOW)
    assert held == [1]


@pytest.mark.parametrize("why", ["no agent", "not its own"])
def test_hold_that_nobody_takes_is_not_recorded(faults, grip, why) -> None:
    grip.agents["node-1"].alive = why != "no agent"
    grip.agents["node-1"].owns = lambda kind, key: False
    assert faults.make(*REQUESTS["fdb"], NOW).fault.damage.holds == ()
    assert faults.all[0].damage.holds == ()
    assert fdb_of(grip) == []


def test_without_a_hold_nobody_is_asked(faults, grip) -> None:
    made = faults.make(*REQUESTS["fdb"], NOW, hold=False)
    assert (grip.agents["node-1"].held, made.repaired_s, ids(faults)) == ({}, None, ["f1"])


def test_agent_that_was_started_again_is_asked_again(faults, grip) -> None:
    faults.make(*REQUESTS["fdb-wrong"], NOW)
    agent = faults.make("agent", Request(("node-1",)), NOW + 1).fault
    grip.agents["node-1"].held.clear()
    put_fdb(grip, "192.168.50.12")
    faults.heal([agent.id], NOW)
    assert list(grip.agents["node-1"].held) == [("fdb", f"flannel.1 {FDB}")]
    assert fdb_of(grip) == ["192.168.50.99"]


def test_processes_may_be_left_for_others_to_start(faults, grip) -> None:
    faults.make(*REQUESTS["node"], NOW)
    faults.revive = False
    faults.heal((), NOW)
    assert (grip.started, faults.all) == ([], ())


# --- several --------------------------------------------------------------------------------------


@ANY
def test_the_same_twice_is_refused_with_the_first_ones_id(faults, name) -> None:
    faults.make(*REQUESTS[name], NOW)
    with pytest.raises(OverlayError) as caught:
        faults.make(*REQUESTS[name], NOW)
    assert ids(faults) == ["f1"]
    assert "f1" in caught.value.message or isinstance(caught.value, UsageError)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("link-vxlan", ("mtu", Request(("node-1:flannel.1", "1300")))),
        ("rule", ("rule", Request(("node-1", "svc/web")))),
        ("partition", ("loss", Request(("node-2", "node-1", "5")))),
        ("node", ("link", Request(("web-2:eth0",)))),
        ("agent", ("node", Request(("node-2",)))),
        ("link-cable", ("node", Request(("node-2",)))),
    ],
)
def test_two_faults_on_one_object_are_one_too_many(faults, grip, first, second) -> None:
    faults.make(*REQUESTS[first], NOW)
    before = grip.everything()
    with pytest.raises(UsageError, match="f1 has broken that already") as caught:
        faults.make(*second, NOW)
    assert caught.value.next == ("overlaynet heal f1",)
    assert (grip.everything(), ids(faults)) == (before, ["f1"])


def test_newest_is_healed_first(faults, grip) -> None:
    for n, name in enumerate(["agent", "etcd", "fdb"]):
        faults.make(*REQUESTS[name], NOW + n)
    assert [fault.id for fault in faults.heal((), NOW)] == ["f3", "f2", "f1"]


def test_one_by_its_id_and_its_id_is_free_again(faults) -> None:
    for name in ("agent", "etcd"):
        faults.make(*REQUESTS[name], NOW)
    faults.heal(["f1"], NOW)
    assert ids(faults) == ["f2"]
    assert faults.make(*REQUESTS["fdb"], NOW).fault.id == "f1"
    with pytest.raises(NotFound) as caught:
        faults.heal(["f7"], NOW)
    assert "f2 (etcd)" in caught.value.evidence


def test_setting_that_two_faults_need_goes_back_with_the_last(faults, grip) -> None:
    bridged = grip.kernels["underlay"].sysctls
    faults.make("partition", Request(("node-1", "node-2")), NOW)
    faults.make("partition", Request(("node-1", "etcd")), NOW)
    faults.heal(["f1"], NOW)
    assert bridged["net/bridge/bridge-nf-call-iptables"] == "1"
    faults.heal(["f2"], NOW)
    assert bridged["net/bridge/bridge-nf-call-iptables"] == "0"


# --- time -----------------------------------------------------------------------------------------


def test_what_is_over_is_healed_by_the_next_command(faults, grip) -> None:
    faults.make(*REQUESTS["fdb"], NOW, 5.0)
    faults.make(*REQUESTS["link-container"], NOW, 50.0)
    assert (faults.all[0].is_over(NOW + 4.9), faults.all[0].is_over(NOW + 5)) == (False, True)
    faults.make(*REQUESTS["etcd"], NOW + 6)
    assert [(fault.id, fault.kind) for fault in faults.all] == [("f2", "link"), ("f1", "etcd")]
    assert fdb_of(grip) == ["192.168.50.12"]


def test_item_says_when_it_ends(faults) -> None:
    item = faults.make(*REQUESTS["etcd"], 0.5, 30.0).fault.as_item()
    assert (item["since"], item["until"], item["for_s"]) == (
        "1970-01-01T00:00:00.500Z",
        "1970-01-01T00:00:30.500Z",
        30.0,
    )


def test_timer_ends_with_its_fault_but_does_not_end_itself(tmp_path, grip, monkeypatch) -> None:
    sleeper = process.spawn(["sleep", "60"], tmp_path / "log", os.environ)
    faults = fake_faults(tmp_path, grip)
    monkeypatch.setattr(FakeTimers, "start", lambda self, fault: sleeper)
    faults.make(*REQUESTS["etcd"], NOW, 30.0)
    faults.heal((), NOW)
    assert not sleeper.alive
    ourselves = process.Process(os.getpid(), process.start_time(os.getpid()) or 0)
    monkeypatch.setattr(FakeTimers, "start", lambda self, fault: ourselves)
    faults.make(*REQUESTS["etcd"], NOW, 30.0)
    faults.heal((), NOW)
    assert ourselves.alive


def test_timer_insists_until_the_lab_is_free(monkeypatch, capsys) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    answers = [LabFailed("another command is changing it")] * 5

    def heal() -> None:
        if answers:
            raise answers.pop()

    assert faulttimer.insist(heal) == 0
    assert pauses == [0.5, 1.0, 2.0, 4.0, 5.0]
    assert capsys.readouterr().err.count("OVL-203 another command is changing it") == 5


def test_timer_of_a_lab_that_is_gone_just_ends() -> None:
    def heal() -> None:
        raise LabChoice("no lab")

    assert faulttimer.insist(heal) == 2


# --- refusals -------------------------------------------------------------------------------------

REFUSED = [
    ("quake", Request(()), UsageError, "kinds: link, mtu"),
    ("link", Request(()), UsageError, "0 words"),
    ("link", Request(("node-9",)), NotFound, "node-1, node-2, web-1, web-2"),
    ("link", Request(("node-1:eth7",)), NotFound, "eth0, flannel.1, lo"),
    ("link", Request(("underlay",)), UsageError, ""),
    ("link", Request(("node-1",), wrong=True), UsageError, "route, neigh, fdb"),
    ("link", Request(("node-1",), target="DROP"), UsageError, "for rule"),
    ("mtu", Request(("web-1", "67")), UsageError, "68 to 65535"),
    ("mtu", Request(("web-1", "big")), UsageError, "68 to 65535"),
    ("mtu", Request(("web-1", "1450")), UsageError, ""),
    ("node", Request(("web-1",)), NotFound, "hosts: node-1, node-2"),
    ("agent", Request(("web-1",)), NotFound, "hosts: node-1, node-2"),
    ("etcd", Request(("node-1",)), UsageError, "1 words: node-1"),
    ("route", Request(("node-1", "10.9.0.0/16")), NotFound, "route 10.244.2.0/24"),
    ("route", Request(("node-1", "mars")), NotFound, "node-1, node-2, web-1, web-2"),
    ("route", Request(("web-1", "10.244.1.0/24"), wrong=True), UsageError, ""),
    ("route", Request(("node-1", "node-2"), to="there"), UsageError, ""),
    ("route", Request(("node-1", "node-2"), to="10.244.2.0"), UsageError, ""),
    ("neigh", Request(("node-1", "10.244.1.9")), NotFound, "neigh 10.244.2.0"),
    ("neigh", Request(("node-1", "192.168.50.12")), UsageError, "nud reachable"),
    ("neigh", Request(("node-1", "node-2"), to="1.2.3.4"), UsageError, ""),
    ("fdb", Request(("node-1", "02:00:00:00:00:01")), NotFound, f"fdb {FDB}"),
    ("fdb", Request(("node-1", "node-1")), NotFound, f"fdb {FDB}"),
    ("fdb", Request(("web-1", "node-1")), NotFound, "hosts: node-1, node-2"),
    ("rule", Request(("node-1", "nat", "OVL-NONE", "1")), NotFound, "nat OVL-SERVICES"),
    ("rule", Request(("node-1", "nat", "OVL-SERVICES", "3")), NotFound, "2 -d 10.112.0.11/32"),
    ("rule", Request(("node-1", "nat", "OVL-SERVICES", "0")), NotFound, "1 -d 10.112.0.10/32"),
    ("rule", Request(("node-1", "nat", "PREROUTING", "2")), UsageError, "-j ACCEPT"),
    ("rule", Request(("node-1", "svc/none")), NotFound, "default/web cluster IP"),
    ("rule", Request(("node-1", "web-1", "web-2")), UsageError, "node-1 web-1 web-2"),
    ("rule", Request(("node-1", "web-1"), target="DROP"), UsageError, "a source and a destination"),
    ("rule", Request(("node-1", "web-1", "svc/web"), target="DROP"), UsageError, ""),
    ("rp_filter", Request(("node-1", "eth9")), NotFound, "eth0, flannel.1, lo"),
    ("loss", Request(("node-1", "0")), UsageError, "above 0"),
    ("loss", Request(("node-1", "101")), UsageError, "above 0"),
    ("loss", Request(("node-1", "node-2", "much")), UsageError, "above 0"),
    ("loss", Request(("node-1", "node-1", "5")), UsageError, "node-1 node-1 5"),
    ("partition", Request(("node-1", "web-1")), NotFound, "node-1, node-2, etcd, outside"),
    ("partition", Request(("node-1", "node-1")), UsageError, "node-1 node-1"),
]


@pytest.mark.parametrize(("kind", "request_", "error", "evidence"), REFUSED)
def test_bad_target_is_refused_before_anything_is_touched(
    faults, grip, kind, request_, error, evidence
) -> None:
    with pytest.raises(error) as caught:
        faults.make(kind, request_, NOW)
    assert evidence in caught.value.evidence
    assert (grip.changes, faults.all, caught.value.exit_code) == (0, (), 2)


def test_kernel_that_cannot_filter_bridges_has_no_partitions(faults, grip) -> None:
    del grip.kernels["underlay"].sysctls["net/bridge/bridge-nf-call-iptables"]
    with pytest.raises(EnvironmentProblem) as caught:
        faults.make(*REQUESTS["partition"], NOW)
    assert (caught.value.next, faults.all) == (("modprobe br_netfilter",), ())


def test_file_is_json_that_names_schema_and_kind(faults) -> None:
    faults.make(*REQUESTS["fdb"], NOW)
    document = json.loads(faults.paths.faults_json.read_text())
    assert (document["schema"], document["kind"]) == ("overlaynet/v1", "Faults")


# --- hidden ---------------------------------------------------------------------------------------


def hide(faults: Faults, name: str) -> None:
    kind, request = REQUESTS[name]
    faults.make(kind, request, NOW, hidden=True)


@ANY
def test_hidden_fault_is_told_nowhere(faults, grip, name) -> None:
    """Not by what `status` and `get labs` show, nor by the reasons of holds, nor by its record at a glance."""
    hide(faults, name)
    (fault,) = faults.all
    kind, request = REQUESTS[name]
    held = [body for agent in grip.agents.values() for body in agent.held.values()]
    assert (fault.kind, fault.damage.holds == (), fault.words) == (kind, held == [], "hidden")
    assert all((body["reason"], body["quiet"]) == ("fault f1: hidden", True) for body in held)
    item = fault.as_item()
    assert (item["id"], item["kind"], item["target"], item["host"], item["hold"]) == (
        "f1",
        "hidden",
        "",
        None,
        [],
    )
    (on_disk,) = json.loads(faults.paths.faults_json.read_text())["faults"]
    assert set(on_disk) == {"id", "kind", "target", "hidden"}
    assert all(f'"{word}"' not in json.dumps(on_disk) for word in (kind, *request.words))


@ANY
def test_hidden_fault_is_healed_by_those_who_know_of_it(faults, grip, name) -> None:
    before = grip.everything()
    hide(faults, name)
    for idents in ((), ("f1",)):
        with pytest.raises(UsageError, match="a fault is hidden in this lab") as raised:
            faults.heal(idents, NOW)
        assert list(raised.value.next) == ["overlaynet lab check"]
    assert ids(faults) == ["f1"]
    faults.heal((), NOW, hidden=True)
    assert (grip.everything(), faults.all) == (before, ())


def test_beside_a_hidden_fault_only_hidden_ones_are_made(faults) -> None:
    """What is refused for it is on the same object would tell which that is; so all is."""
    hide(faults, "fdb")
    for name in ("fdb", "neigh"):
        with pytest.raises(UsageError, match="a fault is hidden in this lab"):
            faults.make(*REQUESTS[name], NOW)
    hide(faults, "neigh")
    with pytest.raises(UsageError, match="2 faults are hidden in this lab"):
        faults.heal((), NOW)


@pytest.mark.parametrize("name", ["fdb", "route-wrong", "link-vxlan", "rule-drop", "rule-service", "server"])
def test_what_was_mended_by_hand_is_broken_again(faults, grip, name) -> None:
    before = grip.everything()
    hide(faults, name)
    broken, times = grip.everything(), len(grip.ended)
    (fault,) = faults.all
    faults.hand.undo(fault.damage)
    faults.break_again(["f1"])
    assert (grip.everything(), len(grip.ended)) == (broken, 2 * times)
    faults.heal((), NOW, hidden=True)
    assert grip.everything() == before
