"""Kubernetes objects out of files as people and `kubectl` write them: YAML of several documents, JSON, lists.

An object keeps the file, the number of its document and the YAML node it came from, so that a mistake found
later can be told with its line. What YAML would silently do to an object is refused (a key that is there
twice) or not done at all (a date becomes no date but stays the text it is).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from overlaynet.errors import ObjectInvalid
from overlaynet.store import kubernetes
from overlaynet.store.place import Mistake, Path, shown

_LISTS = {"List": None, "ServiceList": kubernetes.SERVICE, "EndpointSliceList": kubernetes.ENDPOINT_SLICE}
"""Kinds that are lists, and what the items of each are if they do not say it themselves."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object: where it was found, and the object itself. `at` is its path within its document, `node` the
    YAML node of the document, None if it was JSON."""

    file: str
    number: int
    value: Mapping[str, Any]
    at: Path = ()
    node: Any = None

    def told(self, path: Path, problem: str) -> str:
        """One line about a mistake: file, line, document, object, field."""
        line = _line(self.node, (*self.at, *path))
        where = self.file if line is None else f"{self.file}:{line}"
        item = f", item {self.at[-1]}" if self.at else ""
        title = kubernetes.title(self.value) if self.value.get("kind") else "object"
        return f"{where}: document {self.number}{item}, {title}: {Mistake(path, problem)}"


def read(text: str, file: str) -> list[Manifest]:
    """Every object of a file, lists taken apart. Raises ObjectInvalid for what holds no objects."""
    return [found for document in _documents(text, file) for found in _items(document)]


def _items(document: Manifest) -> Iterator[Manifest]:
    kind = document.value.get("kind")
    if kind not in _LISTS:
        yield document
        return
    items = document.value.get("items") or []
    for n, item in enumerate(items if isinstance(items, list) else [items]):
        found = replace(document, at=("items", n), value=item if isinstance(item, dict) else {})
        if not isinstance(item, dict):
            raise _refused(found.told((), f"must be an object, not {shown(item)}"))
        yield replace(found, value=_with_kind(item, _LISTS[kind]))


def _with_kind(item: Mapping[str, Any], kind: str | None) -> Mapping[str, Any]:
    """The items of a typed list leave out what the list says for all."""
    return item if kind is None else {"apiVersion": kubernetes.API_VERSIONS[kind], "kind": kind, **item}


def _documents(text: str, file: str) -> Iterator[Manifest]:
    if text.lstrip()[:1] == "{":
        try:
            yield _checked(Manifest(file, 1, json.loads(text)))
        except (ValueError, RecursionError):
            yield from _yaml_documents(text, file)
        return
    yield from _yaml_documents(text, file)


def _yaml_documents(text: str, file: str) -> Iterator[Manifest]:
    import yaml  # here: it costs 50 ms

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        """The fast loader where there is one, without dates."""

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    loader = Loader(text)
    try:
        number = 0
        while loader.check_node():
            number += 1
            node = loader.get_node()
            _check_keys(node, file, number, set())
            value = loader.construct_document(node)
            if value is not None:
                yield _checked(Manifest(file, number, value, node=node))
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise _refused(f"{file}{line}: not YAML: {error.problem}", error.context or "") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise _refused(f"{file}: not YAML: {error}") from None
    finally:
        loader.dispose()


def _checked(found: Manifest) -> Manifest:
    """The same, if it is an object and JSON can hold it."""
    if not isinstance(found.value, dict):
        value, found = found.value, replace(found, value={})
        raise _refused(found.told((), f"must be a Kubernetes object, not {shown(value)}"))
    try:
        json.dumps(found.value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _refused(found.told((), f"cannot be written as JSON: {error}")) from None
    return found


def _check_keys(node: Any, file: str, number: int, seen: set[int]) -> None:
    """Refuse keys that are no text or there twice, at every level; `seen` stops at what an alias repeats."""
    if id(node) in seen:
        return
    seen.add(id(node))
    below = (
        node.value
        if node.id == "sequence"
        else [item for _, item in node.value]
        if node.id == "mapping"
        else ()
    )
    if node.id == "mapping":
        _check_mapping(node.value, file, number)
    for item in below:
        _check_keys(item, file, number, seen)


def _check_mapping(pairs: Sequence[tuple[Any, Any]], file: str, number: int) -> None:
    lines: dict[str, int] = {}
    for key, _ in pairs:
        line = key.start_mark.line + 1
        where = f"{file}:{line}: document {number}"
        if key.tag.endswith(":merge"):
            continue
        if key.id != "scalar" or not key.tag.endswith(":str"):
            raise _refused(f"{where}: a key must be text, not {shown(key.value)}", "put it in quotes")
        if key.value in lines:
            raise _refused(f"{where}: key {key.value!r} is there twice", f"first on line {lines[key.value]}")
        lines[key.value] = line


def _line(node: Any, path: Path) -> int | None:
    """The line of what stands at a path, or of the nearest thing around it."""
    if node is None:
        return None
    line: int = node.start_mark.line + 1
    for part in path:
        if node.id == "sequence" and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
            continue
        pair = next((p for p in node.value if p[0].value == part), None) if node.id == "mapping" else None
        if pair is None:
            break
        line, node = pair[0].start_mark.line + 1, pair[1]
    return line


def _refused(message: str, evidence: str = "") -> ObjectInvalid:
    return ObjectInvalid(message, evidence=evidence)
