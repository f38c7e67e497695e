"""What holds for every test: it belongs to exactly one tier, and a tier must prove something.

    tier     needs                          example
    unit     nothing                        a plan made from leases
    fake     nothing                        a reconciler on fakes
    kernel   capabilities, iproute2         a route written in a namespace of the test's own
    lab      these, iptables and etcd       agents on three hosts
    interop  these and flanneld             a host handed from flannel to us
    vm       qemu, and a box of Debian 12   the agent as a service of machines that are booted
    vagrant  these, Vagrant and libvirt     the same by `vagrant up`; only where it is asked for

`--tier unit,fake` selects. Files run in the order of the dearest tier that they have a test of, so that the
cheapest tells first. A file's tests stay together, since one lab serves a whole file: pytest-xdist's workers
(`-n 4 --dist loadfile`) take whole files.

The summary counts each tier and says how long it took. A tier asked for of which no test ran is a failure: a
suite that silently skips everything looks as green as one that passes.

What a test measured (`record_property`) is printed before that: figures are told, never asserted.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
import pytest

TIERS = ("unit", "fake", "kernel", "lab", "interop", "vm", "vagrant")
ON_REQUEST = ("vagrant",)

# A deadline is a wall-clock assertion, and shared machines break those. In CI and in tests/run the examples are
# the same each time, so that a failure belongs to the change under test; pytest by itself looks for new ones.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)


@dataclass(slots=True)
class Tally:
    """What became of one tier's tests, and when they were at work, set-up and clean-up included."""

    outcomes: Counter[str] = field(default_factory=Counter)
    spans: list[tuple[float, float]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long at least one of them was at work, be it in one worker or in several."""
        total, until = 0.0, 0.0
        for start, stop in sorted(self.spans):
            total += max(stop - max(start, until), 0.0)
            until = max(stop, until)
        return total

    @property
    def ran(self) -> int:
        return self.outcomes["passed"] + self.outcomes["failed"]


class TierReport:
    """Follows the reports of one run and closes it with one line a tier."""

    def __init__(self, wanted: tuple[str, ...], whole_suite: bool) -> None:
        self.wanted = wanted
        self.whole_suite = whole_suite
        self.tallies = {tier: Tally() for tier in wanted}
        self.figures: list[tuple[str, object]] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        refuse_untiered(items)
        chosen = in_order([item for item in items if tier_of(item) in self.wanted])
        config.hook.pytest_deselected(items=[i for i in items if tier_of(i) not in self.wanted])
        items[:] = chosen

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        tier = next((tier for tier in TIERS if tier in report.keywords), None)
        if tier is None:
            return  # made up by pytest-xdist for a worker that died; a failure all the same
        self.figures += report.user_properties if report.when == "teardown" else []
        tally = self.tallies[tier]
        tally.spans.append((report.start, report.stop))
        if report.failed or report.skipped or report.when == "call":
            tally.outcomes[report.outcome] += 1

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.idle() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.figures:
            terminalreporter.section("measured")
        for name, value in self.figures:
            terminalreporter.line(f"{name:<64}{value}")
        terminalreporter.section("tiers")
        for tier, tally in self.tallies.items():
            counts = ", ".join(f"{n} {outcome}" for outcome, n in sorted(tally.outcomes.items())) or "no test"
            terminalreporter.line(f"{tier:<8}{tally.seconds / 60:6.1f} min   {counts}")
        for tier in self.idle():
            terminalreporter.line(f"FAILED: no test of tier {tier} ran, so it proved nothing", red=True)

    def idle(self) -> list[str]:
        """The tiers that had to run and did not."""
        return [tier for tier, tally in self.tallies.items() if self.whole_suite and not tally.ran]


def tier_of(item: pytest.Item) -> str:
    return next(tier for tier in TIERS if item.get_closest_marker(tier))


def in_order(items: list[pytest.Item]) -> list[pytest.Item]:
    """By tier, and file by file; among files of a tier those with most tests first, lest one be left at the end
    that a single worker has to do."""
    cost: dict[Path, int] = {}
    for item in items:
        cost[item.path] = max(cost.get(item.path, 0), TIERS.index(tier_of(item)))
    count = Counter(item.path for item in items)
    return sorted(items, key=lambda item: (cost[item.path], -count[item.path], item.path))


def refuse_untiered(items: list[pytest.Item]) -> None:
    """A worker of pytest-xdist can tell why a run must end by this attribute alone."""
    for item in items:
        if sum(item.get_closest_marker(tier) is not None for tier in TIERS) != 1:
            item.session.shouldfail = f"{item.nodeid} must have exactly one marker of {', '.join(TIERS)}"
            items[:] = []


def asks_for_everything(config: pytest.Config) -> bool:
    """Does this run name tiers, and nothing smaller?"""
    narrowed = config.option.keyword or config.option.markexpr or config.option.collectonly
    by_path = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    return config.option.tier is not None and not narrowed and not by_path


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", metavar="NAMES", help=f"run only these, separated by commas: {','.join(TIERS)}")


def heed_signals() -> None:
    """A run begun by `nohup`, or by a script's `&`, ignores these; so would all that tests start and end."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    heed_signals()
    wanted = tuple((config.option.tier or ",".join(t for t in TIERS if t not in ON_REQUEST)).split(","))
    if unknown := sorted(set(wanted) - set(TIERS)):
        raise pytest.UsageError(f"no such tier: {', '.join(unknown)}; there are {', '.join(TIERS)}")
    hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")
    report = TierReport(tuple(t for t in TIERS if t in wanted), asks_for_everything(config))
    config.pluginmanager.register(report, "tiers")
