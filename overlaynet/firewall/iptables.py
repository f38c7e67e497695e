"""The iptables programs: the only module that runs them.

Two variants live in Linux side by side and do not see each other's rules: *legacy* (ip_tables in the kernel)
and *nft* (the same commands on nf_tables). Packets pass both. Rules belong with those that are there already,
so that a person looking with one command sees all; hence `auto`:

1. the variant that holds foreign rules in this network namespace, if only one does;
2. else the one that holds ours, so that a restart does not move them;
3. else what ``iptables`` on PATH is.

If ours are nevertheless left in the other variant (the setting changed), the first `apply` removes them
there, after they are in place here.

In a user namespace the legacy variant may change tables but not list them (/proc/net/ip_tables_names belongs
to the machine's root). There each table is read by its name, which makes the kernel set it up, empty; so
only where the legacy variant was chosen or is to be cleaned, not to find out which one to choose.

Everything concerns the network namespace of the calling thread. Needed are CAP_NET_ADMIN and CAP_NET_RAW and,
for legacy, a writable lock file (environment XTABLES_LOCKFILE, else /run/xtables.lock); no root user as such.
Version 1.8 or newer, the first with two variants.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from overlaynet.errors import FirewallBusy, FirewallError, NotPermitted, OverlayError, ToolMissing
from overlaynet.firewall import compare, native
from overlaynet.firewall.chains import TABLE_ORDER, Rendered, is_any_instances, is_ours
from overlaynet.firewall.compare import Comparison
from overlaynet.firewall.foresee import are_known, entries, forms, written
from overlaynet.firewall.poll import generation, nobody_else
from overlaynet.firewall.readback import parse
from overlaynet.firewall.refusal import refusal
from overlaynet.firewall.render import Renderer
from overlaynet.firewall.restore import commits, restore_text
from overlaynet.firewall.services import Affinity
from overlaynet.state import Policy, RuleChange, RuleSet

Flavour: TypeAlias = Literal["legacy", "nft"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)

DEADLINE_S = 30.0
"""For one program run. Reading back 10 000 services takes the nft variant several seconds."""
LINE_S = 0.01
"""Longer, for each line of input: the nft variant takes a minute for the first 70 000."""
LOCK_WAIT_S = 5

_SYSTEM_PATH = "/usr/sbin:/sbin"
_PHYSDEV = "*filter\n-A FORWARD -m physdev --physdev-in lo\nCOMMIT\n"
_CAPABILITIES = 1 << 12 | 1 << 13  # CAP_NET_ADMIN, CAP_NET_RAW (linux/capability.h)


class Tools(NamedTuple):
    """The programs of one variant and one address family, by full path."""

    flavour: Flavour
    save: str
    restore: str


Found: TypeAlias = list[tuple[Tools, RuleSet]]


class Iptables:
    """The packet filter of one address family (4 or 6), as `ports.Firewall`.

    One thread writes; others may read and compare meanwhile. What is remembered of comparisons is for one of
    them at a time.

    `affinity`: how services remember their clients; "ipset" needs the program's sets in the kernel.
    `restores` counts commits by table, `bytes_written` the input given to iptables-restore."""

    def __init__(
        self,
        flavour: Literal["auto", "legacy", "nft"] = "auto",
        *,
        family: int = 4,
        random_fully: bool = True,
        deadline_s: float = DEADLINE_S,
        instance: str = "",
        affinity: Affinity = "ipset",
    ) -> None:
        self._wish = flavour
        self._instance = instance
        self._family = family
        self._render = Renderer(random_fully=random_fully, family=family, instance=instance, affinity=affinity)
        self._deadline_s = deadline_s
        self._remembered: dict[str, str] = {}
        self._spelt: set[str] = set()
        self._known: RuleSet | None = None
        self._compare = Comparison()
        self._comparing = threading.RLock()
        self._tools: Tools | None = None
        self._other_is_clean = False
        self.restores: Counter[str] = Counter()
        self.bytes_written = 0

    @property
    def flavour(self) -> Flavour:
        """The variant in use. Chosen at first need, for good. Raises ToolMissing or FirewallError."""
        return self._chosen().flavour

    def observe(self) -> RuleSet:
        """Every table's rules with counters. Raises FirewallError, NotPermitted, ToolMissing."""
        tools = self._chosen()
        before = generation(tools.flavour, self._family)
        found = self._known = replace(self._saved_somehow(tools), generation=before)
        return found

    def held(self) -> Mapping[str, int]:
        """How many rules of ours there are by table, as far as is known without reading."""
        found: Counter[str] = Counter()
        known = self._known  # which the thread that writes takes away while it does
        for (table, chain), rules in known.chains.items() if known else ():
            found[table] += len(rules) if is_ours(chain, self._instance) else 0
        return found

    def recall(self) -> RuleSet | None:
        """The rules as they were last read or written, if nobody has changed any since. Raises ToolMissing or
        FirewallError."""
        known = self._known
        return known if known and known.generation == self.generation() is not None else None

    def generation(self) -> object:
        """Differs once anybody has changed rules (see `poll`). Raises ToolMissing or FirewallError."""
        return generation(self._chosen().flavour, self._family)

    def pending(self, want: Mapping[str, Policy], have: RuleSet) -> tuple[RuleChange, ...]:
        """What differs, of what is ours."""
        with self._comparing:
            return self._compare.pending(self.rendered(want), have, self._remembered)

    def apply(self, changes: Sequence[RuleChange], have: RuleSet) -> RuleSet:
        """Commit the changes, each table at once. Raises FirewallError naming the refused line.

        `have` is what the changes were computed from. Afterwards the rules are read back, unless it is certain
        what they are (see `foresee`)."""
        after = have
        if changes:
            commits = self._restore(self._chosen(), changes, have)
            after = self._foreseen(changes, have, commits) or self._learn(changes)
        if not self._other_is_clean:
            self._clean_other()
        return after

    def clean(self) -> None:
        """Remove every chain and hook of ours, in both variants, and nothing else."""
        self._clean(_readable(_installed(self._family), self._saved_somehow))

    def rendered(self, want: Mapping[str, Policy]) -> Rendered:
        """The chains these policies become."""
        with self._comparing:
            return self._render(want)

    def affinity_sets(self, want: Mapping[str, Policy]) -> Mapping[str, int]:
        """The timed sets that these policies' rules refer to."""
        return self.rendered(want).sets

    def blockers(self, want: Mapping[str, Policy], have: RuleSet) -> tuple[str, ...]:
        """Foreign rules that decide before ours are asked, for the status."""
        return compare.blockers(self.rendered(want), have)

    def strangers(self, want: Mapping[str, Policy]) -> tuple[str, ...] | None:
        """Chains of nftables' own that stop what ours accept; None without the program nft, or the right to use
        it."""
        program = _which("nft")
        if program is None:
            return None
        try:
            text = self._run([program, "-j", "list", "ruleset"], "")
            found = native.stops(text, want, with_iptables=self.flavour == "legacy")
        except (OverlayError, ValueError, KeyError, TypeError):  # an nft that speaks otherwise than we know
            return None
        return tuple(map(native.sentence, found))

    def nftables(self, tables: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """Tables of nftables' own (family, name), as libnftables-json(5) has them. Raises ToolMissing or
        FirewallError."""
        program = _which("nft")
        if program is None:
            raise ToolMissing("the program 'nft' is not installed", next=["apt-get install nftables"])
        found: list[Any] = []
        for family, name in tables:
            text = self._run([program, "-j", "list", "table", family, name], "")
            try:
                found += [item for item in json.loads(text)["nftables"] if "metainfo" not in item]
            except (ValueError, KeyError, TypeError) as error:
                raise FirewallError("nft does not speak JSON as we know it", evidence=text[:200]) from error
        return {"nftables": found}

    def load_bridge_filter(self) -> None:
        """Have the kernel load br_netfilter, without the rights that modprobe takes: the match `physdev` asks
        for it when the first rule with it is checked (physdev_mt_check() in net/netfilter/xt_physdev.c, since
        Linux 5.0). The rule does nothing, and stays in the namespace where this is called: use one to be thrown
        away. Raises FirewallError, ToolMissing."""
        self._run([self._chosen().restore, "--noflush"], _PHYSDEV)

    # --- which variant ----------------------------------------------------------------------------

    def _chosen(self) -> Tools:
        if self._tools is None:
            self._tools = self._choose(_installed(self._family))
        return self._tools

    def _choose(self, installed: Sequence[Tools]) -> Tools:
        fitting = [tools for tools in installed if self._wish in ("auto", tools.flavour)]
        if not fitting:
            raise _missing(self._wish)
        return fitting[0] if len(fitting) == 1 else self._settled(fitting)

    def _settled(self, installed: Sequence[Tools]) -> Tools:
        """Of several variants, the one where rules are."""
        readable = _readable(installed, self._saved)
        for counts in (_foreign_rules, _our_chains):
            holding = [tools for tools, rules in readable if counts(rules)]
            if len(holding) == 1:
                return holding[0]
        usable = [tools for tools, _ in readable]
        default = _flavour_of(_which(_name(self._family)))
        return next((tools for tools in usable if tools.flavour == default), usable[0])

    def _clean_other(self) -> None:
        mine = self._chosen().flavour
        others = [tools for tools in _installed(self._family) if tools.flavour != mine]
        self._clean(_attempted(others, self._saved)[0])
        self._other_is_clean = True

    def _clean(self, found: Found) -> None:
        for tools, rules in found:
            leftovers = compare.pending(Rendered(instance=self._instance), rules, {})
            if leftovers:
                self._restore(tools, leftovers, rules)

    # --- running programs -------------------------------------------------------------------------

    def _saved(self, tools: Tools) -> RuleSet:
        return parse(self._run([tools.save, "-c"], ""), tools.flavour)

    def _saved_somehow(self, tools: Tools) -> RuleSet:
        """Table by table where they cannot be listed."""
        try:
            return self._saved(tools)
        except NotPermitted:
            if tools.flavour != "legacy" or not _privileged():
                raise
        return parse("".join(self._saved_table(tools, table) for table in TABLE_ORDER), tools.flavour)

    def _saved_table(self, tools: Tools, table: str) -> str:
        try:
            return self._run([tools.save, "-c", "-t", table], "")
        except FirewallError as error:
            if error.transient:
                raise
            return ""  # the kernel has no such table

    def _restore(self, tools: Tools, changes: Sequence[RuleChange], have: RuleSet) -> int:
        """Answers the number of commits. If one fails, those before it were made."""
        self._known = None
        text = restore_text(changes, have.chains)
        wait = ["--wait", str(LOCK_WAIT_S)] if tools.flavour == "legacy" else []
        self._run([tools.restore, "--noflush", "--counters", *wait], text)
        tables = commits(text)
        self.restores.update(tables)
        self.bytes_written += len(text.encode())
        return len(tables)

    def _foreseen(self, changes: Sequence[RuleChange], have: RuleSet, commits: int) -> RuleSet | None:
        """The rules as they must be now; None if somebody else may have written too, or if it is unknown how
        these rules are printed."""
        if not are_known(changes, self._spelt):
            return None
        now = self.generation()
        if not nobody_else(self._chosen().flavour, have.generation, now, commits, entries(changes)):
            return None
        after = self._known = replace(written(have, changes), generation=now)
        with self._comparing:
            self._compare.written(changes, have, after)
        return after

    def _learn(self, changes: Sequence[RuleChange]) -> RuleSet:
        """Read back what was just written and remember where it is printed in other words."""
        now = self.observe()
        for change in changes:
            rules = now.chains.get((change.table, change.chain), ())
            whole = is_any_instances(change.chain)
            ours = tuple(r.text for r in rules) if whole else compare.hooks_in(rules, self._instance)
            with self._comparing:
                self._remembered.update(compare.learn(change.want or (), ours))
            if change.want == ours:
                self._spelt |= forms(ours)
        return now

    def _run(self, command: Sequence[str], text: str) -> str:
        program = Path(command[0]).name
        deadline_s = self._deadline_s + LINE_S * text.count("\n")
        try:
            done = subprocess.run(  # one program, fixed arguments, its input on stdin
                command,
                input=text,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=deadline_s,
                env={**os.environ, "LC_ALL": "C"},
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise FirewallBusy(f"{program} did not answer within {deadline_s:g} s") from error
        except OSError as error:
            raise _missing(program, str(error)) from error
        if done.returncode:
            raise refusal(program, text, done.stderr, privileged=_privileged())
        return done.stdout


def _name(family: int) -> str:
    return "iptables" if family == 4 else "ip6tables"


def _installed(family: int) -> list[Tools]:
    """The variants that this machine has programs for."""
    name = _name(family)
    found = [tools for flavour in FLAVOURS if (tools := _tools(flavour, f"{name}-{flavour}"))]
    plain = _flavour_of(_which(name)) if not found else None
    tools = _tools(plain, name) if plain else None
    return [tools] if tools else found


def _tools(flavour: Flavour, name: str) -> Tools | None:
    save, restore = _which(f"{name}-save"), _which(f"{name}-restore")
    return Tools(flavour, save, restore) if save and restore else None


def _which(name: str) -> str | None:
    """Like the shell, but also where a user's PATH does not lead."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")


def _flavour_of(program: str | None) -> Flavour | None:
    """Which variant a program called plainly ``iptables`` is; None for none, or one older than 1.8."""
    if program is None:
        return None
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    words: dict[str, Flavour] = {"(nf_tables)": "nft", "(legacy)": "legacy"}
    return next((flavour for word, flavour in words.items() if word in done.stdout), None)


def _missing(what: str, evidence: str = "") -> ToolMissing:
    wanted = "iptables 1.8 or newer" if what == "auto" else f"the program or variant {what}"
    install = ("apt-get install iptables",)
    return ToolMissing(f"{wanted} is not installed", evidence=evidence, next=install)


def _readable(installed: Sequence[Tools], read: Callable[[Tools], RuleSet]) -> Found:
    """The variants that can be read, with the rules in each; raises the last error if there is none."""
    found, trouble = _attempted(installed, read)
    if trouble is not None and not found:
        raise trouble
    return found


def _attempted(
    installed: Sequence[Tools], read: Callable[[Tools], RuleSet]
) -> tuple[Found, OverlayError | None]:
    """Read each. One that fails holds nothing, as a rule: the kernel may know the other variant only."""
    found: Found = []
    trouble: OverlayError | None = None
    for tools in installed:
        try:
            found.append((tools, read(tools)))
        except OverlayError as error:
            trouble = error
    return found, trouble


def _foreign_rules(rules: RuleSet) -> int:
    """How many rules of other programs there are."""
    builtin_or_foreign = [lines for (_, chain), lines in rules.chains.items() if not is_ours(chain)]
    return sum(len(lines) - len(compare.hooks_in(lines)) for lines in builtin_or_foreign)


def _our_chains(rules: RuleSet) -> int:
    return sum(is_ours(chain) for _, chain in rules.chains)


def _privileged() -> bool:
    """Whether this process holds both capabilities, by /proc/self/status (proc(5), CapEff)."""
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return int(effective, 16) & _CAPABILITIES == _CAPABILITIES
