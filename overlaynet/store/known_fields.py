"""The fields that Services and EndpointSlices have, to tell of others.

An object of a newer Kubernetes may have fields that nobody knew of when this was written, so an unknown one is
no mistake: it is kept. But it does nothing here, and most often it is a known one misspelt.

Sources: k8s.io/api/core/v1 and discovery/v1 types.go, k8s.io/apimachinery ObjectMeta, as of Kubernetes 1.34.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from overlaynet.store.kubernetes import ENDPOINT_SLICE, SERVICE, Object
from overlaynet.store.place import Mistake, Path

Fields: TypeAlias = Sequence[tuple[tuple[str, ...], frozenset[str]]]
"""Where an object of fields stands, `EACH` being every item of a list, and their names."""

EACH = "[]"


def _fields(path: str, names: str) -> tuple[tuple[str, ...], frozenset[str]]:
    return tuple(path.split()), frozenset(names.split())


_METADATA = _fields(
    "metadata",
    "name generateName namespace selfLink uid resourceVersion generation creationTimestamp deletionTimestamp "
    "deletionGracePeriodSeconds labels annotations ownerReferences finalizers managedFields",
)
KNOWN: Mapping[str, Fields] = MappingProxyType(
    {
        SERVICE: (
            _fields("", "apiVersion kind metadata spec status"),
            _METADATA,
            _fields(
                "spec",
                "type ports selector clusterIP clusterIPs ipFamilies ipFamilyPolicy externalIPs externalName "
                "sessionAffinity sessionAffinityConfig internalTrafficPolicy externalTrafficPolicy "
                "trafficDistribution healthCheckNodePort publishNotReadyAddresses loadBalancerIP "
                "loadBalancerSourceRanges loadBalancerClass allocateLoadBalancerNodePorts",
            ),
            _fields("spec ports []", "name protocol appProtocol port targetPort nodePort"),
            _fields("spec sessionAffinityConfig", "clientIP"),
            _fields("spec sessionAffinityConfig clientIP", "timeoutSeconds"),
        ),
        ENDPOINT_SLICE: (
            _fields("", "apiVersion kind metadata addressType endpoints ports"),
            _METADATA,
            _fields(
                "endpoints []", "addresses conditions hostname targetRef deprecatedTopology nodeName zone hints"
            ),
            _fields("endpoints [] conditions", "ready serving terminating"),
            _fields("endpoints [] hints", "forZones forNodes"),
            _fields("ports []", "name protocol appProtocol port"),
        ),
    }
)


def unknown(value: Object) -> list[Mistake]:
    """Every field of a Service or EndpointSlice that is not known, with the known one that may be meant."""
    return [
        Mistake((*path, name), _told(name, names))
        for pattern, names in KNOWN[value["kind"]]
        for path, members in _at(value, pattern, ())
        for name in members
        if name not in names
    ]


def _at(value: Any, pattern: Sequence[str], path: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The objects at a place, with their paths; none where there is something else."""
    if not pattern:
        if isinstance(value, Mapping):
            yield path, value
        return
    step, rest = pattern[0], pattern[1:]
    if step == EACH and isinstance(value, list):
        for n, item in enumerate(value):
            yield from _at(item, rest, (*path, n))
    elif isinstance(value, Mapping) and step in value:
        yield from _at(value[step], rest, (*path, step))


def _told(name: str, names: frozenset[str]) -> str:
    meant = next((known for known in sorted(names) if known.lower() == name.lower()), None)
    return "is no field that is known" + (f"; perhaps {meant} is meant" if meant else "") + "; it does nothing"
