"""Values as plain JSON, and back, without loss: each type described once.

A `Shape` is a NamedTuple's or dataclass's fields in order, and for those that are not plain JSON already how
to turn them into it and back (a `Codec`). Writing and reading both go by it, so they cannot drift apart. An
unknown value is null and never absent. Reading goes by position: it is as fast as a loop over tuples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, NamedTuple, TypeAlias

from overlaynet.addr import Mac

Json: TypeAlias = dict[str, Any]


class Codec(NamedTuple):
    """How one field that is not plain becomes JSON and comes back. Neither is asked about None."""

    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


class Shape(NamedTuple):
    """A type, and its fields in order with the codec of each (None: plain JSON already)."""

    cls: type[Any]
    fields: tuple[tuple[str, Codec | None], ...]

    def write(self, value: Any) -> Json:
        out = {}
        for name, codec in self.fields:
            item = getattr(value, name)
            out[name] = item if codec is None or item is None else codec.write(item)
        return out

    def read(self, document: Mapping[str, Any]) -> Any:
        """Raises KeyError for a member that is absent, and what the type and its codecs raise."""
        values = []
        for name, codec in self.fields:
            item = document[name]
            values.append(item if codec is None or item is None else codec.read(item))
        return self.cls(*values)

    @property
    def codec(self) -> Codec:
        """This type as a field of another."""
        return Codec(self.write, self.read)


def shape(cls: type[Any], **codecs: Codec) -> Shape:
    """A type's shape. Fields that are not named are plain JSON."""
    names: Iterable[str] = getattr(cls, "_fields", None) or cls.__dataclass_fields__
    return Shape(cls, tuple((name, codecs.get(name)) for name in names))


def tuple_of(codec: Codec) -> Codec:
    """A tuple, as a list."""
    write, read = codec
    return Codec(lambda items: [write(i) for i in items], lambda items: tuple(read(i) for i in items))


IP = Codec(str, ip_address)
NETWORK = Codec(str, ip_network)
INTERFACE = Codec(str, ip_interface)
MAC = Codec(str, Mac.parse)
TEXTS = Codec(list, tuple)
NETWORKS = tuple_of(NETWORK)
IPS = tuple_of(IP)
