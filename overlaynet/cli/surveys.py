"""Looking at several hosts at once, and beside what they should hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from overlaynet.cli.app import App
from overlaynet.cluster.cluster import Host, each_host, read_view
from overlaynet.cluster.known import kept_leases
from overlaynet.core.view import View
from overlaynet.errors import NetworkError, OverlayError, StoreError, WorkloadError
from overlaynet.probe import survey as surveying
from overlaynet.probe.mesh import Difference
from overlaynet.probe.survey import Known, Survey

TIMEOUT_S = 30.0
INCONCLUSIVE = 4


class Surveyed(NamedTuple):
    """The hosts that could be judged, and why the others could not, by name."""

    surveys: Sequence[Survey]
    errors: Mapping[str, OverlayError]

    @property
    def exit_code(self) -> int:
        return INCONCLUSIVE if self.errors else 0


def survey_hosts(app: App, hosts: Sequence[Host], *, need_plan: bool) -> Surveyed:
    """Survey all of them. Raises the first error if none could be judged.

    Without `need_plan` a missing etcd, network or lease leaves states unknown and is only warned of."""
    view = _view(app, need_plan=need_plan)
    found = each_host(hosts, lambda host: _survey(app, host, view, need_plan=need_plan))
    errors = {name: error for name, error in found.items() if isinstance(error, OverlayError)}
    if errors and len(errors) == len(hosts):
        raise next(iter(errors.values()))
    for error in errors.values():
        app.warn(error)
    return Surveyed([s for s in found.values() if isinstance(s, Survey)], errors)


def differences(app: App, hosts: Sequence[Host]) -> list[Difference]:
    """What differs on hosts, as far as that can be told; nothing of hosts of which it cannot."""
    try:
        view = read_view(app.cluster)
    except StoreError:
        return []
    found = each_host(hosts, lambda host: _survey(app, host, view, need_plan=True))
    return [
        Difference(survey.host, change["source"], f"{change['op']} {what_differs(change)}")
        for survey in found.values()
        if isinstance(survey, Survey)
        for change in survey.changes_json()
    ]


def what_differs(change: Mapping[str, Any]) -> str:
    """The entry that a difference is about, in the words of `ip` or iptables."""
    if change["object"] == "rule":
        return f"rules of {change['key']}"
    return str(change["want"] or change["have"] or change["key"])


def _view(app: App, *, need_plan: bool) -> View | None:
    try:
        return read_view(app.cluster)
    except StoreError as error:
        if need_plan:
            raise
        app.warn(error)
        return None


def _survey(app: App, host: Host, view: View | None, *, need_plan: bool) -> Survey:
    cluster, config = app.cluster, app.cluster.config(host.name)
    if view is not None:
        view = replace(view, stale=kept_leases(cluster, host, view))
    answer = cluster.probe(host.name, surveying.job(view, config), app.timeout(TIMEOUT_S))
    known = Known(host.name, config, cluster.identity(host.name), view, cluster.workloads(host.name))
    try:
        return surveying.survey(known, answer)
    except (NetworkError, WorkloadError) as error:
        if need_plan:
            raise
        app.warn(error)
        return surveying.survey(replace(known, view=None), answer)
