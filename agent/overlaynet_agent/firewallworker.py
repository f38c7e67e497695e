"""The agent's hands on iptables: a thread, because a restore can wait seconds for the xtables lock.

There is one writer. While it is busy only the latest wanted policies are remembered, so a hundred changes
in a row cost two restores, not a hundred.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from overlaynet.errors import OverlayError
from overlaynet.ports import Firewall
from overlaynet.reconcile import FirewallOutcome, sync_firewall
from overlaynet.state import Policy
from overlaynet_agent.durations import Durations

log = logging.getLogger("overlaynet.firewall")


@dataclass(frozen=True, slots=True)
class FirewallDone:
    """One round is over: what differed and was written, or why it could not be."""

    outcome: FirewallOutcome
    error: OverlayError | None = None


class FirewallWorker:
    """Brings the rules to the latest policies given; tells `post` after each round."""

    def __init__(self, firewall: Firewall, post: Callable[[FirewallDone], None]) -> None:
        self._firewall = firewall
        self._post = post
        self._wanted: tuple[Mapping[str, Policy], bool] | None = None
        self.durations = Durations()
        self._stopped = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="firewall", daemon=True)

    @property
    def flavour(self) -> str:
        return self._firewall.flavour

    def start(self) -> None:
        self._thread.start()

    def want(self, policies: Mapping[str, Policy], additions_only: bool) -> None:
        """Make the rules like this, soon; with `additions_only` take nothing away."""
        with self._wake:
            self._wanted = (dict(policies), additions_only)
            self._wake.notify()

    def stop(self) -> None:
        """End after the round under way: a restore is never cut short."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopped or self._wanted is not None)
                if self._stopped:
                    return
                (wanted, additions_only), self._wanted = self._wanted or ({}, True), None
            try:
                with self.durations.timed():
                    outcome = sync_firewall(self._firewall, wanted, additions_only=additions_only)
                self._post(FirewallDone(outcome))
            except OverlayError as error:
                self._post(FirewallDone(FirewallOutcome(), error))
            except Exception as error:
                log.exception("firewall round failed: this is a bug")
                bug = OverlayError("the agent failed at the firewall; its log says where", evidence=repr(error))
                self._post(FirewallDone(FirewallOutcome(), bug))
