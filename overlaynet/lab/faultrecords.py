"""What is broken in a lab on purpose, on disk: `faults.json`, beside `lab.json`.

A fault is written down *before* it is made, with all that it takes to undo it, so that whatever a crash leaves
half done can be mended by the next command. Nothing in it is a step: each part says what an object was and what
the fault makes of it, and whoever mends looks at what is there now.

    LinkChange   an interface's state or MTU
    Entry        a route, a neighbour, a forwarding entry or a kernel setting
    RuleChange   the rules of one chain, as far as they are ours (overlaynet.state.RuleChange)
    kills, ends  places all of whose processes end, and processes of the lab by their names

The file lies in /run: what is broken in namespaces and processes does not outlive a reboot either.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from typing import Any, NamedTuple

from overlaynet.core.jsonstate import object_from_json, object_to_json
from overlaynet.errors import LabFailed, NotFound, OverlayError
from overlaynet.kernel.process import Process
from overlaynet.lab.paths import LabPaths
from overlaynet.state import Fdb, Key, Neigh, Object, Route, RuleChange, Source, Sysctl
from overlaynet.store.disk import write_atomically

UP, MTU = "up", "mtu"
"""What a `LinkChange` changes: 1 or 0, or bytes."""
HIDDEN = "hidden"
"""What is told of a fault that is to be found, in the place of its kind."""


class LinkChange(NamedTuple):
    """One attribute of one interface."""

    place: str
    device: str
    attribute: str
    before: int
    after: int


class Entry(NamedTuple):
    """One object of a place's tables; None: it is not there. `owned`: an agent looks after it."""

    place: str
    before: Object | None
    after: Object | None
    owned: bool = False

    @property
    def object(self) -> Object:
        """Either, for what both have in common."""
        found = self.after if self.before is None else self.before
        assert found is not None
        return found

    @property
    def key(self) -> Key:
        return self.object.key


class Edit(NamedTuple):
    """The rules of one chain of a place: of a chain of ours all, else ours alone, or those put in."""

    place: str
    change: RuleChange
    owned: bool = False


class Held(NamedTuple):
    """An object that the agent of a host is asked to leave alone, by its kind and key in the agent's API."""

    host: str
    kind: str
    key: str


@dataclass(frozen=True, slots=True)
class Damage:
    """What a fault does. `object`: what is broken, in words; `touches`: names of all that must not be broken
    twice; `host`: where it is, None for what lies between hosts."""

    object: str
    touches: tuple[str, ...]
    host: str | None = None
    links: tuple[LinkChange, ...] = ()
    entries: tuple[Entry, ...] = ()
    edits: tuple[Edit, ...] = ()
    kills: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    holds: tuple[Held, ...] = ()

    @property
    def places(self) -> frozenset[str]:
        """Where something is changed or ended."""
        changed = [link.place for link in self.links] + [entry.place for entry in self.entries]
        return frozenset({*changed, *(edit.place for edit in self.edits), *self.kills})

    @property
    def owners(self) -> tuple[str, ...]:
        """Places where an agent looks after something of it, in order."""
        owners = [entry.place for entry in self.entries if entry.owned]
        owners += [edit.place for edit in self.edits if edit.owned] + [held.host for held in self.holds]
        return tuple(dict.fromkeys(owners))


@dataclass(frozen=True, slots=True)
class Fault:
    """`target`: the words it was asked for with. `since`: seconds since 1970; `for_s`: seconds after which it
    ends by itself, None for never; `timer`: the process that sees to that. `hidden`: it is to be found, so that
    nothing that is printed tells which it is."""

    id: str
    kind: str
    target: str
    since: float
    damage: Damage
    for_s: float | None = None
    timer: Process | None = None
    hidden: bool = False

    @property
    def words(self) -> str:
        """What was asked for: ``fdb node-1 node-2``."""
        return HIDDEN if self.hidden else f"{self.kind} {self.target}".rstrip()

    @property
    def until(self) -> float | None:
        """When it ends by itself, in seconds since 1970."""
        return None if self.for_s is None else self.since + self.for_s

    def is_over(self, now: float) -> bool:
        """Whether its time is up."""
        return self.until is not None and self.until <= now

    def as_item(self) -> dict[str, Any]:
        """For the command line's documents."""
        if self.hidden:
            return replace(self, hidden=False, kind=HIDDEN, target="", damage=Damage(HIDDEN, ())).as_item()
        damage = self.damage
        return {
            "id": self.id,
            "kind": self.kind,
            "target": self.target,
            "object": damage.object,
            "host": damage.host,
            "since": _time(self.since),
            "until": None if self.until is None else _time(self.until),
            "for_s": self.for_s,
            "hold": [f"{held.kind} {held.key}" for held in damage.holds],
        }


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def free_id(faults: Iterable[Fault]) -> str:
    """``f1``, or the first number that is free."""
    taken = {fault.id for fault in faults}
    return next(f"f{number}" for number in count(1) if f"f{number}" not in taken)


def find(faults: Sequence[Fault], ident: str) -> Fault:
    """Raises NotFound."""
    found = next((fault for fault in faults if fault.id == ident), None)
    if found is None:
        known = ", ".join(f"{fault.id} ({fault.words})" for fault in faults) or "none"
        raise NotFound(f"there is no fault {ident!r}", evidence=f"faults: {known}", next=["overlaynet status"])
    return found


# --- on disk --------------------------------------------------------------------------------------


def load(paths: LabPaths) -> tuple[Fault, ...]:
    """Every fault of a lab, oldest first. Raises LabFailed for a file that makes no sense."""
    try:
        document = json.loads(paths.faults_json.read_text("utf-8"))
        return tuple(_fault(item) for item in document["faults"])
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverlayError) as error:
        raise LabFailed(
            f"the lab's faults in {paths.faults_json} cannot be read",
            evidence=f"{type(error).__name__}: {error}",
            next=[f"overlaynet down -l {paths.run.name}"],
        ) from None


def present(paths: LabPaths, now: float, *, on_machines: bool) -> tuple[Fault, ...]:
    """Those that are not over: machines end theirs by themselves, and nobody takes them off the record here.

    Raises LabFailed."""
    return tuple(fault for fault in load(paths) if not (on_machines and fault.is_over(now)))


def save(paths: LabPaths, faults: Sequence[Fault]) -> None:
    """Write them; no file where there are none."""
    if not faults:
        paths.faults_json.unlink(missing_ok=True)
        return
    document = {"schema": "overlaynet/v1", "kind": "Faults", "faults": [_document(fault) for fault in faults]}
    write_atomically(paths.faults_json, json.dumps(document, indent=1) + "\n", 0o644)


def _document(fault: Fault) -> dict[str, Any]:
    """Of a hidden fault nobody reads by accident what it is."""
    if fault.hidden:
        told = json.dumps(_document(replace(fault, hidden=False)))
        return {"id": fault.id, "kind": HIDDEN, "target": "", HIDDEN: base64.b64encode(told.encode()).decode()}
    return {
        "id": fault.id,
        "kind": fault.kind,
        "target": fault.target,
        "since": fault.since,
        "for_s": fault.for_s,
        "timer": None if fault.timer is None else [fault.timer.pid, fault.timer.start],
        **damage_document(fault.damage),
    }


def damage_document(damage: Damage) -> dict[str, Any]:
    """All of it; `damage_of` is the inverse."""
    return {
        "object": damage.object,
        "touches": list(damage.touches),
        "host": damage.host,
        "links": [link._asdict() for link in damage.links],
        "entries": [
            {**entry._asdict(), "before": _written(entry.before), "after": _written(entry.after)}
            for entry in damage.entries
        ],
        "edits": [_edit_document(edit) for edit in damage.edits],
        "kills": list(damage.kills),
        "ends": list(damage.ends),
        "holds": [held._asdict() for held in damage.holds],
    }


def _written(obj: Object | None) -> dict[str, Any] | None:
    return None if obj is None else object_to_json(obj)


def _edit_document(edit: Edit) -> dict[str, Any]:
    change = edit.change
    rules = {"want": list(change.want or ()), "have": list(change.have or ())}
    return {"place": edit.place, "table": change.table, "chain": change.chain, **rules, "owned": edit.owned}


def _fault(item: Mapping[str, Any]) -> Fault:
    if HIDDEN in item:
        return replace(_fault(json.loads(base64.b64decode(item[HIDDEN]))), hidden=True)
    timer = None if item["timer"] is None else Process(*item["timer"])
    return Fault(item["id"], item["kind"], item["target"], item["since"], damage_of(item), item["for_s"], timer)


def damage_of(item: Mapping[str, Any]) -> Damage:
    """Raises KeyError, TypeError or ValueError for what `damage_document` did not write."""
    return Damage(
        object=item["object"],
        touches=tuple(item["touches"]),
        host=item["host"],
        links=tuple(LinkChange(**link) for link in item["links"]),
        entries=tuple(
            Entry(e["place"], _read(e["before"]), _read(e["after"]), e["owned"]) for e in item["entries"]
        ),
        edits=tuple(_edit(edit) for edit in item["edits"]),
        kills=tuple(item["kills"]),
        ends=tuple(item["ends"]),
        holds=tuple(Held(**held) for held in item["holds"]),
    )


def _read(document: Mapping[str, Any] | None) -> Object | None:
    return None if document is None else object_from_json(document)


def _edit(item: Mapping[str, Any]) -> Edit:
    change = rule_change(item["table"], item["chain"], item["want"], item["have"])
    return Edit(item["place"], change, item["owned"])


def rule_change(table: str, chain: str, want: Iterable[str], have: Iterable[str]) -> RuleChange:
    """From rules to rules, either of which may be none."""
    return RuleChange("changed", table, chain, tuple(want), tuple(have), Source("fault", ""))


# --- in words -------------------------------------------------------------------------------------


class Words(NamedTuple):
    """A command of `ip`, `bridge`, `sysctl`, `iptables` or `kill`, and the place where it would be typed."""

    place: str
    command: str

    def __str__(self) -> str:
        return f"{self.place}: {self.command}"


def making(damage: Damage) -> list[Words]:
    """What a person would type to do the same damage."""
    words = [Words(place, "kill -9 every process") for place in damage.kills]
    if not damage.kills:
        words += [Words(name.rpartition("/")[2], f"kill -9 {_role(name)}") for name in damage.ends]
    words += [Words(link.place, _link_words(link, link.after)) for link in damage.links]
    words += [
        Words(e.place, entry_words(e.before, e.after)) for e in damage.entries if not _goes_along(e, damage)
    ]
    for edit in damage.edits:
        words += [Words(edit.place, line) for line in rule_words(edit.change)]
    return words


def mending(damage: Damage) -> list[Words]:
    """What a person would type to undo it; what an agent does by itself is said in one line."""
    words = [Words(link.place, _link_words(link, link.before)) for link in reversed(damage.links)]
    words += [Words(e.place, entry_words(e.after, e.before)) for e in damage.entries if not e.owned]
    for edit in damage.edits:
        if not edit.owned:
            back = rule_change(
                edit.change.table, edit.change.chain, edit.change.have or (), edit.change.want or ()
            )
            words += [Words(edit.place, line) for line in rule_words(back)]
    words += [Words(name.rpartition("/")[2], f"start {_role(name)}") for name in damage.ends]
    return words + [Words(host, "its agent puts back what it looks after") for host in damage.owners]


def _goes_along(entry: Entry, damage: Damage) -> bool:
    """Whether the kernel itself removes this, since its device is taken down."""
    down = {(link.place, link.device) for link in damage.links if link.attribute == UP}
    return (entry.place, getattr(entry.object, "dev", None)) in down


def _role(name: str) -> str:
    roles = {"agent": "the agent", "command": "the container's command", "helper": "the probe's helper"}
    return roles.get(name.rpartition("/")[0], name)


def _link_words(link: LinkChange, value: int) -> str:
    state = ("up" if value else "down") if link.attribute == UP else f"mtu {value}"
    return f"ip link set dev {link.device} {state}"


def entry_words(before: Object | None, after: Object | None) -> str:
    """The command that makes `after` of `before`, either of which may be none."""
    obj = before if after is None else after
    verb = "del" if after is None else "replace"
    match obj:
        case Sysctl(name, value):
            return f"sysctl -w {name}={value}"
        case Route():
            via = f" via {obj.via}" if obj.via else ""
            onlink = " onlink" if obj.onlink else ""
            more = (f" metric {obj.metric}" if obj.metric else "") + f" proto {obj.protocol}"
            return f"ip route {verb} {obj.dst}{via} dev {obj.dev}{onlink}{more}"
        case Neigh():
            more = "" if after is None else f" lladdr {obj.mac} nud {obj.state}"
            return f"ip neigh {verb} {obj.ip}{more} dev {obj.dev}"
        case Fdb():
            where = f"dst {obj.dst} self" if obj.dst else "master"
            return f"bridge fdb {verb} {obj.mac} dev {obj.dev} {where} {obj.state}"
    raise TypeError(f"a fault changes no {obj!r}")


def rule_words(change: RuleChange) -> list[str]:
    """Rules off by their numbers, last first, and then on."""
    want, have = change.want or (), change.have or ()
    where = f"iptables -t {change.table}"
    off = [n for n, text in enumerate(have, 1) if text not in want]
    words = [f"{where} -D {change.chain} {have[n - 1]}" for n in reversed(off)]
    return words + [
        f"{where} -I {change.chain} {n} {text}" for n, text in enumerate(want, 1) if text not in have
    ]
