"""Log lines: one per change of fact, a fixed message and then ``key=value``.

Three forms of the same record. As text, for people; as one JSON object a line, for collectors; and, where
standard error is the journal's, in the journal's own protocol, which keeps every value in a field of its own::

    journalctl -u overlaynet-agent OVERLAYNET_CODE=OVL-301

The fields are taken from the message's own format: ``attached container=%s`` gives the field ``container``
its argument. An argument that is an error of ours adds its code and evidence.

A message to the journal is one datagram of ``KEY=value`` lines to its socket. A value that holds a line break
is written as the key alone, its length (64 bits, little endian) and its bytes. What is too large for a
datagram is written into a sealed memory file whose descriptor is sent instead (systemd's
JOURNAL_NATIVE_PROTOCOL; systemd.journal-fields(7); memfd_create(2), fcntl(2)). Whether standard error is the
journal's is what JOURNAL_STREAM says: its device and inode (systemd.exec(5)).
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from overlaynet.config import LogConfig
from overlaynet.errors import OverlayError

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
IDENTIFIER = "overlaynet-agent"
JOURNAL = Path("/run/systemd/journal/socket")
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""journald reads no file that its sender could still change."""
_PLACE = re.compile(r"(?:\b(\w+)=)?(%[-#0 +]*\d*(?:\.\d+)?[a-zA-Z%])")


def fields(record: logging.LogRecord) -> dict[str, str]:
    """What the record says, by the names in its own format, in lower case."""
    found: dict[str, str] = {}
    arguments = iter(record.args if isinstance(record.args, tuple) else ())
    for name, place in _PLACE.findall(record.msg) if isinstance(record.msg, str) else ():
        if place == "%%":
            continue
        value = next(arguments, None)
        if isinstance(value, OverlayError):
            found |= {"code": value.code, "evidence": value.evidence}
        if name:
            found[name] = place % (value,)
    return {name: value for name, value in found.items() if value}


class JsonLines(logging.Formatter):
    """For collectors that want fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "fields": fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class JournalHandler(logging.Handler):
    """To the journal by its native protocol. What the journal does not take goes to standard error as text."""

    def __init__(self, path: Path = JOURNAL) -> None:
        super().__init__()
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)  # the loop writes log lines too, and waits for no journal
        self._plain = logging.StreamHandler(sys.stderr)
        self._plain.setFormatter(logging.Formatter(TEXT))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(encoded(self._lines(record)))
        except OSError:
            self._plain.handle(record)
        except Exception:  # a mistake in a log line must not end the agent
            self.handleError(record)

    def close(self) -> None:
        self._socket.close()
        super().close()

    def _lines(self, record: logging.LogRecord) -> Iterator[tuple[str, str]]:
        yield "MESSAGE", self.format(record)
        yield "PRIORITY", str(_priority(record.levelno))
        yield "SYSLOG_IDENTIFIER", IDENTIFIER
        yield "CODE_FILE", record.pathname
        yield "CODE_LINE", str(record.lineno)
        yield "CODE_FUNC", record.funcName or ""
        yield "OVERLAYNET_LOGGER", record.name
        for name, value in fields(record).items():
            yield f"OVERLAYNET_{name.upper()}", value

    def _send(self, message: bytes) -> None:
        try:
            self._socket.sendto(message, self._path)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_as_file(message)

    def _send_as_file(self, message: bytes) -> None:
        descriptor = os.memfd_create("journal-message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(descriptor, "wb") as file:
            file.write(message)
            file.flush()
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
            passed = (socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor.to_bytes(4, sys.byteorder))
            self._socket.sendmsg([], [passed], 0, self._path)


def encoded(lines: Iterable[tuple[str, str]]) -> bytes:
    """One message in the journal's native protocol."""
    message = bytearray()
    for name, text in lines:
        value = text.encode("utf-8", "backslashreplace")
        if b"\n" in value:
            message += name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
        else:
            message += name.encode() + b"=" + value + b"\n"
    return bytes(message)


def _priority(level: int) -> int:
    """syslog(3)'s, of one of logging's levels."""
    for least, priority in ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6)):
        if level >= least:
            return priority
    return 7


def stderr_is_the_journal(environ: Mapping[str, str]) -> bool:
    """Not merely that some service's environment was inherited: standard error may have been sent elsewhere."""
    try:
        there = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # closed, or no file at all
        return False
    return environ.get("JOURNAL_STREAM") == f"{there.st_dev}:{there.st_ino}"


def configure(config: LogConfig) -> None:
    """Send all of it to the journal if that is where standard error goes, else to standard error, where a lab's
    log file or another supervisor picks it up. `config.format` is about the latter."""
    root = logging.getLogger("overlaynet")
    for old in root.handlers:
        old.close()
    root.handlers = [_handler(config.format)]
    root.setLevel(config.level.upper())
    root.propagate = False


def _handler(form: str) -> logging.Handler:
    if stderr_is_the_journal(os.environ):
        return JournalHandler()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else logging.Formatter(TEXT))
    return handler
