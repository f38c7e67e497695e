"""`get --watch`: what became of a list, as rows, as documents and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest

from overlaynet.cli import surveys, watching
from overlaynet.cli.app import App
from overlaynet.cli.output import members
from overlaynet.cli.watching import ADDED, CHANGED, REMOVED, Event, Watched, _Screen, events, identified
from overlaynet.errors import LabFailed, StoreUnavailable
from overlaynet.state import ROUTE_PROTOCOL, Change, Op

pytestmark = pytest.mark.fake

OLD, NEW = {"name": "a", "x": 1, "age": 1}, {"name": "a", "x": 2, "age": 1}


def named(*items):
    return identified(items, "{name}")


@pytest.fixture
def looks(monkeypatch):
    """Looks follow each other at once; after each, the next of these is done. The last of them is Ctrl-C."""
    todo = []

    def sleep(_):
        if not todo:
            raise KeyboardInterrupt
        todo.pop(0)()

    monkeypatch.setattr(watching.time, "sleep", sleep)
    return todo


def drop_route(cluster, host="node-1"):
    route = next(r for r in cluster.kernels[host].observe().routes if r.protocol == ROUTE_PROTOCOL)
    cluster.kernels[host].tamper(Change(Op.DROP, route))
    return route


# --- what became of it ----------------------------------------------------------------------------


def test_what_is_new_what_differs_and_what_is_gone():
    assert list(events({}, named(OLD), ())) == [Event(ADDED, ("a", 0), OLD)]
    assert list(events(named(OLD), named(NEW), ())) == [Event(CHANGED, ("a", 0), NEW)]
    assert list(events(named(OLD), {}, ())) == [Event(REMOVED, ("a", 0), OLD)]
    assert list(events(named(OLD), named(OLD), ())) == []


def test_time_that_passes_is_no_change():
    older = {**OLD, "age": 2}
    assert list(events(named(OLD), named(older), ("age",))) == []
    assert [e.type for e in events(named(OLD), named({**NEW, "age": 2}), ("age",))] == [CHANGED]


def test_two_of_one_name_are_two():
    assert list(named(OLD, NEW)) == [("a", 0), ("a", 1)]


# --- documents and rows ---------------------------------------------------------------------------


def test_json_is_a_document_a_line_and_only_for_what_changed(run, cluster, looks):
    gone = []
    looks += [lambda: None, lambda: gone.append(drop_route(cluster))]
    code, out, err = run("get", "routes", "node-1", "-w", "-o", "json")
    found = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert {(doc["schema"], doc["kind"], doc["lab"]) for doc in found} == {
        ("overlaynet/v1", "Change", cluster.name)
    }
    *first, last = [(doc["type"], doc["item"]["dst"], doc["item"]["state"]) for doc in found]
    assert {row[0] for row in first} == {"added"}
    assert (last[0], last[1]) == ("changed", str(gone[0].dst))
    assert last[2] == "missing", "an intended entry that is gone is an item still"


def test_rows_have_a_header_once_and_only_changes_follow(run, cluster, looks):
    looks += [lambda: None, lambda: drop_route(cluster)]
    _, out, _ = run("get", "routes", "node-1", "--watch")
    lines = [line.split() for line in out.splitlines()]
    plain = run("get", "routes", "node-1")[1].splitlines()
    assert [line[:3] for line in lines if line[0] == "TIME"] == [["TIME", "CHANGE", "HOST"]]
    assert [line[1] for line in lines[1:]] == ["added"] * (len(plain) - 1) + ["changed"]
    assert "missing" in lines[-1]


def test_what_passes_is_waited_for_and_what_does_not_ends_it(run, cluster, looks, monkeypatch):
    store = cluster.store

    def away():
        monkeypatch.setattr(cluster, "store", lambda: (_ for _ in ()).throw(StoreUnavailable("etcd is away")))

    def broken():
        monkeypatch.setattr(cluster, "store", lambda: (_ for _ in ()).throw(LabFailed("it is gone")))

    looks += [away, lambda: monkeypatch.setattr(cluster, "store", store), broken]
    code, out, err = run("get", "leases", "--watch")
    assert code == 3
    assert len(out.splitlines()) == 3
    assert "OVL-301: etcd is away; trying again" in err
    assert "error OVL-203: it is gone" in err


@pytest.mark.parametrize("form", ["yaml", "name"])
def test_form_without_a_line_for_a_change_is_refused(run, form):
    code, out, err = run("get", "routes", "--watch", "-o", form)
    assert (code, "--watch -o json" in out + err) == (2, True)


def test_timeout_ends_it_and_not_a_look(run, cluster, monkeypatch):
    given, waits, probe = [], [], cluster.probe

    def timed(host, job, timeout_s):
        given.append(timeout_s)
        return probe(host, job, timeout_s)

    monkeypatch.setattr(cluster, "probe", timed)
    monkeypatch.setattr(watching.time, "sleep", waits.append)
    assert run("get", "routes", "node-1", "--watch", "--timeout", "0.2")[0] == 0
    assert set(given) == {surveys.TIMEOUT_S}
    assert max(waits, default=0) <= 0.2


# --- on a terminal --------------------------------------------------------------------------------


def test_screen_marks_what_changed_lately_and_keeps_what_is_gone_for_a_while(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(watching.time, "monotonic", lambda: clock[0])
    watched = Watched("overlaynet get things", list, "{name}", members("NAME", "X"), lambda item: False, ())
    screen, app = _Screen(), App(colour=False)

    def drawn(before, now):
        screen._note(list(events(before, now, ())))
        screen.drawn = True
        return [watching.click.unstyle(line) for line in screen.lines(app, watched, now)[2:]]

    both, one = named(OLD, {"name": "b", "x": 1}), named(NEW)
    assert drawn({}, both) == ["  NAME  X", "  a     1", "  b     1"]
    assert drawn(both, one) == ["  NAME  X", "~ a     2", "- b     1"]
    clock[0] = watching.MARKED_S
    assert drawn(one, one) == ["  NAME  X", "  a     2"]


def test_terminal_is_redrawn_in_place_and_ctrl_c_ends_with_0(tmp_path):
    """In a process of its own, with labs of an empty directory."""
    script = (
        "import sys, pathlib; from overlaynet.lab.paths import Paths; from overlaynet.cli.main import main;"
        f"here = pathlib.Path({str(tmp_path)!r}); Paths.here = classmethod(lambda cls: Paths(here, here));"
        "sys.exit(main(['get', 'labs', '--watch']))"
    )
    controller, terminal = pty.openpty()
    environ = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=environ, stdin=terminal, stdout=terminal, start_new_session=True
    )
    os.close(terminal)
    text, deadline = "", time.monotonic() + 30
    while text.count("\x1b[H") < 2 and time.monotonic() < deadline:
        if select.select([controller], [], [], 0.5)[0]:
            text += os.read(controller, 4096).decode()
    os.kill(process.pid, 2)
    assert process.wait(timeout=10) == 0
    os.close(controller)
    assert (text.count("\x1b[2J"), "overlaynet get labs" in text) == (1, True)


def test_dumb_terminal_gets_rows_and_no_colour(run, cluster, looks, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    code, out, _ = run("get", "leases", "--watch")
    assert (code, out.split()[:2], "\x1b" in out) == (0, ["TIME", "CHANGE"], False)
