"""The difference between want and have, as an ordered list of writes.

Order is data, and here is its one home. Additions go from the ground up (link, its sysctls, address,
bridge port, neighbour, FDB, route): at every moment in between, what is already there works. Removals go the
other way, after all additions: a change of route is never a gap.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from overlaynet.state import BridgePort, Change, Key, Kind, Link, Object, Op, Route, Sysctl, kind_of

ORDER = {kind: rank for rank, kind in enumerate(Kind)}


def satisfied(want: Object, have: Object) -> bool:
    """Whether `have` is as good as `want`: equal, but for what a wanted link or port leaves open."""
    if want == have:
        return True
    if isinstance(want, Link) and isinstance(have, Link) and want.mac is None:
        return want == have._replace(mac=None)
    if isinstance(want, BridgePort) and isinstance(have, BridgePort) and want.mtu == 0:
        return want == have._replace(mtu=0)
    if isinstance(want, Route) and isinstance(have, Route) and have.metric == 0:
        return want == have._replace(metric=want.metric, protocol=want.protocol)  # as flannel writes it
    return False


def must_recreate(want: Object, have: Object) -> bool:
    """Whether a link differs in what the kernel cannot change on a living one (it refuses, EOPNOTSUPP)."""
    return (
        isinstance(want, Link) and isinstance(have, Link) and (want.type, want.vxlan) != (have.type, have.vxlan)
    )


def changes(
    want: Mapping[Key, Object], have: Mapping[Key, Object], refused: Collection[Key] = ()
) -> tuple[Change, ...]:
    """Writes that turn `have` into `want`, in order. All that hangs on a link in `refused` is left alone,
    and so is that link."""
    fresh = {
        obj.name
        for key, obj in want.items()
        if isinstance(obj, Link) and key in have and must_recreate(obj, have[key])
    }
    blocked = {key[1] for key in refused if kind_of(key) is Kind.LINK}
    puts = []
    for key, obj in want.items():
        there = have.get(key)
        if fresh or blocked:  # seldom, and half the cost of this loop
            links = links_of(obj)
            if links & blocked:
                continue
            if links & fresh and kind_of(key) is not Kind.LINK:
                there = None
        if there is None or not satisfied(obj, there):
            puts.append(Change(Op.PUT, obj, there))
    drops = [
        Change(Op.DROP, have[key])
        for key in _extra(want, have)
        if kind_of(key) is not Kind.SYSCTL and not links_of(have[key]) & blocked
    ]
    # flannel's route, under another metric
    drops += [Change(Op.DROP, old) for _, obj, old in puts if isinstance(old, Route) and old.key != obj.key]
    return tuple(_ordered(puts)) + tuple(_without_dependents(drops))


def _extra(want: Mapping[Key, Object], have: Mapping[Key, Object]) -> list[Key]:
    """Keys of `have` that are not wanted, in its order. A set made of a dict takes over the hashes of its
    keys; asking for each key would compute them again, in Python for those that hold an address."""
    extra = set(have).difference(want)
    return [key for key in have if key in extra] if extra else []


def additions(pending: Iterable[Change]) -> tuple[Change, ...]:
    """Of these changes those that take nothing away: what is missing, and settings of what is there. An entry
    that leads elsewhere than it should may be newer than what we know, so it stays; so does a link that would
    have to be made anew."""
    return tuple(change for change in pending if _only_adds(change))


def _only_adds(change: Change) -> bool:
    if change.op is Op.DROP:
        return False
    settable = kind_of(change.obj.key) in (Kind.SYSCTL, Kind.LINK, Kind.PORT)
    return change.have is None or (settable and not must_recreate(change.obj, change.have))


def links_of(obj: Object) -> set[object]:
    """The links without which an object cannot be: its device, and its bridge."""
    return {device_of(obj), getattr(obj, "master", None)} - {None}


def device_of(obj: Object) -> str | None:
    """The link an object lives or dies with; None for a sysctl of the whole host."""
    match obj:
        case Link():
            return obj.name
        case Sysctl():
            return _device_in(obj.name)
        case _:
            return obj.dev


def _device_in(sysctl: str) -> str | None:
    """``cni0`` of ``net/ipv4/conf/cni0/rp_filter``: such a setting comes and goes with its device."""
    match sysctl.split("/"):
        case ["net", "ipv4" | "ipv6", "conf" | "neigh", device, _] if device not in ("all", "default"):
            return device
    return None


def _ordered(puts: list[Change]) -> list[Change]:
    return sorted(puts, key=lambda change: ORDER[kind_of(change.obj.key)])


def _without_dependents(drops: list[Change]) -> Iterable[Change]:
    """Removals, top down; what goes with its device anyway is not named."""
    gone = {change.obj.name for change in drops if isinstance(change.obj, Link)}
    kept = [c for c in drops if isinstance(c.obj, Link) or device_of(c.obj) not in gone]
    return sorted(kept, key=lambda change: -ORDER[kind_of(change.obj.key)])


def touched_changes(
    keys: Iterable[Key],
    want: Mapping[Key, Object],
    have: Mapping[Key, Object],
    refused: Collection[Key] = (),
) -> tuple[Change, ...]:
    """The same difference, of these keys alone: what one event costs."""
    some = list(keys)
    return changes({k: want[k] for k in some if k in want}, {k: have[k] for k in some if k in have}, refused)


def word(change: Change) -> str:
    """``missing``, ``extra`` or ``changed``: what the kernel's state is, seen from what it should be."""
    if change.op is Op.DROP:
        return "extra"
    return "missing" if change.have is None else "changed"
