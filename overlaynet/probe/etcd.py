"""etcd, asked from this machine with the settings and credentials of its agent.

The agent's password and keys are read here and never told: whoever asks gets keys and values, or etcd's
refusal.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from overlaynet.config import load
from overlaynet.errors import UsageError
from overlaynet.ports import Compare, Delete, KeyValue, Put, Store
from overlaynet.probe.job import member, objects


class Etcd:
    """A client that is opened at the first question."""

    def __init__(self) -> None:
        self._store: Store | None = None

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out ``{"call", …}``, a call of `ports.Store` with its arguments; values are in base64. Raises
        StoreErrors, ConfigError, UsageError."""
        if self._store is None:
            from overlaynet.store.etcd import connect  # here: it costs 0.2 s

            self._store = connect(load(None, {}).etcd)
        return {"kind": "Etcd", **_call(self._store, job)}


def _call(store: Store, job: Mapping[str, Any]) -> dict[str, Any]:
    match job.get("call"):
        case "read":
            found = store.read([str(prefix) for prefix in member(job, "prefixes", list)])
            return {"revision": found.revision, "cluster_id": found.cluster_id, "items": _items(found.items)}
        case "commit":
            done = store.commit(_compares(job), _writes(job))
            return {"ok": done.ok, "revision": done.revision, "current": _items(done.current)}
        case "grant":
            return store.grant(member(job, "ttl_s", int))._asdict()
        case "keep_alive":
            return {"ttl_s": store.keep_alive(member(job, "lease_id", int))}
        case "time_to_live":
            return {"ttl_s": store.time_to_live(member(job, "lease_id", int))}
        case "revoke":
            store.revoke(member(job, "lease_id", int))
            return {}
    raise UsageError(f"there is no call {job.get('call')!r} of etcd")


def _compares(job: Mapping[str, Any]) -> list[Compare]:
    return [
        Compare(member(one, "key", str), member(one, "mod_revision", int)) for one in objects(job, "compares")
    ]


def _writes(job: Mapping[str, Any]) -> list[Put | Delete]:
    return [
        Delete(member(one, "key", str))
        if one.get("value") is None
        else Put(member(one, "key", str), b64decode(member(one, "value", str)), member(one, "lease_id", int, 0))
        for one in objects(job, "writes")
    ]


def _items(items: Sequence[KeyValue]) -> list[dict[str, Any]]:
    return [
        {
            "key": item.key,
            "value": b64encode(item.value).decode(),
            "create_revision": item.create_revision,
            "mod_revision": item.mod_revision,
            "lease_id": item.lease_id,
        }
        for item in items
    ]
