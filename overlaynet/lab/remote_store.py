"""etcd as a machine's agent reaches it: with that agent's endpoints and credentials, which stay on the machine.

Each call is a job of the machine's probe (`overlaynet.probe.etcd`), so what the agent's role in etcd does not
allow is refused here as well.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from overlaynet.errors import StoreRefused
from overlaynet.lab.machine_agent import Ask
from overlaynet.ports import Commit, Compare, Delete, Grant, KeyValue, Listing, Notice, Put, Watch

TIMEOUT_S = 15.0
"""The store's own deadline on the machine is shorter."""


class RemoteStore:
    """A `ports.Store` behind a probe, but that it cannot watch. Raises MachineUnreachable besides
    StoreErrors."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def read(self, prefixes: Sequence[str]) -> Listing:
        answer = self._call("read", prefixes=list(prefixes))
        return Listing(answer["revision"], answer["cluster_id"], _items(answer["items"]))

    def watch(self, prefixes: Sequence[str], revision: int, sink: Callable[[Notice], None]) -> Watch:
        raise StoreRefused("etcd cannot be watched through a machine's probe", evidence="it answers one by one")

    def commit(self, compares: Sequence[Compare], writes: Sequence[Put | Delete]) -> Commit:
        answer = self._call(
            "commit",
            compares=[compare._asdict() for compare in compares],
            writes=[_write(write) for write in writes],
        )
        return Commit(answer["ok"], answer["revision"], _items(answer["current"]))

    def grant(self, ttl_s: int) -> Grant:
        answer = self._call("grant", ttl_s=ttl_s)
        return Grant(answer["lease_id"], answer["ttl_s"])

    def keep_alive(self, lease_id: int) -> int:
        return int(self._call("keep_alive", lease_id=lease_id)["ttl_s"])

    def time_to_live(self, lease_id: int) -> int:
        return int(self._call("time_to_live", lease_id=lease_id)["ttl_s"])

    def revoke(self, lease_id: int) -> None:
        self._call("revoke", lease_id=lease_id)

    def close(self) -> None:
        """The connection is the probe's, and ends with it."""

    def _call(self, name: str, **members: Any) -> dict[str, Any]:
        return self._ask({"op": "etcd", "call": name, **members}, TIMEOUT_S)


def _write(write: Put | Delete) -> dict[str, Any]:
    if isinstance(write, Delete):
        return {"key": write.key, "value": None, "lease_id": 0}
    return {"key": write.key, "value": b64encode(write.value).decode(), "lease_id": write.lease_id}


def _items(documents: Sequence[Mapping[str, Any]]) -> tuple[KeyValue, ...]:
    return tuple(KeyValue(**{**item, "value": b64decode(item["value"])}) for item in documents)
