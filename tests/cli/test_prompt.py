"""`overlaynet shell` without a name: what becomes of a line, what Tab offers, and the prompt on a terminal."""

from __future__ import annotations

import os
import pty
import select
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from overlaynet.cli.app import App
from overlaynet.cli.prompt import Leave, Prompt, history_file
from overlaynet.errors import LabChoice
from overlaynet.lab.paths import Paths
from overlaynet.lab.state import LabState, save
from overlaynet.lab.topology import Topology

pytestmark = pytest.mark.fake


def make_lab(paths: Paths, name: str) -> None:
    lab = paths.lab(name)
    for folder in (lab.run, lab.state):
        folder.mkdir(parents=True)
    save(lab, LabState(Topology.simple(name, hosts=2), "boot"))


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A machine with one lab, of two hosts and four containers."""
    paths = Paths(tmp_path / "run", tmp_path / "state")
    monkeypatch.setattr(Paths, "here", classmethod(lambda cls: paths))
    monkeypatch.delenv("OVERLAYNET_LAB", raising=False)
    make_lab(paths, "one")
    return paths


class Lines:
    """What a prompt runs instead of processes; each ends with the next of `codes`."""

    def __init__(self) -> None:
        self.ran: list[tuple[list[str], dict[str, str]]] = []
        self.codes = [0]

    def __call__(self, words, environ) -> int:
        self.ran.append((list(words), dict(environ)))
        return self.codes.pop() if len(self.codes) > 1 else self.codes[0]


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def prompt(paths: Paths, lines: Lines) -> Prompt:
    return Prompt(App(), lines)


# --- lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trace web-1 svc/web", ["trace", "web-1", "svc/web"]),
        ("overlaynet trace web-1 web-2", ["trace", "web-1", "web-2"]),
        ("web-1 ping -c1 web-3", ["exec", "web-1", "--", "ping", "-c1", "web-3"]),
        ("web-1 sh -c 'ip route | head'", ["exec", "web-1", "--", "sh", "-c", "ip route | head"]),
        ("outside ip route", ["exec", "outside", "--", "ip", "route"]),
        ("node-2", ["shell", "node-2"]),
        ("shell web-1", ["shell", "web-1"]),
        ("help trace", ["trace", "--help"]),
        ("--version", ["--version"]),
        ("status  # how is it?", ["status"]),
    ],
)
def test_line_becomes_a_command_about_the_prompts_lab(prompt: Prompt, lines: Lines, text: str, words) -> None:
    prompt.line(text)
    assert lines.ran == [(words, {"OVERLAYNET_LAB": "one"})]


@pytest.mark.parametrize("text", ["", "   ", "# it's a comment"])
def test_nothing_is_run_of_nothing(prompt: Prompt, lines: Lines, text: str) -> None:
    prompt.last = 4
    prompt.line(text)
    assert (lines.ran, prompt.last) == ([], 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dance", "no verb and no place 'dance'"),
        ("web-9 ls", "try  web-4"),
        ("shell", "already"),
        ("a 'b", "line"),
    ],
)
def test_line_that_makes_no_sense_is_told_and_the_prompt_goes_on(prompt, lines, capsys, text, said) -> None:
    prompt.line(text)
    assert (lines.ran, prompt.last) == ([], 2)
    assert said in capsys.readouterr().err


def test_exit_has_the_last_lines_code_or_its_own(prompt: Prompt, lines: Lines) -> None:
    lines.codes = [4]
    prompt.line("trace web-1 web-3")
    with pytest.raises(Leave) as left:
        prompt.line("exit")
    assert left.value.code == 4
    with pytest.raises(Leave) as left:
        prompt.line("exit 3")
    assert left.value.code == 3
    prompt.line("exit soon")
    assert prompt.last == 2


def test_options_of_every_command_are_those_of_every_line(paths: Paths, lines: Lines) -> None:
    app = App(format="json", quiet=True, colour=False, timeout_s=3, explaining=True)
    Prompt(app, lines).line("status")
    given = ["-o", "json", "--timeout", "3", "-q", "--no-color", "--explain-commands", "status"]
    assert lines.ran[0][0] == given


def test_one_of_several_labs_has_to_be_chosen_and_of_none_none(
    paths: Paths, lines: Lines, tmp_path: Path
) -> None:
    make_lab(paths, "two")
    with pytest.raises(LabChoice):
        Prompt(App(), lines)
    assert Prompt(App(lab="two"), lines).lab == "two"


def test_lab_that_a_line_builds_is_the_prompts(paths: Paths, lines: Lines) -> None:
    files = paths.lab("one")
    for file in (files.lab_json, files.durable_json):
        file.rename(file.with_suffix(".away"))
    prompt = Prompt(App(), lines)
    assert prompt.lab == ""

    def up(words, environ) -> int:
        assert environ == {}
        for file in (files.lab_json, files.durable_json):
            file.with_suffix(".away").rename(file)
        return 0

    prompt._run = up
    prompt.line("up")
    assert prompt.lab == "one"


# --- Tab ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tra", ["trace "]),
        ("we", ["web-1 ", "web-2 ", "web-3 ", "web-4 "]),
        ("ex", ["exec ", "explain ", "exit "]),
        ("trace web-1 n", ["node-1 ", "node-2 "]),
        ("overlaynet trace n", ["node-1 ", "node-2 "]),
        ("web-1 ping web-2", ["web-2 "]),
        ("help comp", ["completion "]),
        ("get routes node-", ["node-1 ", "node-2 "]),
        ("trace --tc", ["--tcp "]),
    ],
)
def test_tab_offers_verbs_places_and_what_the_verb_takes(
    prompt: Prompt, line: str, expected: list[str]
) -> None:
    assert prompt.words(line) == expected


def test_tab_offers_files_where_one_is_wanted(prompt: Prompt, tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").touch()
    (tmp_path / "labs").mkdir()
    assert sorted(prompt.words(f"up {tmp_path}/la")) == [f"{tmp_path}/lab.yaml ", f"{tmp_path}/labs/"]


# --- processes ------------------------------------------------------------------------------------


def environ_of(home: Path) -> dict[str, str]:
    """Whatever labs this machine has, none is meant."""
    own = {"HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "TERM": "dumb"}
    return {**os.environ, **own, "OVERLAYNET_LAB": "local"}


def test_script_goes_on_after_a_line_that_failed_and_ends_with_the_last_ones_code(tmp_path: Path) -> None:
    script = "version -o name\n# nothing\n\nget ghosts\nversion -o name\nget ghosts\n"
    done = subprocess.run(
        [sys.executable, "-m", "overlaynet.cli.main", "shell"],
        input=script,
        env=environ_of(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 2, "no prompt, and both versions"
    assert done.stderr.count("there is no kind 'ghosts'") == 2
    assert not (tmp_path / "state").exists(), "a script has no history"


class Terminal:
    """A prompt on a terminal of its own."""

    def __init__(self, home: Path) -> None:
        pid, self.fd = pty.fork()
        if pid == 0:
            os.execve(sys.executable, [sys.executable, "-m", "overlaynet.cli.main", "shell"], environ_of(home))
        self.pid = pid
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait_for(self, text: str, again: str = "") -> None:
        """Until that is shown. `again` is typed whenever nothing has come for a second."""
        deadline = time.monotonic() + 30
        while text not in self.text:
            assert time.monotonic() < deadline, self.text
            if not select.select([self.fd], [], [], 1.0)[0]:
                self.type(again)
                continue
            try:
                self.text += os.read(self.fd, 4096).decode(errors="replace")
            except OSError:
                break
        assert text in self.text, self.text
        self.text = self.text.partition(text)[2]


def test_terminal_has_completion_history_and_survives_ctrl_c(tmp_path: Path, monkeypatch) -> None:
    terminal = Terminal(tmp_path)
    terminal.wait_for("local> ")
    terminal.type("comple\t")
    terminal.wait_for("completion ")
    terminal.type("\x03")
    terminal.wait_for("> ", again="\x03")  # Python's readline.c hears of a signal between two keys alone
    terminal.type("version -o na\tx\x7f\r")
    terminal.wait_for("name")
    terminal.wait_for("> ")
    terminal.type("\x04")
    terminal.wait_for("\n")
    assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 0
    os.close(terminal.fd)
    history = tmp_path / "state" / "overlaynet" / "history"
    assert (history.read_text(), stat.S_IMODE(history.stat().st_mode)) == ("version -o name \n", 0o600)


def test_root_keeps_no_history_where_another_users_files_are(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_STATE_HOME", "/")
    assert history_file() == Path("/overlaynet/history")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    owner = os.stat_result((0o40755, 1, 1, 1, 4242, 4242, 0, 0, 0, 0))
    real = Path.lstat
    monkeypatch.setattr(Path, "lstat", lambda path: owner if path == tmp_path else real(path))
    assert history_file() is None


def test_a_program_that_was_started_without_standard_files_has_them(tmp_path: Path) -> None:
    line = 'exec "$0" -m overlaynet.cli.main shell <&- 2>&-'
    done = subprocess.run(
        ["/bin/sh", "-c", line, sys.executable], env=environ_of(tmp_path), stdout=subprocess.PIPE, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, b"")
