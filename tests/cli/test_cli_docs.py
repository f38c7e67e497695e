"""The sessions of docs/cli.md, typed; and so is what `--explain-commands` says of packets and of etcd."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.docs import DOCS
from helpers.lab import cleaned_up, lab_name, requires_lab
from helpers.transcripts import Typed, retype, sessions

from overlaynet.lab.paths import Paths

pytestmark = [pytest.mark.lab, requires_lab]


@pytest.fixture(scope="module")
def environ() -> Iterator[dict[str, str]]:
    """A terminal whose lab is the page's."""
    name = lab_name("keyboard")
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found = {**os.environ, "PATH": search, "OVERLAYNET_LAB": name, "NO_COLOR": "1"}
    with cleaned_up(name, Paths()):
        retype([Typed("overlaynet up --hosts 2 -q", ("…",))], Path.cwd(), found)
        yield found


def ask(environ: dict[str, str], *argv: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, env=environ, input=text, capture_output=True, text=True, timeout=60)


def explained(environ: dict[str, str], *words: str) -> list[tuple[str, str]]:
    """The places and command lines that a verb tells of."""
    done = ask(environ, "overlaynet", *words, "--explain-commands", "-q")
    assert done.returncode == 0, done
    found, place = [], ""
    for line in done.stderr.splitlines():
        if heading := re.match(r"# in (\S+) \(overlaynet shell \1\):", line):
            place = heading[1]
        elif not line.startswith("#"):
            found.append((place, line))
    return found


def type_at(environ: dict[str, str], place: str, *lines: str) -> subprocess.CompletedProcess[str]:
    """Each line in turn; the first that fails ends it."""
    return ask(environ, "overlaynet", "exec", place, "--", "sh", "-ec", "\n".join(lines))


def test_page_says_what_comes_back(environ, tmp_path):
    retype(sessions((DOCS / "cli.md").read_text("utf-8")), tmp_path, environ)


def test_commands_of_a_trace_show_what_decided_and_send_the_packet(environ):
    told = explained(environ, "trace", "web-1", "web-3")
    assert told[-1] == ("web-1", "ping -n -c 1 -s 8 10.244.2.2")
    assert {("web-1", "tcpdump -n -i eth0"), ("node-1", "tcpdump -n -i flannel.1")} <= set(told)
    said = ""
    for place in ("web-1", "node-1", "node-2", "web-3"):
        lines = [line for where, line in told if where == place and not line.startswith("tcpdump ")]
        done = type_at(environ, place, *(f'said=$({line}); test -n "$said"; echo "$said"' for line in lines))
        assert (done.returncode, done.stderr) == (0, ""), (place, lines)
        said += done.stdout
    assert "02:0a:f4:02:00:00 dst 192.168.50.12 self permanent" in said
    assert " 0% packet loss" in said


@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="needs tcpdump")
def test_captures_can_be_typed(environ, tmp_path):
    place, line = explained(environ, "capture", "node-1:flannel.1", "--for", "0.2")[0]
    log = tmp_path / "log"
    done = type_at(
        environ,
        place,
        f"{line} >{log} 2>&1 & capture=$!",
        f"for _ in $(seq 300); do ! grep -q ^listening {log} || break; sleep 0.1; done",
        'kill "$capture"; wait "$capture"',
    )
    said = log.read_text("utf-8")
    assert (done.returncode, "listening on flannel.1" in said) == (0, True), said
    assert "0 packets dropped by kernel" in said, "it listened until it was told to end"


@pytest.mark.skipif(shutil.which("etcdctl") is None, reason="needs etcdctl")
def test_what_is_told_of_a_service_makes_one_when_typed(environ):
    told = explained(environ, "service", "create", "typed", "--port", "80", "--selector", "app=web")
    puts = [line for line in told if " put " in line[1]]
    ask(environ, "overlaynet", "service", "delete", "typed")
    assert "typed" not in ask(environ, "overlaynet", "get", "services", "-o", "name").stdout
    assert [line.split()[2] for _, line in puts] == ["put", "put"]
    assert type_at(environ, "node-1", *(line for _, line in puts)).stdout == "OK\n" * 2
    assert "default/typed\n" in ask(environ, "overlaynet", "get", "services", "-o", "name").stdout
    gone = [line for _, line in explained(environ, "service", "delete", "typed") if " del " in line]
    assert type_at(environ, "node-1", *gone).stdout == "0\n" * 2, "they are gone already"
