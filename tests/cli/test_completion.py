"""What Tab offers: the protocol of the scripts, the names of labs on the disk, and bash itself."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from overlaynet.cli import main as verbs
from overlaynet.cli import names, tree
from overlaynet.cli.app import App
from overlaynet.cli.completion import SCRIPTS, Completer, answer
from overlaynet.lab.paths import Paths
from overlaynet.lab.state import LabState, save
from overlaynet.lab.topology import Topology

pytestmark = pytest.mark.unit

WEB = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A machine with one lab, of two hosts, four containers and a service."""
    paths = Paths(tmp_path / "run", tmp_path / "state")
    monkeypatch.setattr(Paths, "here", classmethod(lambda cls: paths))
    monkeypatch.delenv("OVERLAYNET_LAB", raising=False)
    _lab(paths, "one", hosts=2)
    return paths


def _lab(paths: Paths, name: str, hosts: int) -> None:
    topology = Topology.simple(name, hosts)
    lab = paths.lab(name)
    for folder in (lab.run, lab.state):
        folder.mkdir(parents=True)
    save(lab, LabState(topology, "boot"))
    document = json.loads(lab.lab_json.read_text())
    document["topology"]["services"] = [WEB]
    lab.lab_json.write_text(json.dumps(document))


def words(line: str) -> list[str]:
    return [item.value for item in Completer(App()).words(f"overlaynet {line}")]


WEBS = ["web-1", "web-2", "web-3", "web-4"]
NODES = ["node-1", "node-2"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tra", ["trace"]),
        ("trace w", WEBS),
        ("trace web-1 svc/", ["svc/web"]),
        ("trace -l o", ["one"]),
        ("trace --lab=o", ["--lab=one"]),
        ("-l one trace web-1 n", NODES),
        ("exec n", NODES),
        ("exec web-1 ping web-", WEBS),
        ("exec web-1 ping -", []),
        ("shell e", ["etcd"]),
        ("capture node-1:", ["node-1:eth0", "node-1:cni0", "node-1:flannel.1"]),
        ("capture web-1 ic", ["icmp"]),
        ("get host", ["hosts"]),
        ("get arp", ["arp"]),
        ("get routes ", NODES),
        ("get svc ", ["web"]),
        ("get containers web-1", ["web-1"]),
        ("describe ", ["svc/web"]),
        ("service delete ", ["web"]),
        ("status -o j", ["json"]),
        ("break fd", ["fdb"]),
        ("break fdb node-1 n", NODES),
        ("break link ", [*NODES, *WEBS, "outside"]),
        ("break link web-1:", ["web-1:eth0"]),
        ("break mtu web-1 ", []),
        ("break rule node-1 sv", ["svc/web"]),
        ("network apply node-1 n", NODES),
        ("verify iso", ["isolation"]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("sta\tnonsense", []),
    ],
)
def test_words_that_fit_are_offered_and_no_others(paths: Paths, line: str, expected: list[str]) -> None:
    assert words(line) == expected


def test_options_of_the_verb_and_those_of_every_verb_are_offered(paths: Paths) -> None:
    assert {"--tcp", "--lab", "--explain-commands"} <= set(words("trace --"))


def test_files_are_the_shells_to_complete(paths: Paths) -> None:
    assert [item.type for item in Completer(App()).words("overlaynet up ")] == ["file"]


def test_faults_that_there_are_can_be_healed(paths: Paths) -> None:
    document = {
        "faults": [{"id": "f1", "kind": "etcd", "target": ""}, {"id": "f2", "kind": "link", "target": "x"}]
    }
    paths.lab("one").faults_json.write_text(json.dumps(document))
    assert words("heal ") == ["f1", "f2"]


def test_without_a_choice_names_of_all_labs_and_with_one_its_own(paths: Paths, monkeypatch) -> None:
    _lab(paths, "two", hosts=3)
    assert words("exec node-") == ["node-1", "node-2", "node-3"]
    assert words("exec -l one node-") == NODES
    monkeypatch.setenv("OVERLAYNET_LAB", "one")
    assert words("exec node-") == NODES


@pytest.mark.parametrize("content", ["", "[]", "{", '{"topology": {"hosts": 3}}'])
def test_lab_that_cannot_be_read_has_no_names(paths: Paths, content: str) -> None:
    for file in (paths.lab("one").lab_json, paths.lab("one").durable_json):
        file.write_text(content)
    assert words("exec ") == []
    assert words("down -l ") == ["one"]


@pytest.mark.parametrize("line", ["", "overlaynet", 'overlaynet trace "we', "overlaynet \0", "other"])
def test_no_line_makes_it_fail(paths: Paths, line: str, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COMP_LINE", line) if "\0" not in line else monkeypatch.delenv(
        "COMP_LINE", raising=False
    )
    assert answer("bash") == 0
    assert capsys.readouterr().err == ""


def test_bash_replaces_only_what_follows_a_colon(paths: Paths, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COMP_LINE", "overlaynet capture node-1:f")
    monkeypatch.setenv("COMP_WORDBREAKS", " :=")
    answer("bash")
    answer("zsh")
    said = [line.split("\t")[:2] for line in capsys.readouterr().out.splitlines()]
    assert said == [["plain", "flannel.1"], ["plain", "node-1:flannel.1"]]


def test_lines_are_those_of_the_verbs() -> None:
    """Else: python -m overlaynet.cli.manual"""
    rebuilt = tree.read("overlaynet", tree.written(verbs.cli))
    assert tree.written(rebuilt) == names.lines()["commands"]
    assert tree.written(verbs.cli) == names.lines()["commands"]


def test_answer_loads_neither_a_verb_nor_what_talks_to_kernels_and_stores() -> None:
    code = (
        "import sys; from overlaynet.cli.main import main; sys.argv = ['overlaynet']; main();"
        "print(*sorted(m for m in sys.modules"
        " if m.split('.')[0] in ('pyroute2', 'grpc', 'etcd3', 'yaml', 'rich')"
        " or m in ('overlaynet.cli.trace', 'overlaynet.cluster')))"
    )
    environ = {**os.environ, "_OVERLAYNET_COMPLETE": "bash", "COMP_LINE": "overlaynet trace --tc"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["plain\t--tcp\tBegin a TCP connection to this port.", "", ""]


# --- shells ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SCRIPTS)
def test_script_names_the_program_and_the_variable(run, shell: str) -> None:
    code, out, _ = run("completion", shell)
    assert (code, out) == (0, SCRIPTS[shell])
    assert f"_OVERLAYNET_COMPLETE={shell}" in out or f"_OVERLAYNET_COMPLETE {shell}" in out


@pytest.mark.parametrize("shell", SCRIPTS)
def test_script_is_one_that_its_shell_understands(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    done = subprocess.run([shell, "-n"], input=SCRIPTS[shell], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The command, where a shell looks for it."""
    file = tmp_path / "overlaynet"
    file.write_text(f"#!/bin/sh\nexec {sys.executable} -m overlaynet.cli.main\n")
    file.chmod(0o755)
    return file


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes_by_the_script_and_shows_the_help(program: Path, tmp_path: Path) -> None:
    environ = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(
        [
            "fish",
            "--no-config",
            "-c",
            "source -; complete -C 'overlaynet --quie'; complete -C 'overlaynet verify is'",
        ],
        input=SCRIPTS["fish"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "--quiet\tThe result alone, no progress.\nisolation\n", done.stderr


@pytest.fixture
def bash(program: Path):
    """bash with our script, completing a line."""

    def complete(line: str, point: int | None = None) -> list[str]:
        script = (
            f"source /dev/stdin; COMP_LINE=$1; COMP_POINT=$2; _overlaynet {program} 2>/dev/null;"
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        at = len(line) if point is None else point
        done = subprocess.run(
            ["bash", "--norc", "-c", script, "bash", line, str(at)],
            input=SCRIPTS["bash"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        return done.stdout.split()

    return complete


def test_bash_completes_by_the_script(bash) -> None:
    assert bash("overlaynet verify iso") == ["isolation"]


def test_bash_completes_where_the_cursor_is(bash) -> None:
    assert bash("overlaynet comp node-1", point=len("overlaynet comp")) == ["completion"]


def _cost(*argv: object, **environ: str) -> float:
    """Seconds of a processor, which other work on the machine adds little to."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, env={**os.environ, **environ}, stdout=subprocess.DEVNULL, check=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_answer_costs_next_to_nothing(program: Path) -> None:
    """Not four times what its interpreter and what reads its words cost on the same machine. It is not asked
    by bash, which does not wait for who answers it: what that costs would be counted only now and then."""

    def answered() -> float:
        return _cost(program, _OVERLAYNET_COMPLETE="bash", COMP_LINE="overlaynet stat")

    answered()  # whatever is compiled, is compiled
    costs = [(answered(), _cost(sys.executable, "-c", "import click")) for _ in range(3)]
    assert sum(ours for ours, _ in costs) < 4 * sum(least for _, least in costs)
