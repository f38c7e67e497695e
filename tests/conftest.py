"""What holds for every test: it belongs to exactly one tier, and a tier must prove something.

    tier     needs                          example
    unit     nothing                        a plan made from leases
    fake     nothing                        a reconciler on fakes
    kernel   capabilities, iproute2         a route written in a namespace of the test's own
    lab      these, iptables and etcd       agents on three hosts
    interop  these and flanneld             a host handed from flannel to us

`--tier unit,fake` selects; tiers run in the order above, so that the cheapest tells first. The summary
counts each tier and says how long it took. A tier asked for of which no test ran is a failure: a suite
that silently skips everything looks as green as one that passes.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

import hypothesis
import pytest

TIERS = ("unit", "fake", "kernel", "lab", "interop")

# A deadline is a wall-clock assertion, and shared machines break those. In CI the examples are the same
# each time, so that a failure belongs to the change under test.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)


@dataclass(slots=True)
class Tally:
    """What became of one tier's tests, and the seconds they took, set-up and clean-up included."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def ran(self) -> int:
        return self.outcomes["passed"] + self.outcomes["failed"]


class TierReport:
    """Follows the reports of one run and closes it with one line a tier."""

    def __init__(self, wanted: tuple[str, ...]) -> None:
        self.wanted = wanted
        self.whole_suite = True
        self.tallies = {tier: Tally() for tier in wanted}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        refuse_untiered(items)
        chosen = sorted((i for i in items if tier_of(i) in self.wanted), key=lambda i: TIERS.index(tier_of(i)))
        config.hook.pytest_deselected(items=[i for i in items if tier_of(i) not in self.wanted])
        items[:] = chosen
        self.whole_suite = asks_for_everything(config)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        tally = self.tallies[next(tier for tier in TIERS if tier in report.keywords)]
        tally.seconds += report.duration
        if report.failed or report.skipped or report.when == "call":
            tally.outcomes[report.outcome] += 1

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.idle() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
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


def refuse_untiered(items: list[pytest.Item]) -> None:
    for item in items:
        if sum(item.get_closest_marker(tier) is not None for tier in TIERS) != 1:
            raise pytest.UsageError(f"{item.nodeid} must have exactly one marker of {', '.join(TIERS)}")


def asks_for_everything(config: pytest.Config) -> bool:
    """Does this run name tiers, and nothing smaller?"""
    narrowed = config.option.keyword or config.option.markexpr or config.option.collectonly
    by_path = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    return config.option.tier is not None and not narrowed and not by_path


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", metavar="NAMES", help=f"run only these, separated by commas: {','.join(TIERS)}")


def pytest_configure(config: pytest.Config) -> None:
    wanted = tuple((config.option.tier or ",".join(TIERS)).split(","))
    if unknown := sorted(set(wanted) - set(TIERS)):
        raise pytest.UsageError(f"no such tier: {', '.join(unknown)}; there are {', '.join(TIERS)}")
    hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")
    config.pluginmanager.register(TierReport(tuple(t for t in TIERS if t in wanted)), "tiers")
