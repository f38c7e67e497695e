"""What the kernel announces of its own accord: somebody changed a link, an address, a neighbour, an FDB entry
or an IPv4 route (rtnetlink(7), multicast groups).

A thread listens, gathers what comes within a moment, and posts it as one `Noticed`. Three things keep it
cheap:

* Our own writes are not news. An announcement names the socket that asked for the change, and a filter of
  the kernel's drops those with our own port id before they take room in the receive buffer. Links and FDB
  entries are announced without a name (port id 0) even after our own writes; who takes the `Noticed`
  compares those with what he knows to be there.
* Only what can be ours is passed on: entries on devices of ours, routes with our protocol number or in the
  place of such a one. With DirectRouting it is told, too, that others' routes to the underlay's wire, or inside
  of it, have changed, and no more than that.
* Of many announcements about one entry the last counts. Older kernels (Debian's 6.1 is one) announce a tunnel's
  FDB entry twice, by its driver as it is and then in general, without where it leads (rtnl_fdb_notify,
  net/core/rtnetlink.c): the second is no news. An entry that truly leads nowhere is found by a full look.
* A flood is taken apart once it is over. Most often it announces the end of a device, and then says nothing
  that the end itself does not: its entries are dropped unread.

When the buffer overflows, the kernel says so once (ENOBUFS), and what was lost is unknown: the `Noticed` says
that everything has to be looked at.

What the kernel removes by itself it partly keeps silent about: IPv4 routes that go with their device, its
last address or its being taken down (net/ipv4/fib_frontend.c, fib_disable_ip). So news of a device means a
look at what hangs on it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct, pack

from overlaynet.addr import is_within
from overlaynet.errors import OverlayError
from overlaynet.kernel import parse, wire
from overlaynet.kernel.handle import SO_RCVBUFFORCE, Rtnl
from overlaynet.kernel.observe import links
from overlaynet.ports import Noticed, Sighting, Watched
from overlaynet.state import MAIN_TABLE, ROUTE_PROTOCOL, Fdb, Key, Neigh, Object, Route

log = logging.getLogger("overlaynet.notices")

GROUPS = 0x1 | 0x4 | 0x10 | 0x40
"""RTMGRP_LINK, RTMGRP_NEIGH (FDB entries too), RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE."""
BUFFER_BYTES = 16 << 20
"""Room for some 40 000 announcements: the FDB entries of the largest overlay we plan for, written at once."""
GATHER_S = 0.05
"""How long announcements are gathered before they are passed on: a removed device alone causes thousands."""
MANY, FLOOD_S = 256, 0.5
"""So many entries at once mean that a device is about to go, which is announced last: wait until nothing has
come for a moment, but no longer than this, and spare everybody the repair of what hangs on it."""
AGAIN_S = 1.0
"""After a failure of ours: each costs a full look."""
MESSAGE_BYTES = 32_768
SO_ATTACH_FILTER = 26
PORT_OFFSET = 12
"""Of the sender's port id in the message header (netlink(7))."""

_FILTER = Struct("=HBBI")
_INDEX_OFFSET = 4
"""Of a link's or an address's interface index in the part behind the header."""
_INDEX = Struct("=i")


@dataclass(slots=True)
class _Batch:
    """What was gathered so far. `senders` are the words for port ids met; `flood` are announcements of
    neighbours and FDB entries that came after `MANY` others, as they came."""

    entries: dict[Key, Sighting] = field(default_factory=dict)
    flood: list[bytes] = field(default_factory=list)
    devices: set[str] = field(default_factory=set)
    overrun: bool = False
    on_wire: bool = False
    senders: dict[int, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.entries or self.devices or self.overrun or self.on_wire)


class Notices:
    """Listens in the network namespace of the thread that makes it. `own_port` is the port id of the socket
    that our writes go through; `post` is called on the listening thread.

    Announcements are kept from the moment it is made, so make it before the first look."""

    def __init__(self, own_port: int, post: Callable[[Noticed], None]) -> None:
        self._post = post
        self._watched = Watched()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        _configure(self._socket, own_port)
        self._links = Rtnl.open()
        self._names = self._read_names()
        self._wake = os.eventfd(0)
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)

    def watch(self, watched: Watched) -> None:
        """From now on report these. From any thread."""
        self._watched = watched

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; nothing is posted after that."""
        os.eventfd_write(self._wake, 1)
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._socket.close()
        self._links.close()
        os.close(self._wake)

    # --- gathering --------------------------------------------------------------------------------

    def _run(self) -> None:
        while (batch := self._gathered()) is not None:
            self._post(Noticed(batch.entries, frozenset(batch.devices), batch.overrun, batch.on_wire))

    def _gathered(self) -> _Batch | None:
        """One announcement that trips us must not make us deaf to all others."""
        try:
            return self._gather()
        except Exception:
            log.exception("listening failed: this is a bug")
            time.sleep(AGAIN_S)
            return _Batch(overrun=True)

    def _gather(self) -> _Batch | None:
        """Wait for something that matters, then take in what follows within a moment. None: stop."""
        batch, began, end = _Batch(), 0.0, 0.0
        poller = select.poll()
        for descriptor in (self._socket.fileno(), self._wake):
            poller.register(descriptor, select.POLLIN)
        while not batch or time.monotonic() < end:
            left = max(0, int((end - time.monotonic()) * 1000)) if batch else None
            ready = poller.poll(left)
            if any(descriptor == self._wake for descriptor, _ in ready):
                return None
            if ready:
                began = began if batch else time.monotonic()
                self._take_waiting(batch)
                many = len(batch.entries) >= MANY
                end = min(began + FLOOD_S, time.monotonic() + GATHER_S) if many else began + GATHER_S
        for message in batch.flood:
            self._take_neigh(batch, message)
        return batch

    def _take_waiting(self, batch: _Batch) -> None:
        """What the buffer holds, but no more than fits into a moment: others wait for their turn too."""
        end = time.monotonic() + GATHER_S
        with contextlib.suppress(BlockingIOError):
            while time.monotonic() < end:
                try:
                    message = self._socket.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    batch.overrun = True
                    self._names = self._read_names()
                else:
                    self._take(batch, message)

    def _read_names(self) -> dict[int, str]:
        try:
            return {link.ifindex: link.name for link in links(self._links).values()}
        except OverlayError as error:
            log.warning("links could not be read error=%s", error)
            return {}

    # --- one announcement -------------------------------------------------------------------------

    def _take(self, batch: _Batch, message: bytes) -> None:
        length, kind, flags, _, port = wire.HEADER.unpack_from(message)
        answer = (message, 16, length)
        match kind:
            case wire.RTM_NEWNEIGH | wire.RTM_DELNEIGH if len(batch.entries) >= MANY:
                batch.flood.append(message)
            case wire.RTM_NEWNEIGH | wire.RTM_DELNEIGH:
                self._take_neigh(batch, message)
            case wire.RTM_NEWROUTE | wire.RTM_DELROUTE:
                self._take_route(batch, answer, kind == wire.RTM_NEWROUTE, flags, port)
            case wire.RTM_NEWLINK | wire.RTM_DELLINK:
                self._take_link(batch, answer, kind == wire.RTM_NEWLINK)
            case wire.RTM_NEWADDR | wire.RTM_DELADDR:
                self._take_address(batch, answer)

    def _take_neigh(self, batch: _Batch, message: bytes) -> None:
        """Neighbours and FDB entries differ by their family alone."""
        length, kind, _, _, port = wire.HEADER.unpack_from(message)
        answer, there = (message, 16, length), kind == wire.RTM_NEWNEIGH
        family, index, *_ = wire.NDMSG.unpack_from(message, 16)
        name, watched = self._names.get(index), self._watched
        found: list[Neigh] | list[Fdb] = []
        if family == wire.AF_BRIDGE and name in watched.devices:
            found = [
                entry
                for entry in parse.fdb([answer], self._names)
                if entry.dst is not None or name not in watched.tunnels
            ]
        elif family == socket.AF_INET and name in watched.tunnels:
            found = parse.neighs([answer], self._names)
        for entry in found:
            lasting = there and entry.state in ("permanent", "static")
            self._add(batch, entry.key, entry if lasting else None, index, port)

    def _take_route(self, batch: _Batch, answer: parse.Answer, there: bool, flags: int, port: int) -> None:
        """A route of others matters on a tunnel of ours, and where it has replaced one that may have been
        ours."""
        _, _, _, _, table, protocol, *_ = wire.RTMSG.unpack_from(answer[0], answer[1])
        if table != MAIN_TABLE:
            return
        replaced = there and flags & wire.NLM_F_REPLACE
        for route in parse.routes([answer], self._names):
            ours = protocol == ROUTE_PROTOCOL or route.dev in self._watched.tunnels
            if ours or replaced:
                self._add(batch, route.key, route if ours and there else None, 0, port)
            batch.on_wire |= not ours and self._is_on_wire(route)

    def _is_on_wire(self, route: Route) -> bool:
        """Whether it decides of somebody that he is reached without a gateway, or is not."""
        watched = self._watched
        if watched.wire is None or not route.dst.prefixlen:
            return False
        is_direct = route.dev == watched.wire and route.via is None
        return is_direct or any(is_within(route.dst, network) for network in watched.direct)

    def _add(self, batch: _Batch, key: Key, obj: Object | None, index: int, port: int) -> None:
        if port not in batch.senders:
            batch.senders[port] = _sender(port)
        batch.entries[key] = Sighting(obj, index, batch.senders[port])

    def _take_link(self, batch: _Batch, answer: parse.Answer, there: bool) -> None:
        """A bridge announces its ports in its own family; that a port has left it is no end of the link."""
        buffer, start, end = answer
        family, _, index, *_ = wire.IFINFOMSG.unpack_from(buffer, start)
        name = parse.attributes(buffer, start + wire.IFINFOMSG.size, end).get(wire.IFLA_IFNAME, b"")
        spelled = name.rstrip(b"\0").decode(errors="replace")
        batch.devices |= {spelled, self._names.get(index, spelled)} & self._watched.devices
        if family != wire.AF_BRIDGE:
            if there:
                self._names[index] = spelled
            else:
                self._names.pop(index, None)

    def _take_address(self, batch: _Batch, answer: parse.Answer) -> None:
        (index,) = _INDEX.unpack_from(answer[0], answer[1] + _INDEX_OFFSET)
        batch.devices |= {self._names.get(index, "")} & self._watched.devices


def _configure(sock: socket.socket, own_port: int) -> None:
    """The filter before the groups, so that nothing comes past it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)  # up to rmem_max
    with contextlib.suppress(OSError):  # beyond rmem_max needs CAP_NET_ADMIN in the initial user namespace
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    _drop_sender(sock, own_port)
    sock.bind((0, GROUPS))


def _drop_sender(sock: socket.socket, port: int) -> None:
    """Let the kernel drop every message from one port id: classic BPF, "load the word at 12; if it is ours
    return 0, else all". BPF loads a word as if it were in network byte order, which the port id is not."""
    swapped = int.from_bytes(pack("=I", port), "big")
    program = b"".join(
        _FILTER.pack(*step)
        for step in (
            (0x20, 0, 0, PORT_OFFSET),
            (0x15, 0, 1, swapped),
            (0x06, 0, 0, 0),
            (0x06, 0, 0, 0xFFFFFFFF),
        )
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, pack("@HP", 4, ctypes.addressof(buffer)))


def _sender(port: int) -> str:
    """Who wrote: a process's first socket has the process's number for its port id (netlink(7)), so its name
    can be read as long as it lives. The kernel's own doing has 0, and so has whatever is announced without a
    sender."""
    if port == 0:
        return ""
    with contextlib.suppress(OSError, ValueError):
        return f"{Path(f'/proc/{port}/comm').read_text().strip()} (process {port})"
    return f"port id {port}"
