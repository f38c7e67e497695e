"""Timed sets of client addresses, by netlink (ipset, type hash:ip).

Rules add an address to a set and look it up; here sets are only listed, made and destroyed. Messages and
attributes are those of include/uapi/linux/netfilter/ipset/ip_set.h; ipset(8) has the words. A set's name is
all that says whose it is.

A set that is full takes a new address in place of another (`forceadd`): a client that comes again after that
may meet another endpoint, where otherwise no new client would be remembered at all.

Errors from 4096 on are ipset's own and no errno; those that can happen here are put in words.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping

from overlaynet.errors import FirewallBusy, FirewallError, KernelError, NoIpset
from overlaynet.kernel import nfnl, parse, wire
from overlaynet.kernel.handle import Refusal
from overlaynet.kernel.nfnl import IPSET, NETWORK_ORDER, Nfnl, nested
from overlaynet.kernel.parse import Answer, attributes

PROTOCOL_VERSION = 6
"""Understood by every kernel since 2.6.39; 7 of Linux 4.20 adds nothing needed here."""
REVISION = 3
"""Of hash:ip: the first with `forceadd` (Linux 3.14)."""
HASH_IP = "hash:ip"
MAX_CLIENTS = 262_144
"""In one set, that is, of one endpoint."""

CREATE, DESTROY, LIST, TYPE = 2, 3, 7, 13
PROTOCOL, SETNAME, TYPENAME, SET_REVISION, FAMILY, FLAGS, DATA = 1, 2, 3, 4, 5, 6, 7
TIMEOUT, CADT_FLAGS, MAXELEM = 6, 8, 19
LIST_HEADER = 1 << 2
"""Without the members."""
WITH_FORCEADD = 1 << 5

ERR_FIND_TYPE, ERR_MAX_SETS, ERR_BUSY, ERR_REFERENCED = 4098, 4099, 4100, 4108
IN_USE = frozenset({ERR_BUSY, ERR_REFERENCED})
SAID = {
    ERR_FIND_TYPE: "the kernel has no hash:ip",
    ERR_MAX_SETS: "there are as many sets as can be",
    errno.EEXIST: "there is another one of that name, with other properties",
}


class AffinitySetsAdapter:
    """`ports.AffinitySets`, for one address family (4 or 6). Needs CAP_NET_ADMIN. `is_ours` tells by its name
    whether a set is ours. The socket is opened at the first need, in the calling thread's namespace; not for
    two threads at once."""

    def __init__(self, is_ours: Callable[[str], bool], family: int = 4) -> None:
        self._is_ours = is_ours
        self._family = wire.attribute(FAMILY, bytes([wire.FAMILY[family]]))
        self._nfnl: Nfnl | None = None

    def observe(self) -> Mapping[str, int]:
        """Ours. Raises NoIpset, or another FirewallError."""
        try:
            answers = self._open().dump(_request(LIST, nfnl.u32(FLAGS, LIST_HEADER)))
        except KernelError as error:
            raise _lacking(error) from error
        return {name: timeout_s for name, timeout_s in _timed(answers) if self._is_ours(name)}

    def create(self, name: str, timeout_s: int) -> None:
        refusal = self._ask(_create(name, timeout_s, self._family))
        if refusal is None:
            return
        if refusal.errno == ERR_FIND_TYPE:
            raise NoIpset("the kernel has no ipsets of type hash:ip", evidence=_words(refusal), next=_LOAD)
        raise FirewallError(f"the kernel refused ipset {name}", evidence=_words(refusal))

    def destroy(self, name: str) -> None:
        """Raises FirewallBusy while a rule still uses it: a moment longer than the rule is to be seen."""
        refusal = self._ask(_request(DESTROY, _text(SETNAME, name)))
        if refusal is None or refusal.errno == errno.ENOENT:
            return
        if refusal.errno in IN_USE:
            raise FirewallBusy(f"ipset {name} is still used by a rule", evidence=_words(refusal))
        raise FirewallError(f"the kernel would not destroy ipset {name}", evidence=_words(refusal))

    def check(self) -> None:
        """Raises NoIpset where sets cannot be made, FirewallError where there is no answer."""
        try:
            answer = self._open().get(_request(TYPE, _text(TYPENAME, HASH_IP), self._family))
        except KernelError as error:
            raise _lacking(error) from error
        if isinstance(answer, Refusal):
            raise NoIpset("the kernel has no ipsets", evidence=_words(answer), next=_LOAD)

    def close(self) -> None:
        if self._nfnl:
            self._nfnl.close()
            self._nfnl = None

    def _open(self) -> Nfnl:
        self._nfnl = self._nfnl or Nfnl.open()
        return self._nfnl

    def _ask(self, message: bytes) -> Refusal | None:
        try:
            return self._open().batch([message])[0]
        except KernelError as error:
            raise FirewallError("no answer about an ipset", evidence=str(error)) from error


_LOAD = ("modprobe ip_set_hash_ip", "modprobe xt_set")


def _request(command: int, *rest: bytes) -> bytes:
    protocol = wire.attribute(PROTOCOL, bytes([PROTOCOL_VERSION]))
    # without NLM_F_EXCL, making a set that is there with the same properties is a success
    return nfnl.message(IPSET, command, wire.NLM_F_DUMP if command == LIST else 0, 0, protocol + b"".join(rest))


def _create(name: str, timeout_s: int, family: bytes) -> bytes:
    data = nested(
        DATA,
        nfnl.u32(MAXELEM | NETWORK_ORDER, MAX_CLIENTS),
        nfnl.u32(TIMEOUT | NETWORK_ORDER, timeout_s),
        nfnl.u32(CADT_FLAGS | NETWORK_ORDER, WITH_FORCEADD),
    )
    revision = wire.attribute(SET_REVISION, bytes([REVISION]))
    return _request(CREATE, _text(SETNAME, name), _text(TYPENAME, HASH_IP), revision, family, data)


def _text(kind: int, text: str) -> bytes:
    return wire.attribute(kind, text.encode() + b"\0")


def _timed(answers: list[Answer]) -> Iterator[tuple[str, int]]:
    """Name and timeout of each hash:ip that has one."""
    for buffer, start, end in answers:
        found = attributes(buffer, start + nfnl.GENERIC_BYTES, end)
        timeout = parse.nested(found, DATA).get(TIMEOUT)
        if timeout and parse.text(found[TYPENAME]) == HASH_IP:
            yield parse.text(found[SETNAME]), int.from_bytes(timeout, "big")


def _lacking(error: KernelError) -> FirewallError:
    """What a failure means if it is the plainest request that failed."""
    if error.errno in nfnl.LACKING:
        return NoIpset("the kernel has no ipsets", evidence=str(error), next=_LOAD)
    return FirewallError("the ipsets cannot be listed", evidence=str(error))


def _words(refusal: Refusal) -> str:
    return SAID.get(refusal.errno) or refusal.text or f"error {refusal.errno}"
