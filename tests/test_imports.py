"""The rules about who may use what that import-linter cannot state.

import-linter sees modules, not attributes and not strings: a pure module could still read the
environment through `os`, and anything could start iptables. Here the syntax trees are read for that.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "overlaynet"
PURE = [PACKAGE / "core", *(PACKAGE / f"{name}.py" for name in ("addr", "events", "model", "state"))]
IMPURE = {"asyncio", "multiprocessing", "random", "secrets", "socket", "subprocess", "threading", "time"}
IMPURE_CALLS = {"open", "input", "print", "getenv", "environ", "now", "today", "utcnow"}
FIREWALL_TOOL = re.compile(r"(ip6?|eb|arp)tables(-\w+)*")


def modules(*places: Path) -> list[Path]:
    return sorted(f for p in places for f in (p.rglob("*.py") if p.is_dir() else [p]))


def nodes(source: str) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(source))


def impurities(source: str) -> set[str]:
    """Names in the source by which code reads a clock, chance, the environment or anything outside."""
    found = set()
    for node in nodes(source):
        match node:
            case ast.Import(names=names):
                found |= {alias.name.split(".")[0] for alias in names} & IMPURE
            case ast.ImportFrom(module=str(module), names=names):
                found |= {module.split(".")[0]} & IMPURE
                found |= {alias.name for alias in names if module == "os"} & IMPURE_CALLS
            case ast.Attribute(attr=name) | ast.Call(func=ast.Name(id=name)):
                found |= {name} & IMPURE_CALLS
    return found


def firewall_commands(source: str) -> set[str]:
    """iptables binaries that head an argument list."""
    return {
        first.value
        for node in nodes(source)
        if isinstance(node, ast.List | ast.Tuple) and node.elts
        for first in [node.elts[0]]
        if isinstance(first, ast.Constant)
        and isinstance(first.value, str)
        and FIREWALL_TOOL.fullmatch(first.value)
    }


@pytest.mark.parametrize(
    ("source", "found"),
    [
        pytest.param("import os\nos.environ['X']", {"environ"}, id="environment"),
        pytest.param("from os import getenv", {"getenv"}, id="environment-by-name"),
        pytest.param("def f():\n    import time", {"time"}, id="late-import"),
        pytest.param("from random import Random", {"random"}, id="chance"),
        pytest.param("datetime.now()", {"now"}, id="clock"),
        pytest.param("open('x')", {"open"}, id="file"),
        pytest.param("time_left_s = 3", set(), id="a-name-is-no-import"),
    ],
)
def test_impurity_is_recognised(source: str, found: set[str]) -> None:
    assert impurities(source) == found


def test_firewall_command_is_recognised() -> None:
    assert firewall_commands("run(['iptables-restore', '-w'])") == {"iptables-restore"}
    assert firewall_commands("text = 'iptables-restore'") == set()


@pytest.mark.parametrize("module", modules(*PURE), ids=lambda m: str(m.relative_to(PACKAGE)))
def test_pure_module_reads_nothing_from_outside(module: Path) -> None:
    assert impurities(module.read_text()) == set()


def test_only_firewall_iptables_runs_iptables() -> None:
    runners = {m for m in modules(PACKAGE, ROOT / "agent") if firewall_commands(m.read_text())}
    assert runners <= {PACKAGE / "firewall" / "iptables.py"}


def test_every_module_has_a_layer() -> None:
    """A module that no layer names would be free of the import rules."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c["layers"] for c in config["contracts"] if c["type"] == "layers")
    named = {name.strip() for layer in layers for name in layer.split("|")}
    there = {
        f"overlaynet.{p.stem}" for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert there - {"overlaynet.__init__"} <= named
