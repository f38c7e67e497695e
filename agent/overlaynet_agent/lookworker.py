"""The agent's eyes: a thread that reads the whole kernel and compares, which takes long among many peers.

The loop goes on meanwhile, and writes. It says what to read (`begin`), and the reading comes back as an event;
what happened in between is newer than it (`overlaynet.reconcile`). There is one reading at a time.
"""

from __future__ import annotations

import errno
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from overlaynet.errors import KernelError
from overlaynet.reconcile import Reading

log = logging.getLogger("overlaynet.look")


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """A reading to be made, and why; `began` by the loop's clock."""

    read: Callable[[], Reading]
    why: str
    began: float


@dataclass(frozen=True, slots=True)
class Looked:
    """What came of it: a reading, or why there is none."""

    look: Look
    found: Reading | KernelError


class LookWorker:
    """Makes readings one after the other; tells `post` of each."""

    def __init__(self, post: Callable[[Looked], None]) -> None:
        self._post = post
        self._asked: queue.SimpleQueue[Look | None] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name="look", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the reading under way."""
        self._asked.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def begin(self, look: Look) -> None:
        self._idle.clear()
        self._asked.put(look)

    def rest(self) -> None:
        """Wait until no reading is under way."""
        self._idle.wait()

    def _run(self) -> None:
        while (look := self._asked.get()) is not None:
            found = _read(look)
            self._idle.set()
            self._post(Looked(look, found))


def _read(look: Look) -> Reading | KernelError:
    try:
        return look.read()
    except KernelError as error:
        return error
    except Exception:
        log.exception("a look failed: this is a bug")
        return KernelError("a look at the kernel", errno.EIO, "the agent failed; see its log")
