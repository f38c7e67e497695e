"""`break` and `heal` where nothing can be broken: their help, their lists, their refusals, their words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.fault_lab import FakeGrip, fake_faults

from overlaynet.cli.faults import fault_line, healed_text, made_text
from overlaynet.errors import NotFound
from overlaynet.lab.faultkinds import KINDS, Request
from overlaynet.lab.faults import Made

pytestmark = pytest.mark.fake

NOW = 1_000_000.0


def test_kinds_are_listed_with_an_example_each(run) -> None:
    code, out, _ = run("break", "--list")
    lines = out.splitlines()
    assert (code, lines[0].split(), len(lines)) == (0, ["KIND", "WHAT", "EXAMPLE"], 1 + len(KINDS))
    assert all(f"overlaynet break {line.split()[0]}" in line for line in lines[1:])


def test_kinds_as_a_document_and_as_names(run) -> None:
    document = json.loads(run("break", "--list", "-o", "json")[1])
    assert (document["kind"], [item["kind"] for item in document["items"]]) == ("FaultKinds", list(KINDS))
    assert {name for item in document["items"] for name in item} == {"kind", "usage", "what", "example"}
    assert run("break", "--list", "-o", "name")[1].split() == list(KINDS)


@pytest.mark.parametrize("words", [("break", "agent", "node-1"), ("heal",)])
def test_only_labs_are_broken(run, words) -> None:
    code, _, err = run(*words)
    assert (code, "only labs can be" in err, "overlaynet up" in err) == (2, True, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("break",), "what is to be broken?"),
        (("break", "agent", "node-1", "--for", "soon"), "'soon' is not like 30s or 5m"),
        (("break", "agent", "node-1", "--for", "0s"), "a fault lasts longer than 0 s"),
        (("break", "rule", "node-1", "any", "any", "--drop", "--reject"), "a rule drops or it rejects"),
        (("heal", "f1", "--all"), "--all, or some by name"),
    ],
)
def test_words_that_say_nothing_are_refused(run, words, said) -> None:
    code, _, err = run(*words)
    assert (code, said in err) == (2, True)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_examples_are_understood(kind, tmp_path: Path) -> None:
    """Those of hosts and containers that this lab has no three of are about its second ones."""
    words = kind.example.replace("node-2,node-3", "node-2").replace("web-3", "web-2").split()[2:]
    options = {word for word in words if word.startswith("--")}
    target = [word for word in words[1:] if word not in options | {"30s"}]
    request = Request(tuple(target), "--wrong" in options, target="DROP" if "--drop" in options else None)
    assert fake_faults(tmp_path, FakeGrip()).make(words[0], request, NOW).fault.kind == words[0]


def test_hidden_fault_is_a_line_that_does_not_tell_it(tmp_path: Path) -> None:
    faults = fake_faults(tmp_path, FakeGrip())
    fault = faults.make("fdb", Request(("node-1", "node-2")), NOW, hidden=True).fault
    assert fault_line(fault.as_item()) == "hidden  f1, to be found: overlaynet lab check"


def test_fault_is_told_in_the_words_of_the_tools(tmp_path: Path) -> None:
    faults = fake_faults(tmp_path, FakeGrip())
    made = faults.make("fdb", Request(("node-1", "node-2"), wrong=True), NOW, 30.0)
    assert made_text(made, "overlaynet {}".format).splitlines() == [
        "f1  fdb node-1 node-2 --wrong, for 30 s",
        "  done  node-1: bridge fdb replace 02:0a:f4:02:00:00 dev flannel.1 dst 192.168.50.99 self permanent",
        "  held  fdb flannel.1 02:0a:f4:02:00:00: the agent of node-1 leaves it alone",
        "  undo  node-1: its agent puts back what it looks after",
        "next: overlaynet heal f1",
    ]
    repaired = made_text(Made(made.fault, 0.25), "overlaynet {}".format).splitlines()
    assert repaired[-1] == "repaired by the agent of node-1 after 0.2 s; nothing is broken now"


@pytest.mark.parametrize(
    ("kind", "to", "done"),
    [
        ("route", "node-1", "10.244.2.0/24 via 10.244.1.0 dev flannel.1"),
        ("route", "10.244.7.0", "10.244.2.0/24 via 10.244.7.0 dev flannel.1"),
        ("fdb", "node-1", "dst 192.168.50.11"),
        ("fdb", "192.168.50.77", "dst 192.168.50.77"),
    ],
)
def test_a_name_stands_for_the_address_that_is_meant(tmp_path: Path, kind: str, to: str, done: str) -> None:
    made = fake_faults(tmp_path, FakeGrip()).make(kind, Request(("node-1", "node-2"), to=to), NOW)
    assert done in made_text(made, "overlaynet {}".format)


@pytest.mark.parametrize("kind", ["route", "fdb"])
def test_what_is_neither_an_address_nor_a_name_is_refused_with_the_names(tmp_path: Path, kind: str) -> None:
    with pytest.raises(NotFound, match="'node-9' is no address") as refused:
        fake_faults(tmp_path, FakeGrip()).make(kind, Request(("node-1", "node-2"), to="node-9"), NOW)
    assert "node-1, node-2" in refused.value.evidence


def test_what_is_still_broken_is_told(tmp_path: Path) -> None:
    faults = fake_faults(tmp_path, FakeGrip())
    faults.make("etcd", Request(()), NOW)
    faults.make("agent", Request(("node-1",)), NOW + 1, 60.0)
    healed = faults.heal(["f1"], NOW)
    assert healed_text(healed, faults.all).splitlines() == [
        "healed f1  etcd",
        "broken  f2 agent node-1, until 1970-01-12T13:47:41.000Z: agent of node-1",
    ]
    assert healed_text((), ()) == "nothing is broken"
    assert fault_line(healed[0].as_item()) == "broken  f1 etcd, until healed: etcd"
