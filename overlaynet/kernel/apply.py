"""Carrying out changes, in the order given.

Neighbours, forwarding entries, routes and addresses are packed into batches as they follow one another;
links, bridge ports and sysctls take several steps each and are done one by one. The order between kinds
is the caller's (`state.Kind`); this module keeps it and adds none.

A device is a name in a change and an index in a message. Indices are asked for once in each `apply` and
forgotten when a link changes, so none outlives the device it belonged to by more than that; ENODEV says
that one did, and the entry is tried again with the present index.

Putting what is there and dropping what is not succeed: requests say "create or replace", and "exists
already" or "no such" are answers to be content with where they mean just that.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import TypeAlias

from overlaynet.errors import KernelError, OverlayError
from overlaynet.kernel import attach, links, modules, parse, sysctl, wire
from overlaynet.kernel.handle import Refusal, Rtnl
from overlaynet.kernel.observe import glance, observe
from overlaynet.kernel.observe import links as observe_links
from overlaynet.ports import Failure, Wiring
from overlaynet.state import (
    Address,
    BridgePort,
    Change,
    Fdb,
    KernelState,
    Link,
    LinkInfo,
    Neigh,
    Op,
    Route,
    Sysctl,
)

Outcome: TypeAlias = Refusal | None

ABSENT = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL})
"""How the kernel says that what should go is not there (one word for each table)."""
TABLES = (Neigh, Fdb, Route, Address)
PUT: Mapping[type, Callable[..., bytes]] = {
    Neigh: wire.put_neigh,
    Fdb: wire.put_fdb,
    Route: wire.put_route,
    Address: wire.put_address,
}
DROP: Mapping[type, Callable[..., bytes]] = {
    Neigh: wire.drop_neigh,
    Fdb: wire.drop_fdb,
    Route: wire.drop_route,
    Address: wire.drop_address,
}
NO_DEVICE = Refusal(errno.ENODEV, "")


class KernelAdapter:
    """`ports.Kernel` on rtnetlink. Needs CAP_NET_ADMIN over the socket's namespace, and nothing else."""

    def __init__(self, rtnl: Rtnl, reading: Rtnl, instance: str = "") -> None:
        """Takes over both: all but `observe` goes through `rtnl`. Of the links' marks it shows those of
        `instance`."""
        self._rtnl = rtnl
        self._reading = reading
        self._instance = instance
        self._known = parse.Known()
        self._indices: dict[str, int] = {}

    @classmethod
    def open(cls, instance: str = "") -> KernelAdapter:
        """On the calling thread's network namespace."""
        return cls(Rtnl.open(), Rtnl.open(), instance)

    def observe(self, sysctls: Sequence[str] = ()) -> KernelState:
        return observe(self._reading, sysctls, self._known, self._instance)

    def glance(self) -> KernelState:
        return glance(self._rtnl, self._instance)

    def read_sysctls(self, names: Sequence[str]) -> Mapping[str, str | None]:
        return {name: sysctl.read(name) for name in names}

    @property
    def port_id(self) -> int:
        """The sender that the kernel's announcements of our own writes name."""
        return self._rtnl.port_id

    def apply(self, changes: Sequence[Change]) -> list[Failure]:
        self._indices.clear()
        failures: list[Failure] = []
        for in_table, group in groupby(changes, key=lambda change: type(change.obj) in PUT):
            run = list(group)
            failures += self._tables(run) if in_table else self._singles(run)
        return failures

    def attach(self, wiring: Wiring) -> None:
        attach.attach(self._rtnl, wiring)

    def detach(self, host_device: str) -> None:
        self._do(f"removal of {host_device}", links.delete(host_device), content_with=ABSENT)

    def close(self) -> None:
        self._rtnl.close()
        self._reading.close()

    # --- tables -------------------------------------------------------------------------------

    def _tables(self, changes: Sequence[Change]) -> list[Failure]:
        try:
            outcomes = self._send(changes)
            stale = [i for i, outcome in enumerate(outcomes) if outcome and outcome.errno == errno.ENODEV]
            if stale and self._forget_stale(changes[i] for i in stale):
                for i, outcome in zip(stale, self._send([changes[i] for i in stale]), strict=True):
                    outcomes[i] = outcome
        except KernelError as error:
            return [Failure(change, error) for change in changes]
        return [
            Failure(change, KernelError(str(change), outcome.errno, outcome.text))
            for change, outcome in zip(changes, outcomes, strict=True)
            if outcome and not _content(change, outcome)
        ]

    def _send(self, changes: Sequence[Change]) -> list[Outcome]:
        known, putting = self._indices, Op.PUT
        messages: list[bytes] = []
        nowhere: set[int] = set()
        for position, (op, obj, _) in enumerate(changes):
            dev = obj.dev  # type: ignore[union-attr]  # `apply` sends nothing here but TABLES
            index = (known.get(dev) or self._index(dev)) if dev else 0
            if index is None:
                nowhere.add(position)
            else:
                messages.append((PUT if op is putting else DROP)[type(obj)](obj, index))
        answers = self._rtnl.batch(messages)
        if not nowhere:
            return answers
        rest = iter(answers)
        return [NO_DEVICE if position in nowhere else next(rest) for position in range(len(changes))]

    def _index(self, device: str) -> int | None:
        index = self._indices.get(device)
        if index is None:
            index = self._rtnl.ifindex(device)
            if index is not None:
                self._indices[device] = index
        return index

    def _forget_stale(self, changes: Iterable[Change]) -> bool:
        """Ask again for the indices of these changes' devices; True if one is different now."""
        devices = {obj.dev for _, obj, _ in changes if isinstance(obj, TABLES) and obj.dev}
        before = {device: self._indices.pop(device, None) for device in devices}
        return any(self._index(device) not in (None, index) for device, index in before.items())

    # --- links, ports, sysctls ----------------------------------------------------------------

    def _singles(self, changes: Iterable[Change]) -> list[Failure]:
        failures = []
        for change in changes:
            try:
                self._single(change)
            except OverlayError as error:
                failures.append(Failure(change, error))
        return failures

    def _single(self, change: Change) -> None:
        match change.op, change.obj:
            case Op.PUT, Sysctl(name, value):
                if sysctl.read(name) != value:
                    sysctl.write(name, value)
            case Op.PUT, BridgePort() as port:
                self._put_port(change, port)
            case Op.DROP, BridgePort(dev):
                self._do(str(change), links.enslave(dev, 0), content_with=ABSENT)
            case Op.PUT, Link() as link:
                self._indices.clear()
                self._put_link(change, link)
            case Op.DROP, Link(name):
                self._indices.clear()
                self._do(str(change), links.delete(name), content_with=ABSENT)
            case _:  # a sysctl has no absence: dropping one leaves it
                pass

    def _put_port(self, change: Change, port: BridgePort) -> None:
        master = self._index(port.master)
        if master is None:
            raise KernelError(str(change), errno.ENODEV, f"no bridge {port.master}")
        self._do(
            str(change),
            links.enslave(port.dev, master, mtu=port.mtu, up=port.up),
            links.hairpin(port.dev, port.hairpin),
        )

    def _put_link(self, change: Change, link: Link) -> None:
        there = observe_links(self._rtnl, self._instance)
        present = there.get(link.name)
        if present and not _same_device(link, present):
            self._make_room(change, link, present)
            present = None
        if present:
            self._modify(change, link, present)
        else:
            self._create(change, link, there)

    def _make_room(self, change: Change, link: Link, present: LinkInfo) -> None:
        """Delete a device that has to be made anew, but only one that the caller knew of, or that is ours."""
        if change.have is None and link.tag not in present.altnames:
            raise KernelError(
                str(change), errno.EEXIST, f"there is another {link.name}, of type {present.type}"
            )
        self._do(str(change), links.delete(link.name), content_with=ABSENT)

    def _create(self, change: Change, link: Link, there: Mapping[str, LinkInfo]) -> None:
        underlay = there.get(link.vxlan.underlay) if link.vxlan else None
        if link.vxlan and underlay is None:
            raise KernelError(str(change), errno.ENODEV, f"no underlay {link.vxlan.underlay}")
        try:
            self._do(str(change), links.create(link, underlay.ifindex if underlay else 0))
        except KernelError as error:
            raise modules.explained(error, device=link.type) from None
        try:
            finishing = [links.modify(link.name, mtu=link.mtu)]
            finishing += [links.add_altname(link.name, link.tag)] if link.tag else []
            self._do(str(change), *finishing)
        except KernelError:
            self._rtnl.batch([links.delete(link.name)])
            raise

    def _modify(self, change: Change, link: Link, present: LinkInfo) -> None:
        """Only what differs. With a new MAC the kernel forgets the device's neighbours, permanent ones too
        (net/core/neighbour.c, neigh_changeaddr); they did not change, so they are put back at once."""
        mac = str(link.mac) if link.mac and link.mac != present.mac else None
        mtu = link.mtu if link.mtu != present.mtu else None
        up = link.up if link.up != present.up else None
        steps = (
            [links.modify(link.name, up=up, mtu=mtu, mac=mac)] if (mac, mtu, up) != (None, None, None) else []
        )
        if link.tag and link.tag not in present.altnames:
            steps.append(links.add_altname(link.name, link.tag))
        if not link.tag and present.tag:
            steps.append(links.drop_altname(link.name, present.tag))
        self._do(str(change), *steps, *(self._permanent_neighs(present) if mac else ()))

    def _permanent_neighs(self, link: LinkInfo) -> list[bytes]:
        neighs = parse.neighs(self._rtnl.dump(wire.dump_neighs()), {link.ifindex: link.name})
        return [wire.put_neigh(entry, link.ifindex) for entry in neighs if entry.state == "permanent"]

    def _do(self, what: str, *messages: bytes, content_with: frozenset[int] = frozenset()) -> None:
        """Raise for the first refusal of these."""
        for refusal in self._rtnl.batch(messages):
            if refusal and refusal.errno not in content_with:
                raise KernelError(what, refusal.errno, refusal.text)


def _same_device(link: Link, present: LinkInfo) -> bool:
    """Whether everything that is fixed at a device's birth is as wanted."""
    return link.type == present.type and link.vxlan == present.vxlan


def _content(change: Change, refusal: Refusal) -> bool:
    """Whether the refusal means that things are as wanted."""
    if change.op is Op.PUT:
        return isinstance(change.obj, Address) and refusal.errno == errno.EEXIST
    if isinstance(change.obj, Fdb) and refusal.errno == errno.EOPNOTSUPP:
        return True  # the device is no longer a bridge port, so the bridge has forgotten its entries
    return refusal.errno in ABSENT
