"""Probes that stay: one process for each machine of a cluster, asked many things in a row.

Starting a probe costs more than most of what it is asked, so it is started once for a question. Where all hosts
are namespaces of one machine a single probe reaches every one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from overlaynet.cluster.cluster import Cluster, Host
from overlaynet.errors import OverlayError
from overlaynet.lab.session import Session

JOB_TIMEOUT_S = 30.0
MAX_AT_ONCE = 16


class Sessions:
    """The probes of some hosts. Those start at once and are waited for when they are first asked."""

    def __init__(self, cluster: Cluster, hosts: Iterable[Host], timeout_s: float = JOB_TIMEOUT_S) -> None:
        self._cluster = cluster
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(MAX_AT_ONCE, "probe")
        names = [host.name for host in hosts]
        self._machine = dict.fromkeys(names, names[0]) if cluster.one_machine else {n: n for n in names}
        self._opened: dict[str, Future[Session]] = {
            machine: self._pool.submit(cluster.session, machine, timeout_s)
            for machine in dict.fromkeys(self._machine.values())
        }

    def __enter__(self) -> Sessions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for opened in self._opened.values():
            if opened.exception() is None:
                opened.result().close()
        self._pool.shutdown()

    def machine(self, host: str | None) -> str:
        """Which probe answers for a host. A place that is on none is on the machine of all."""
        return self._machine[host] if host is not None else next(iter(self._opened))

    def ask(self, machine: str, job: Mapping[str, Any]) -> dict[str, Any]:
        """One machine's answer. Raises OverlayErrors."""
        return self._opened[machine].result().ask(job, self._timeout_s)

    def ask_each(self, jobs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any] | OverlayError]:
        """The answers of several machines, asked at once; an error of one is its answer."""

        def safely(machine: str) -> dict[str, Any] | OverlayError:
            try:
                return self.ask(machine, jobs[machine])
            except OverlayError as error:
                return error

        return dict(zip(jobs, self._pool.map(safely, jobs), strict=True))

    def later(self, work: Callable[[], Any]) -> Future[Any]:
        """Do something else meanwhile."""
        return self._pool.submit(work)
