"""Reading JSON objects that other people wrote.

flannel is written in Go, whose JSON decoder matches member names in any case, ignores members it does not
know, lets the last of two equal names win and takes `null` as "not given". What a flannel host accepts must
mean the same here, so `load(..., fold=True)` reads like that, at every level. Our own records are read by
their exact names, because their labels may differ in case alone.

Every mistake is a ValueInvalid that names the member by its path and shows the value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from socket import AF_INET, inet_pton
from typing import TypeVar

from overlaynet.addr import IPAddress, address
from overlaynet.errors import ValueInvalid

T = TypeVar("T")


class Fields:
    """One JSON object: members by name and type. `path` is where it was found, for errors."""

    def __init__(self, members: Mapping[str, object], path: str = "", *, fold: bool = False) -> None:
        self._members = members
        self._path = path
        self._fold = fold

    def where(self, name: str) -> str:
        """The member's path, e.g. ``Backend.VNI``."""
        return f"{self._path}.{name}" if self._path else name

    @property
    def members(self) -> Mapping[str, object]:
        """The whole object as it was read."""
        return self._members

    def raw(self, name: str) -> object:
        """The member as JSON has it, None if it is absent."""
        return self._members.get(name.lower() if self._fold else name)

    def optional(self, name: str, kind: type[T]) -> T | None:
        """The member if it is there and not null. `kind` is str, int, bool, list or dict."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise invalid(self.where(name), f"is not {_KINDS[kind]}", value)
        return value

    def get(self, name: str, kind: type[T], default: T) -> T:
        value = self.optional(name, kind)
        return default if value is None else value

    def require(self, name: str, kind: type[T]) -> T:
        value = self.optional(name, kind)
        if value is None:
            raise ValueInvalid(
                f"{self.where(name)} is missing", evidence=f"members: {', '.join(self._members)}"
            )
        return value

    def parsed(self, name: str, parse: Callable[[str], T]) -> T | None:
        """The text member as `parse` understands it; a ValueError of `parse` becomes a ValueInvalid."""
        text = self.optional(name, str)
        return None if text is None else understand(self.where(name), parse, text)

    def within(self, name: str) -> Fields | None:
        """The object that this member holds."""
        value = self.optional(name, dict)
        return None if value is None else Fields(value, self.where(name), fold=self._fold)


_KINDS: Mapping[type, str] = {
    str: "text",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def invalid(where: str, problem: str, value: object) -> ValueInvalid:
    """`where` is wrong in the way that `problem` says; `value` is the evidence."""
    return ValueInvalid(f"{where} {problem}", evidence=f"{where} = {json.dumps(value, default=str)}")


def understand(where: str, parse: Callable[[str], T], text: str) -> T:
    """`parse(text)`; a ValueError becomes a ValueInvalid that names `where`."""
    try:
        return parse(text)
    except ValueError as error:
        raise invalid(where, f"cannot be understood: {error}", text) from error


def parse_address(text: str) -> IPAddress:
    """An address, the same object for equal text. Of IPv4 ones, of which a listing holds thousands, the C
    library reads exactly what `ipaddress` reads, in a tenth of the time. Raises ValueError."""
    try:
        return address(inet_pton(AF_INET, text))
    except (OSError, ValueError):
        return address(ip_address(text).packed)


def load(data: bytes, *, fold: bool = False) -> Fields:
    """The JSON object in `data`; raises ValueInvalid for anything else."""
    try:
        value = _FOLDING.decode(data.decode()) if fold else json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueInvalid(f"not JSON: {error}", evidence=repr(data[:200])) from error
    if not isinstance(value, dict):
        raise ValueInvalid("not a JSON object", evidence=repr(data[:200]))
    return Fields(value, fold=fold)


def _folded(pairs: list[tuple[str, object]]) -> dict[str, object]:
    return {name.lower(): value for name, value in pairs}


_FOLDING = json.JSONDecoder(object_pairs_hook=_folded)
"""`json.loads` with a hook makes a decoder for every call, which takes as long as reading a lease."""


def dump(members: Mapping[str, object]) -> bytes:
    """Compact JSON in the order given, as Go's encoder writes a struct."""
    return json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode()
