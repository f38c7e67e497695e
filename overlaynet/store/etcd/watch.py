"""A watch that lasts: one thread, one gRPC stream, one etcd watcher on it for each prefix.

The stream may break at any time: a member restarts, vanishes or loses its leader. The thread then opens
another, at the next member, and asks each watcher to start at the revision behind the last one it saw. So
nothing is lost and nothing is told twice. What cannot be bridged ends the watch, and the owner lists again:

- etcd has compacted the revisions that were missed;
- etcd has another history (restored from a backup, or emptied): its cluster id is another one, its revision
  is below what was seen, or the *witness*, the newest key that was seen, was not written as we saw it. The
  first two alone do not suffice: an etcd that is set up anew as it was has the same cluster id, and hosts that
  noticed sooner may have written its revision past ours by now;
- etcd refuses: no right to read a prefix.

Within a stream events come in the order of their revisions, except that etcd brings each watcher which starts
in the past up to date on its own: after a break, changes of one prefix may be told before older ones of
another. Nothing tells when a watcher has caught up, so there is nothing to wait for; events of one prefix,
and so of one key, are always in order.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from overlaynet.errors import AnotherHistory, Compacted, StoreError, StoreRefused, StoreUnavailable
from overlaynet.ports import KeyGone, KeyPut, Notice, WatchEnded
from overlaynet.store.etcd.connection import MAX_RECONNECT_S, Connection, Member
from overlaynet.store.etcd.messages import key_range, key_value, newest_op, some, text
from overlaynet.store.etcd.rpc import etcdrpc, grpc, refused, token_refused, translate

log = logging.getLogger("overlaynet.etcd")

FIRST_PAUSE_S = 0.1
LOG_IN_S = 5.0
ANSWER_S = 5.0
"""How long etcd may take to answer that the first watcher is there."""
JOIN_S = 2.0
"""How long `cancel` waits for a sink that is being called just then."""


class EtcdWatch:
    """Tells `sink` of every change of keys under `prefixes` from `revision` on. `sink` must not raise."""

    def __init__(
        self, connection: Connection, prefixes: Sequence[str], revision: int, sink: Callable[[Notice], None]
    ) -> None:
        self._connection = connection
        self._prefixes = tuple(prefixes)
        self._next = dict.fromkeys(self._prefixes, revision)
        self._sink = sink
        self._cluster_id = 0
        self._witness: Any = None
        self._pause_s = FIRST_PAUSE_S
        self._denied = False
        self._stopped = threading.Event()
        self._stream: Any = None
        self._thread = threading.Thread(target=self._run, name="etcd-watch", daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Ask the thread to end, without waiting for it."""
        self._stopped.set()
        if self._stream is not None:
            self._stream.cancel()

    def cancel(self) -> None:
        """Stop; the sink is not called again. A call of it under way is waited for, up to JOIN_S seconds,
        unless it is the caller itself."""
        self.stop()
        if threading.current_thread() is not self._thread:
            self._thread.join(JOIN_S)

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while not (self._stopped.is_set() or self._connection.closed):
            try:
                problem = self._follow()
            except Exception as error:  # whoever is not told that the watch has ended waits for ever
                log.exception("watch failed: this is a bug")
                problem = StoreError("the agent failed at the watch; its log says where", evidence=repr(error))
                self._stopped.wait(MAX_RECONNECT_S)
            if isinstance(problem, Compacted) or not problem.transient:
                self._tell(WatchEnded(problem))
                return
            self._stopped.wait(self._pause_s)
            self._pause_s = min(self._pause_s * 2, MAX_RECONNECT_S)

    def _tell(self, notice: Notice) -> None:
        if not self._stopped.is_set():
            self._sink(notice)

    def _follow(self) -> StoreError:
        """Open a stream and pass on what it brings until it breaks; the answer says why it did."""
        member, finished = self._connection.member, threading.Event()
        unanswered = threading.Timer(ANSWER_S, self._give_up)
        unanswered.daemon = True
        try:
            unanswered.start()
            return self._pass_on(self._open(member, finished), unanswered)
        except grpc.RpcError as error:
            return self._broken(member, error)
        except StoreError as problem:
            return problem
        except ValueError as error:
            return StoreUnavailable("the connection to etcd was closed", evidence=str(error))
        finally:
            finished.set()
            unanswered.cancel()
            if self._stream is not None:
                self._stream.cancel()

    def _give_up(self) -> None:
        """From a timer. A member that has been restored waits for the revision of a token from before."""
        self._connection.forget_token()
        if self._stream is not None:
            self._stream.cancel()

    def _open(self, member: Member, finished: threading.Event) -> Any:
        """A stream. gRPC reads the requests in a thread of its own, which ends when `finished` is set;
        ending earlier would tell etcd that we are done."""
        metadata = self._connection.metadata(member, LOG_IN_S)
        self._stream = member.watch.Watch(_requests(dict(self._next), finished), metadata=metadata)
        if self._stopped.is_set():
            self._stream.cancel()
        return self._stream

    def _broken(self, member: Member, error: Any) -> StoreError:
        problem = translate(error, f"watch {self._what}", member.url, self._connection.who)
        if problem.transient:
            self._connection.leave(member)
        return self._with_new_token(problem) if token_refused(error) else problem

    @property
    def _what(self) -> str:
        return some(self._prefixes)

    def _with_new_token(self, problem: StoreError) -> StoreError:
        """Refused for the first time, perhaps only the token was too old, or users changed just then: that is
        worth another try."""
        if self._denied:
            return problem
        self._denied = True
        self._connection.forget_token()
        return StoreUnavailable(problem.message, evidence=problem.evidence, next=problem.next)

    # --- what the stream brings -------------------------------------------------------------------

    def _pass_on(self, stream: Any, unanswered: threading.Timer) -> StoreError:
        prefix_of: dict[int, str] = {}
        for response in stream:
            unanswered.cancel()
            if response.canceled:
                return self._cancelled(response)
            if response.created:
                self._created(response, prefix_of)
            else:
                self._progress(response, prefix_of[response.watch_id])
        return StoreUnavailable("etcd ended the watch")

    def _created(self, response: Any, prefix_of: dict[int, str]) -> None:
        """etcd answers the requests in their order."""
        prefix = self._prefixes[len(prefix_of)]
        prefix_of[response.watch_id] = prefix
        self._check_history(response.header, prefix)
        if len(prefix_of) == 1:
            self._hear_witness()
        if len(prefix_of) == len(self._prefixes):
            self._pause_s, self._denied = FIRST_PAUSE_S, False

    def _check_history(self, header: Any, prefix: str) -> None:
        """Raises AnotherHistory if this is not the history we have been following."""
        expected = self._next[prefix] - 1
        self._cluster_id = self._cluster_id or header.cluster_id
        behind = header.revision < expected and self._present_revision() < expected
        if behind or header.cluster_id != self._cluster_id:
            raise _another_history(
                f"cluster {header.cluster_id:x} at revision {header.revision}, "
                f"expected {self._cluster_id:x} at {expected} or later"
            )
        self._next[prefix] = self._next[prefix] or header.revision + 1

    def _hear_witness(self) -> None:
        """Raises AnotherHistory if the witness was never written so, Compacted if nobody can tell any more. The
        first time, find one."""
        if self._witness is None:
            self._witness = self._newest()
            return
        seen = self._witness
        try:
            there = self._read_witness(seen.mod_revision)
        except Compacted:
            there = self._read_witness(0)
            if there != seen:
                raise
        except StoreRefused as error:
            if "future" not in error.message:
                raise
            there = None
        if there != seen:
            raise _another_history(f"revision {seen.mod_revision} did not write key {text(seen.key)}")

    def _read_witness(self, revision: int) -> Any:
        """The witness's key as it was at a revision, at present for 0; None if it was absent."""
        request = etcdrpc.RangeRequest(key=self._witness.key, revision=revision)
        answer = self._connection.call(
            "read its history",
            lambda member, left, meta: member.kv.Range(request, timeout=left, metadata=meta),
        )
        return answer.kvs[0] if answer.kvs else None

    def _newest(self) -> Any:
        """The key under our prefixes that was written last; None if there are no keys."""
        request = etcdrpc.TxnRequest(success=[newest_op(*key_range(prefix)) for prefix in self._prefixes])
        answer = self._connection.call(
            "read its newest keys",
            lambda member, left, meta: member.kv.Txn(request, timeout=left, metadata=meta),
        )
        found = [kv for part in answer.responses for kv in part.response_range.kvs]
        return max(found, key=lambda kv: int(kv.mod_revision), default=None)

    def _present_revision(self) -> int:
        """The cluster's revision by its leader's word: the member may only be a little behind."""
        start, end = key_range(self._prefixes[0])
        request = etcdrpc.RangeRequest(key=start, range_end=end, count_only=True)
        answer = self._connection.call(
            "read its revision",
            lambda member, left, meta: member.kv.Range(request, timeout=left, metadata=meta),
        )
        return int(answer.header.revision)

    def _progress(self, response: Any, prefix: str) -> None:
        """Events, all of one revision together; or none, which says that nothing was missed so far."""
        for event in response.events:
            self._tell(_notice(event))
            if event.type != event.DELETE:
                self._witness = event.kv
        seen = response.events[-1].kv.mod_revision if response.events else response.header.revision
        self._next[prefix] = seen + 1

    def _cancelled(self, response: Any) -> StoreError:
        if response.compact_revision:
            return Compacted(
                "etcd has compacted the history this watch asked for",
                evidence=f"asked from revision {min(self._next.values())}, "
                f"history starts at {response.compact_revision}",
            )
        reason = response.cancel_reason
        if "permission denied" in reason or "auth" in reason:
            return self._with_new_token(
                refused(f"watch {self._what}", reason, self._connection.member.url, self._connection.who)
            )
        return StoreUnavailable(f"etcd cancelled the watch: {reason or 'no reason given'}")


def _another_history(evidence: str) -> AnotherHistory:
    return AnotherHistory(
        "etcd has another history than the one being watched: it was restored, or emptied", evidence=evidence
    )


def _requests(starts: dict[str, int], finished: threading.Event) -> Iterator[Any]:
    for prefix, revision in starts.items():
        start, end = key_range(prefix)
        create = etcdrpc.WatchCreateRequest(
            key=start, range_end=end, start_revision=revision, progress_notify=True
        )
        yield etcdrpc.WatchRequest(create_request=create)
    finished.wait()


def _notice(event: Any) -> Notice:
    if event.type == event.DELETE:
        return KeyGone(text(event.kv.key), event.kv.mod_revision)
    return KeyPut(key_value(event.kv))
