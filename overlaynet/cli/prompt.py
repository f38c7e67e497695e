"""`overlaynet shell` without a name: the verbs at a prompt, with history and completion.

    quickstart> trace web-1 svc/web          a verb, without `overlaynet` in front
    quickstart> web-1 ping -c1 web-3         a place and a command: short for exec

Each line runs in a process of its own, about the lab that the prompt names: so a line ends as it would in a
shell, Ctrl-C ends it and not the prompt, and nothing of it is left for the next one (who asks about a user's
lab joins its namespaces, and would not come out again). A start costs a tenth of a second.

From a pipe it reads lines as sh does: no prompt, and on after a line that failed. The exit code is that of the
last line.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from glob import escape
from pathlib import Path
from typing import NoReturn

import click

from overlaynet.cli import names
from overlaynet.cli.app import App
from overlaynet.cli.completion import Completer
from overlaynet.errors import LabChoice, OverlayError, UsageError
from overlaynet.lab import marker
from overlaynet.lab.paths import Paths, of_user
from overlaynet.lab.state import ENVIRONMENT, choose, running_labs

LINES = 1000
"""That are kept as history."""
WORDS = ("help", "exit")
HELP = """\
A line is a verb of `overlaynet` (help VERB explains one), or a place and a command to run there:

  status                        how the lab is
  trace web-1 web-3             where a packet goes, and why
  web-1 ping -c1 web-3          a command in a place; a name becomes its address
  web-1                         a shell there
  help [VERB]   exit [CODE]     Tab completes, Ctrl-D ends
"""
_PROGRAM = (sys.executable, "-P", "-m", "overlaynet.cli.main")


class Leave(Exception):
    """`exit`, with its code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Prompt:
    """One session. `lab` is chosen once; empty while none is running."""

    def __init__(self, app: App, run: Callable[[Sequence[str], Mapping[str, str]], int]) -> None:
        paths = Paths.here()
        self.app = app
        self.lab = _chosen(app, paths) if app.lab or running_labs(paths) else ""
        self.last = 0
        self._run = run

    def line(self, text: str) -> None:
        """Do one line; `last` is its exit code. Raises Leave."""
        try:
            words = [] if text.lstrip().startswith("#") else shlex.split(text, comments=True)
            if words:
                self.last = self._do(words)
        except ValueError as error:
            self.last = self.app.fail(UsageError(f"the line cannot be understood: {str(error).lower()}"))
        except OverlayError as error:
            self.last = self.app.fail(error)

    def _do(self, words: list[str]) -> int:
        first, *rest = words[1:] if words[0] == "overlaynet" and len(words) > 1 else words
        if first in ("exit", "quit"):
            self._exit(rest)
        if first == "help":
            return self._overlaynet(*rest, "--help") if rest else self._help()
        if [first, *rest] == ["shell"]:
            raise UsageError("this is it already", next=["exit", "shell NAME"])
        if first in _verbs() or first.startswith("-"):
            return self._overlaynet(first, *rest)
        if first in self.places():
            return self._overlaynet("exec", first, "--", *rest) if rest else self._overlaynet("shell", first)
        near = get_close_matches(first, [*_verbs(), *self.places(), *WORDS])
        raise UsageError(f"there is no verb and no place {first!r}", next=[*near, "help"])

    def _exit(self, words: Sequence[str]) -> NoReturn:
        with suppress(ValueError, IndexError):
            raise Leave(int(words[0]) % 256)
        if words:
            raise UsageError(f"an exit code is a number, not {words[0]!r}")
        raise Leave(self.last)

    def _help(self) -> int:
        from overlaynet.cli.main import VERBS

        groups = dict.fromkeys(verb.group for verb in VERBS.values())
        lines = (
            f"  {group:<14}  {' '.join(n for n, v in VERBS.items() if v.group == group)}" for group in groups
        )
        self.app.echo("\n".join([HELP, *lines]))
        return 0

    def _overlaynet(self, *words: str) -> int:
        code = self._run([*self._options(), *words], {ENVIRONMENT: self.lab} if self.lab else {})
        if not self.lab and len(labs := running_labs(Paths.here())) == 1:
            self.lab = labs[0]  # the line has built it
        return code

    def _options(self) -> Iterator[str]:
        """Those of every command, as this one was given them."""
        if self.app.format != "table":
            yield from ("-o", self.app.format)
        if self.app.timeout_s is not None:
            yield from ("--timeout", str(self.app.timeout_s))
        given = {"-q": self.app.quiet, "--no-color": self.app.colour is False}
        yield from (
            flag for flag, is_given in {**given, "--explain-commands": self.app.explaining}.items() if is_given
        )

    def places(self) -> list[str]:
        """Wherever a command can be run, as the lab is now."""
        return list(names.all_places(self.lab))

    def words(self, line: str) -> list[str]:
        """What could stand where `line` ends, each whole, with a blank behind where the word is complete."""
        given, _, word = line.rpartition(" ")
        before = given.split()
        if before[:1] == ["overlaynet"]:
            before = before[1:]
        elif not before:
            return [f"{w} " for w in (*_verbs(), *self.places(), *WORDS) if w.startswith(word)]
        if before and before[0] in self.places() and before[0] not in _verbs():
            before = ["exec", *before]
        if before[:1] == ["help"]:
            return [f"{verb} " for verb in _verbs() if verb.startswith(word)]
        found = Completer(App(lab=self.lab or None)).following(before, word)
        if any(item.type != "plain" for item in found):
            return [f"{file}/" if file.is_dir() else f"{file} " for file in _files(word)]
        return [f"{item.value} " for item in found]


def _chosen(app: App, paths: Paths) -> str:
    try:
        return choose(app.lab, os.environ, paths)
    except LabChoice as error:
        error.next = tuple(line.replace("overlaynet status", "overlaynet shell") for line in error.next)
        raise


def _files(begun: str) -> Iterator[Path]:
    folder, _, name = begun.rpartition("/")
    return Path(f"{folder}/" if "/" in begun else "").glob(f"{escape(name)}*")


def _verbs() -> list[str]:
    from overlaynet.cli.main import VERBS

    return list(VERBS)


def session(app: App) -> int:
    """Read lines until there are no more; the exit code of the last. Raises LabChoice."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _lines(Prompt(app, _child_without_input), sys.stdin)
    prompt = Prompt(app, _child)
    app.note("help lists what can be typed, Tab completes, exit or Ctrl-D ends")
    return _lines(prompt, _typed(prompt, Readline(prompt, history_file())))


def _lines(prompt: Prompt, lines: Iterator[str]) -> int:
    try:
        for text in lines:
            prompt.line(text)
    except Leave as leave:
        return leave.code
    return prompt.last


def _typed(prompt: Prompt, readline: Readline) -> Iterator[str]:
    """What is typed at the prompt, until Ctrl-D. Ctrl-C begins a new line. Each line is history at once, for a
    terminal may be closed."""
    while True:
        try:
            text = input(f"{prompt.lab or 'overlaynet'}> ")
            readline.save()
            yield text
        except KeyboardInterrupt:
            click.echo()
        except EOFError:
            click.echo()
            return


def _child(words: Sequence[str], environ: Mapping[str, str], stdin: int | None = None) -> int:
    """Run one line; its exit code, or 128 and the signal that ended it. Ctrl-C is the line's, not ours."""
    before = signal.signal(
        signal.SIGINT, lambda *_: None
    )  # not SIG_IGN, which the line's process would inherit
    try:
        code = subprocess.Popen([*_PROGRAM, *words], env={**os.environ, **environ}, stdin=stdin).wait()
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code


def _child_without_input(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """The same of a line of a script, whose next lines are not its input."""
    sys.stdout.flush()
    return _child(words, environ, subprocess.DEVNULL)


# --- readline -------------------------------------------------------------------------------------


def history_file(name: str = "history") -> Path | None:
    """Where what was typed is kept: with the files of the user who types, root or not. None for root with
    somebody else's HOME, as sudo or su may leave it: what root made there would be in that user's way, and
    where links of that user lead nobody knows."""
    folder = of_user(os.environ).state_root
    is_own = os.geteuid() != 0 or marker.here() is not None or _is_roots(folder)
    return folder / name if is_own else None


def _is_roots(folder: Path) -> bool:
    return all(part.lstat().st_uid == 0 for part in (folder, *folder.parents) if os.path.lexists(part))


class Readline:
    """Completion, and history in a file that nobody else reads. Without a place for it there is none."""

    def __init__(self, prompt: Prompt, history: Path | None) -> None:
        import readline

        self._readline = readline
        self._prompt = prompt
        self._history = history
        self._found: list[str] = []
        readline.set_completer_delims(" \t\n")
        readline.set_completer(self._complete)
        readline.parse_and_bind("tab: complete")
        readline.set_history_length(LINES)
        if history is not None:
            with suppress(OSError):
                readline.read_history_file(history)

    def _complete(self, text: str, state: int) -> str | None:
        if state == 0:
            self._found = []
            with suppress(Exception):  # readline has no place for an error
                self._found = self._prompt.words(
                    self._readline.get_line_buffer()[: self._readline.get_endidx()]
                )
        return self._found[state] if state < len(self._found) else None

    def save(self) -> None:
        """Write the history, for its owner alone."""
        if self._history is None:
            return
        with suppress(OSError):
            self._history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._history, os.O_WRONLY | os.O_CREAT, 0o600))
            self._readline.write_history_file(self._history)
