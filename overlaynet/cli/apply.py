"""`overlaynet apply -f FILE`: Kubernetes Services and EndpointSlices into etcd.

All documents of all files are understood before any is written, and what they ask for is found to be free.
Every mistake is told with file, line, document and field.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cli.manifest import Manifest, read
from overlaynet.cli.output import Column, members, table
from overlaynet.errors import ObjectInvalid, OverlayError, UsageError
from overlaynet.store import kubernetes, services
from overlaynet.store.known_fields import unknown
from overlaynet.store.kubernetes import Object
from overlaynet.store.services import UNCHANGED, Written

namespace_option = click.option("-n", "--namespace", metavar="NS", help="The namespace; else `default`.")

_COLUMNS = (
    *members("ACTION", "KIND", "NAMESPACE", "NAME"),
    Column("CLUSTER-IP", lambda item: item["object"].get("spec", {}).get("clusterIP")),
    Column("NODE-PORT", lambda item: _node_ports(item["object"])),
)


@click.command()
@click.option("-f", "files", multiple=True, required=True, metavar="FILE", help="A file, or - for the input.")
@namespace_option
@shared
@pass_app
def apply(app: App, files: tuple[str, ...], namespace: str | None) -> None:
    """Write the Services and EndpointSlices of FILE, as Kubernetes has them, into the cluster.

    FILE is YAML of one or more documents, or JSON; lists, as `kubectl get svc,endpointslices -A -o yaml` prints
    them, are taken apart. Nothing is written unless all of it is right. A service that asks for no VIP or
    nodePort keeps the one it has, or is given one. An object is replaced as a whole.
    """
    app.explain_store()
    found = [manifest for file in files for manifest in read(_text(file), file)]
    if not found:
        raise UsageError("there is no object to apply", evidence=", ".join(files))
    values = _understood(found, namespace)
    try:
        written = write(app, values)
    except ObjectInvalid as error:
        raise _placed(error, found, namespace) from None
    for manifest in found:
        for path, problem in unknown(manifest.value):
            app.note(manifest.told(path, problem))
    show(app, "Apply", written)


def write(app: App, values: Sequence[Object]) -> list[Written]:
    """Write objects, and tell what is worth knowing of them; if it stops midway, what was written by then."""
    done: list[Written] = []
    store = app.cluster.store()
    try:
        written = services.apply(store, app.cluster.keys(), values, done.append)
    except OverlayError:
        if done:
            app.note(f"written before the error: {', '.join(map(_title, done))}")
        raise
    finally:
        store.close()
    for one in written:
        for note in one.notes:
            app.note(f"{_title(one)}: {note}")
    return written


def show(app: App, kind: str, written: Sequence[Written]) -> None:
    """The result of `apply` and of `service`: what became of each object."""
    items = [_item(one) for one in written]
    changes = sum(one.action != UNCHANGED for one in written)
    names = [f"{one.kind.lower()}/{one.name}" for one in written]
    app.result(
        kind,
        {"changes": changes, "items": items},
        lambda: table(_COLUMNS, items, wide=app.wide, width=app.width),
        names,
    )


def _item(one: Written) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "namespace": one.namespace,
        "name": one.name,
        "action": one.action,
        "notes": list(one.notes),
        "object": one.object,
    }


def _node_ports(value: Object) -> list[int]:
    ports: Iterable[Mapping[str, Any]] = value.get("spec", {}).get("ports") or ()
    return [port["nodePort"] for port in ports if port.get("nodePort")]


def _title(one: Written) -> str:
    return f"{one.kind} {one.namespace}/{one.name}"


def _text(file: str) -> str:
    try:
        return sys.stdin.buffer.read().decode() if file == "-" else Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read", evidence=str(error)) from None


def _understood(found: Sequence[Manifest], namespace: str | None) -> list[Object]:
    """The objects, each in its namespace. Raises ObjectInvalid with the mistakes of them all."""
    told: list[str] = []
    values = []
    for manifest in found:
        value = in_namespace(manifest.value, namespace)
        values.append(value)
        if namespace and kubernetes.identity(value)[0] != namespace:
            told.append(manifest.told(("metadata", "namespace"), f"is not {namespace}, as -n says"))
        try:
            kubernetes.read(value)
        except ObjectInvalid as error:
            told += [manifest.told(path, problem) for path, problem in error.mistakes]
    if told:
        raise refused(told)
    return values


def in_namespace(value: Object, namespace: str | None) -> Object:
    """The object in this namespace, if it names none itself."""
    metadata = value.get("metadata")
    if not namespace or not isinstance(metadata, dict) or metadata.get("namespace"):
        return value
    return {**value, "metadata": {**metadata, "namespace": namespace}}


def _placed(error: ObjectInvalid, found: Sequence[Manifest], namespace: str | None) -> ObjectInvalid:
    """A refusal of the catalogue, with the places of the documents that it is about."""
    about = [m for m in found if kubernetes.title(in_namespace(m.value, namespace)) == error.subject]
    told = [about[-1].told(path, problem) for path, problem in error.mistakes] if about else [error.message]
    return refused(told, type(error), error.next)


def refused(
    told: Sequence[str], kind: type[ObjectInvalid] = ObjectInvalid, next: Sequence[str] = ()
) -> ObjectInvalid:
    """One mistake is the message; of several, the message is their number."""
    if len(told) == 1:
        return kind(told[0], evidence="nothing was written", next=next)
    return kind(f"{len(told)} mistakes; nothing was written", evidence="\n".join(told), next=next)
