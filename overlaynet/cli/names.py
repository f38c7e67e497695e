"""The names that Tab completes: labs, hosts, containers, services, points, kinds, lessons.

They come from what lies on the disk, lab.json above all: no agent, no etcd and no lab is asked, so that an
answer takes a tenth of a second and a lab that is down has names all the same. Services are those of the
topology; what was created since is in etcd, which is not asked. Never fails: what cannot be read has no names.

A function here is a parameter's `shell_complete`, and is known by its own name in `cli/lines.json`, from which
a shell's question is answered without the verbs' own modules.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    import click

Item: TypeAlias = CompletionItem[str]
Completer: TypeAlias = "Callable[[click.Context, click.Parameter, str], list[Item]]"
COMPLETERS: dict[str, Completer] = {}

LINES = Path(__file__).with_name("lines.json")
ETCD, UNDERLAY, OUTSIDE = "etcd", "underlay", "outside"
FILTER_WORDS = ("tcp", "udp", "icmp", "arp", "vxlan", "tunnelled", "host", "src", "dst", "port", "net", "not")


class Named(NamedTuple):
    """What one lab has names for. `containers` by their host."""

    lab: str
    hosts: tuple[str, ...] = ()
    containers: Mapping[str, str] = {}
    services: tuple[str, ...] = ()
    faults: Mapping[str, str] = {}
    outside: bool = False


def named(lab: str | None) -> list[Named]:
    """Of the lab that is meant; of all that run where that is not said. Nothing of what cannot be read."""
    from overlaynet.lab.paths import Paths

    paths = Paths.here()
    wanted = lab or os.environ.get("OVERLAYNET_LAB")
    found = []
    for name in paths.names():
        if wanted in (None, "", name):
            files = paths.lab(name)
            document = _read(files.lab_json) or _read(files.durable_json)
            found.append(_named(name, document, _read(files.faults_json)))
    return found


def _read(file: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _named(lab: str, document: Mapping[str, Any], broken: Mapping[str, Any]) -> Named:
    try:
        topology = document["topology"]
        return Named(
            lab,
            tuple(host["name"] for host in topology["hosts"]),
            {container["name"]: container["host"] for container in topology["containers"]},
            tuple(
                service["metadata"]["name"] for service in topology["services"] if service["kind"] == "Service"
            ),
            {fault["id"]: f"{fault['kind']} {fault['target']}".strip() for fault in broken.get("faults", ())},
            outside=bool(topology["outside"]),
        )
    except (KeyError, TypeError, AttributeError):
        return Named(lab)


@cache
def lines() -> Mapping[str, Any]:
    """What `python -m overlaynet.cli.manual` wrote of the verbs, the kinds of `get` and those of `break`."""
    return _read(LINES)


def all_places(lab: str | None) -> Iterator[str]:
    """Wherever a command can be run."""
    return (name for name, _ in _places(named(lab)))


# --- completers -----------------------------------------------------------------------------------


def completer(function: Callable[[click.Context, str], Iterable[tuple[str, str]]]) -> Completer:
    """A parameter's `shell_complete`: of the pairs of name and help, those that begin as the word does."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Item]:
        items = dict(function(ctx, incomplete))
        return [CompletionItem(name, help=help) for name, help in items.items() if name.startswith(incomplete)]

    complete.__name__ = function.__name__
    COMPLETERS[function.__name__] = complete
    return complete


def _labs(ctx: click.Context) -> list[Named]:
    from overlaynet.cli.app import App

    app = ctx.find_object(App)
    return named(app.lab if app else None)


def _hosts(of: Iterable[Named]) -> Iterator[tuple[str, str]]:
    return ((host, f"host of {lab.lab}") for lab in of for host in lab.hosts)


def _containers(of: Iterable[Named]) -> Iterator[tuple[str, str]]:
    return ((name, f"container on {host}") for lab in of for name, host in lab.containers.items())


def _ends(of: Iterable[Named]) -> Iterator[tuple[str, str]]:
    yield from _containers(of)
    yield from _hosts(of)
    yield from ((OUTSIDE, "a client that is no host") for lab in of if lab.outside)


def _services(of: Iterable[Named], prefix: str = "") -> Iterator[tuple[str, str]]:
    return ((f"{prefix}{name}", f"service of {lab.lab}") for lab in of for name in lab.services)


def _places(of: Iterable[Named]) -> Iterator[tuple[str, str]]:
    yield from _ends(of)
    yield from ((name, f"of lab {lab.lab} itself") for lab in of if lab.hosts for name in (ETCD, UNDERLAY))


@completer
def labs(ctx: click.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    return ((lab.lab, f"{len(lab.hosts)} hosts, {len(lab.containers)} containers") for lab in named(""))


@completer
def hosts(ctx: click.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    return _hosts(_labs(ctx))


@completer
def containers(ctx: click.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    return _containers(_labs(ctx))


@completer
def services(ctx: click.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    return _services(_labs(ctx))


@completer
def services_with_kind(ctx: click.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """``svc/web``"""
    return _services(_labs(ctx), "svc/")


@completer
def places(ctx: click.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """Wherever a command can be run."""
    return _places(_labs(ctx))


@completer
def senders(ctx: click.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    return _ends(_labs(ctx))


@completer
def targets(ctx: click.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """Whoever a packet can be sent to."""
    of = _labs(ctx)
    yield from _ends(of)
    yield from _services(of, "svc/")


@completer
def points(ctx: click.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """Places, and behind a colon their interfaces that are the same in every lab."""
    yield from _points(_labs(ctx), incomplete)


@completer
def points_and_filter(ctx: click.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """What `capture` takes: a point first, then more of them, or a filter."""
    yield from _points(_labs(ctx), incomplete)
    if ctx.params.get("words"):
        yield from ((word, "filter") for word in FILTER_WORDS)


def _points(of: list[Named], incomplete: str) -> Iterator[tuple[str, str]]:
    if ":" not in incomplete:
        yield from _ends(of)
        return
    place = incomplete.partition(":")[0]
    on_hosts = (("eth0", "underlay"), ("cni0", "bridge of the containers"), ("flannel.1", "VXLAN device"))
    if any(place in lab.hosts for lab in of):
        yield from ((f"{place}:{device}", what) for device, what in on_hosts)
    elif any(place in lab.containers or place == OUTSIDE for lab in of):
        yield f"{place}:eth0", "its only interface"


@completer
def faults(ctx: click.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    return ((fault, words) for lab in _labs(ctx) for fault, words in lab.faults.items())


@completer
def fault_kinds(ctx: click.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    return ((kind, row["what"]) for kind, row in lines().get("faults", {}).items())


@completer
def fault_targets(ctx: click.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """What the usage of a kind says for the word that is next: ``HOST|CONTAINER|PLACE:IFACE BYTES``."""
    row = lines().get("faults", {}).get(ctx.params.get("kind") or "")
    given = len(ctx.params.get("target") or ())
    of = _labs(ctx)
    for usage in row["usage"].split(" | ") if row else ():
        words = [word.strip("[]") for word in usage.split()]
        for what in words[given].split("|") if given < len(words) else ():
            yield from _meant(of, what, incomplete)


def _meant(of: list[Named], what: str, incomplete: str) -> Iterable[tuple[str, str]]:
    match what:
        case "HOST" | "HOSTS":
            return _hosts(of)
        case "CONTAINER":
            return _containers(of)
        case "SRC" | "DST":
            return _ends(of)
        case "PLACE":
            return _places(of)
        case "PLACE:IFACE":
            return _points(of, incomplete)
        case "svc/NAME":
            return _services(of, "svc/")
        case "IFACE":
            return [("eth0", "underlay"), ("cni0", "bridge"), ("flannel.1", "VXLAN device")]
        case _:
            return ()


@completer
def kinds(ctx: click.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """Of `get`: in the plural; any other word for it only where it is begun."""
    for row in lines().get("kinds", ()):
        yield row["word"], row["columns"]
    for row in lines().get("kinds", ()) if incomplete else ():
        if not row["word"].startswith(incomplete):
            yield from ((word, row["columns"]) for word in row["others"] if len(word) > 2)


@completer
def of_kind(ctx: click.Context, incomplete: str) -> Iterable[tuple[str, str]]:
    """NAME of `get KIND NAME`."""
    of = _labs(ctx)
    kind = ctx.params.get("kind")
    rows = lines().get("kinds", ())
    match next((row["kind"] for row in rows if kind in (row["word"], *row["others"])), None):
        case "host" | "route" | "neigh" | "fdb" | "rule":
            return _hosts(of)
        case "container":
            return _containers(of)
        case "service" | "endpoint":
            return _services(of)
        case "lab":
            return ((lab.lab, "") for lab in named(""))
        case _:
            return ()


@completer
def lessons(ctx: click.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """The folders `NN-name` of labs/ and of one's own lessons, by name."""
    from overlaynet import data

    roots = [data.path("labs"), *map(Path, filter(None, [os.environ.get("OVERLAYNET_LESSONS")]))]
    for folder in sorted((f for root in roots for f in root.glob("[0-9][0-9]-*")), key=lambda f: f.name):
        number, _, name = folder.name.partition("-")
        yield name, f"lesson {int(number)}"


@completer
def programs(ctx: click.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """What a command line in a place is made of: a program, then names that become addresses."""
    given = [word for word in ctx.params.get("command") or () if word != "--"]
    if given:
        yield from _ends(_labs(ctx))
        return
    if not incomplete:
        yield from ((word, "") for word in ("--", "ip", "ping", "bridge", "iptables", "tcpdump"))
        return
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if Path(folder).is_dir():
            yield from ((file.name, "") for file in Path(folder).glob(f"{escape(incomplete)}*"))
