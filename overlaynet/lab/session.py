"""A probe that stays: its own side of the two pipes.

A session is one process on a host that answers jobs one after another (`overlaynet.probe.session`); this is who
asks. The process is started without waiting for it, so that several start at once. One that did not answer in
time is ended: a late answer would be taken for that to the next job.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, Protocol

from overlaynet.errors import LabFailed, OverlayError, from_json

END_S = 1.0
"""How long a probe may take to end once its input has."""
_READ_BYTES = 1 << 18
_EVIDENCE_BYTES = 4000
_SHOWN = 400


class Session(Protocol):
    """Whoever answers a probe's jobs, one after another. Not for two threads at once."""

    def ask(self, job: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """The answer to one job. Raises the error that the probe tells of; LabFailed if it does not answer."""

    def close(self) -> None:
        """End it. Harmless where it has ended."""

    def __enter__(self) -> Session: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ProbeSession:
    """A probe that this process started."""

    def __init__(self, host: str, argv: Sequence[str], *, apart: bool = False) -> None:
        """`argv` runs a probe on `host`. `apart`: what a terminal sends to this command, as at Ctrl-C, it does
        not send to the probe. Raises LabFailed if it cannot be started."""
        self._host = host
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`; no pipe: it may fill)
        self._rest = b""
        try:
            self._process = start(host, argv, {"op": "session"}, stderr=self._said, apart=apart)
        except LabFailed:
            self._said.close()
            raise

    def __enter__(self) -> ProbeSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, job: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """The answer to one job. Raises the error that the probe tells of; LabFailed if it does not answer, or
        MachineUnreachable where ssh tells why."""
        self.post(job)
        return self.answer(timeout_s)

    def post(self, job: Mapping[str, Any]) -> None:
        """Ask without waiting; `answer` waits. Raises LabFailed, or MachineUnreachable."""
        if self._said.closed:
            raise LabFailed(f"the probe on {self._host} was asked after it was ended")
        try:
            _write(self._process, job)
        except OSError as error:
            raise self._failed(f"the probe on {self._host} could not be asked", str(error)) from error

    def answer(self, timeout_s: float) -> dict[str, Any]:
        """The answer to the job that was posted. Raises as `ask`."""
        line = b""
        try:
            line = self._line(time.monotonic() + timeout_s)
            document = _document(line)
        except (OSError, ValueError) as error:
            reason = f"it said {line[:80]!r}" if line else str(error)
            raise self._failed(f"the probe on {self._host} did not answer", reason) from error
        if document.get("kind") == "Error":
            raise from_json(document["error"])
        return dict(document)

    def close(self) -> None:
        """End its input and let it go; if it does not go by itself, it is killed. Harmless the second time."""
        if self._said.closed:
            return
        end(self._process)
        self._said.close()

    def _line(self, deadline: float) -> bytes:
        """Raises TimeoutError, or BrokenPipeError if it has ended."""
        assert self._process.stdout is not None
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        parts = [self._rest]
        while b"\n" not in parts[-1]:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError("no answer in time")
            octets = os.read(self._process.stdout.fileno(), _READ_BYTES)
            if not octets:
                raise BrokenPipeError("it has ended")
            parts.append(octets)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line

    def _failed(self, message: str, reason: str) -> OverlayError:
        """The error to raise, once the probe is ended."""
        end(self._process)
        said = self._last_words()
        self._said.close()
        return self._error(message, reason, said)

    def _error(self, message: str, reason: str, said: str) -> OverlayError:
        """Of a probe that ended, or was ended because of `reason`, having said `said`."""
        return LabFailed(
            message,
            evidence="; ".join(filter(None, [reason, f"exit {self._process.returncode}", said[-_SHOWN:]])),
            next=[f"overlaynet exec {self._host} -- true"],
        )

    def _last_words(self) -> str:
        size = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, size - _EVIDENCE_BYTES))
        return self._said.read().decode(errors="replace").strip()


def _document(line: bytes) -> dict[str, Any]:
    """An answer from its line. Raises ValueError for what no probe says."""
    document = json.loads(line)
    if not isinstance(document, dict):
        raise ValueError("no object")
    if document.get("kind") == "Error" and not isinstance(document.get("error"), dict):
        raise ValueError("an error without its members")
    return document


def start(
    host: str,
    argv: Sequence[str],
    job: Mapping[str, Any],
    stderr: IO[bytes] | None = None,
    *,
    apart: bool = False,
) -> subprocess.Popen[bytes]:
    """A probe with its first line, and its input left open. Raises LabFailed if it cannot be started."""
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            process_group=0 if apart else None,
        )
    except OSError as error:
        raise LabFailed(f"the probe on {host} could not be started", evidence=str(error)) from error
    try:
        _write(process, job)
    except OSError as error:
        end(process)
        raise LabFailed(
            f"the probe on {host} could not be asked", evidence=f"exit {process.returncode}: {error}"
        ) from error
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """End a probe's input, and after `END_S` the probe."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):  # it has ended, with a job unread
        process.stdin.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def _write(process: subprocess.Popen[bytes], job: Mapping[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(job).encode() + b"\n")
    process.stdin.flush()
