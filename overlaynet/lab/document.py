"""A YAML document that remembers on which line each of its values stands.

PyYAML keeps the place of every node until it turns nodes into values; here both are kept, so that a
complaint about `hosts[1].zone` can name the line. Two habits of YAML that hide mistakes are refused: a
key that is there twice (the first would be silently lost) and a key that is no text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from overlaynet import data
from overlaynet.errors import TopologyError
from overlaynet.store.place import Path, dotted

ADVICE = ("correct it there; labs/quickstart.yaml is a small file that works",)
MAX_DEPTH = 20
"""Deeper than any topology; a document that contains itself by an alias ends here."""


@dataclass(frozen=True, slots=True)
class Document:
    """A decoded document, the file it came from and the line of each value."""

    file: str
    value: dict[str, Any]
    lines: Mapping[Path, int] = field(default_factory=dict)

    def error(self, path: Path, message: str, evidence: str = "") -> TopologyError:
        """A complaint about the value at `path`: file, line, path, then the message."""
        where = self.file
        line = next((self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines), None)
        if line is not None:
            where += f":{line}"
        spot = f"{dotted(path)}: " if path else ""
        return TopologyError(f"{where}: {spot}{message}", evidence=evidence, next=ADVICE)


def read_yaml(text: str, file: str) -> Document:
    """Decode; raise TopologyError for what is not YAML or no mapping."""
    import yaml  # here: only a topology from a file needs it, and it costs 50 ms

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        lines = dict(_lines(node, (), file)) if node is not None else {}
        value = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise TopologyError(
            f"{file}{line}: not YAML: {error.problem}", evidence=error.context or "", next=ADVICE
        ) from None
    except yaml.YAMLError as error:
        raise TopologyError(f"{file}: not YAML", evidence=str(error), next=ADVICE) from None
    if not isinstance(value, dict):
        raise TopologyError(f"{file}:1: a topology is a mapping", evidence=f"it is {value!r:.60}", next=ADVICE)
    return Document(file, value, lines)


def _lines(node: Any, path: Path, file: str) -> Iterator[tuple[Path, int]]:
    """The line of the node and of everything below it; a mapping's value counts as standing at its key."""
    if len(path) > MAX_DEPTH:
        raise TopologyError(f"{file}: nested too deep", evidence=dotted(path), next=ADVICE)
    yield path, node.start_mark.line + 1
    if node.id == "sequence":
        for index, item in enumerate(node.value):
            yield from _lines(item, (*path, index), file)
    elif node.id == "mapping":
        yield from _mapping_lines(node.value, path, file)


def _mapping_lines(pairs: Iterable[tuple[Any, Any]], path: Path, file: str) -> Iterator[tuple[Path, int]]:
    seen: dict[str, int] = {}
    for key, item in pairs:
        line = key.start_mark.line + 1
        if key.id != "scalar" or not key.tag.endswith(":str"):
            raise TopologyError(
                f"{file}:{line}: {dotted(path)}: a key must be text", evidence=str(key.value), next=ADVICE
            )
        below = (*path, key.value)
        if key.value in seen:
            raise TopologyError(
                f"{file}:{line}: {dotted(below)}: this key is there twice",
                evidence=f"first on line {seen[key.value]}",
                next=ADVICE,
            )
        seen[key.value] = line
        yield from _lines(item, below, file)
        yield below, line


def check_schema(document: Document) -> None:
    """Hold the document against the schema; raise TopologyError for its first fault from the top."""
    import jsonschema  # here: it costs 0.2 s, and only a topology from a file needs it

    schema = json.loads(data.path("labs", "topology.schema.json").read_text("utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    faults = [_fault(document, error) for error in validator.iter_errors(document.value)]
    if faults:
        faults.sort(key=lambda fault: (document.lines.get(fault[0], 0), dotted(fault[0])))
        path, message, evidence = faults[0]
        more = f"; and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise document.error(path, message, evidence + more)


def _fault(document: Document, error: Any) -> tuple[Path, str, str]:
    """Path, message and evidence of one schema error, in our words where the schema's are obscure."""
    path: Path = tuple(error.absolute_path)
    match error.validator:
        case "additionalProperties":
            known = sorted(error.schema["properties"])
            unknown = next(key for key in error.instance if key not in known)
            return (*path, unknown), "unknown key", "known here: " + ", ".join(known)
        case "required":
            missing = next(key for key in error.validator_value if key not in error.instance)
            return path, f"{missing!r} is missing", ""
        case "type":
            return path, f"wants {_kind(error.validator_value)}", f"it is {error.instance!r:.60}"
        case "minItems":
            return path, "must not be empty", ""
        case "maxItems":
            return path, f"has more than {error.validator_value} items", f"it has {len(error.instance)}"
        case "const" | "enum":
            allowed = error.validator_value
            words = allowed if error.validator == "enum" else [allowed]
            return path, "must be " + " or ".join(map(repr, words)), f"it is {error.instance!r:.60}"
    return path, f"{error.message:.120}", ""


def _kind(name: str) -> str:
    return {
        "string": "text",
        "integer": "a whole number",
        "object": "a mapping",
        "array": "a list",
        "boolean": "true or false",
        "number": "a number",
    }.get(name, name)
