"""`overlaynet completion bash|zsh|fish`: the script that lets a shell ask us what could come next.

The script hands over the line up to the cursor in COMP_LINE and runs the program that is being typed with
_OVERLAYNET_COMPLETE set; the answer is a line for each word: ``plain``, ``file`` or ``dir``, the word, and its
help, with tabs between. click finds out which word is meant; the verbs come from `cli/tree.py`, names from
`cli/names.py`. An answer is never an error and never a question: a shell has no place to show it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import PurePath

import click
from click.shell_completion import CompletionItem, ShellComplete, split_arg_string

from overlaynet.cli import names, tree
from overlaynet.cli.app import App, pass_app, shared

VARIABLE = "_OVERLAYNET_COMPLETE"
PROGRAM = "overlaynet"

_BASH = """\
# overlaynet completion bash
_overlaynet() {
    local kind word help
    COMPREPLY=()
    while IFS=$'\\t' read -r kind word help; do
        case $kind in
        file) compopt -o default ;;
        dir) compopt -o dirnames ;;
        plain) COMPREPLY+=("$word") ;;
        esac
    done < <(COMP_LINE=${COMP_LINE:0:COMP_POINT} COMP_WORDBREAKS=$COMP_WORDBREAKS \\
        _OVERLAYNET_COMPLETE=bash "${1/#\\~/$HOME}" 2>/dev/null)
}
complete -o nosort -F _overlaynet overlaynet
"""

_ZSH = """\
#compdef overlaynet
# overlaynet completion zsh
_overlaynet() {
    local kind word help
    local -a found
    while IFS=$'\\t' read -r kind word help; do
        case $kind in
        file) _files && return ;;
        dir) _files -/ && return ;;
        plain) found+=("${word//:/\\\\:}${help:+:$help}") ;;
        esac
    done < <(COMP_LINE="${(j: :)words[1,CURRENT-1]} $PREFIX" _OVERLAYNET_COMPLETE=zsh ${~words[1]} 2>/dev/null)
    _describe -V overlaynet found
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _overlaynet "$@"
else
    compdef _overlaynet overlaynet
fi
"""

_FISH = """\
# overlaynet completion fish
function __overlaynet_complete
    set -lx COMP_LINE (commandline -cp)
    set -lx _OVERLAYNET_COMPLETE fish
    set -l program (string match -r '^(?:.*/)?overlaynet$' -- (commandline -opc))[1]
    for answer in ($program 2>/dev/null)
        set -l parts (string split -m 1 \\t -- $answer)
        switch $parts[1]
            case file
                __fish_complete_path (commandline -ct)
            case dir
                __fish_complete_directories (commandline -ct)
            case plain
                echo $parts[2]
        end
    end
end
complete --no-files --keep-order --command overlaynet --arguments '(__overlaynet_complete)'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


@click.command()
@click.argument("kind", metavar="bash|zsh|fish", type=click.Choice(list(SCRIPTS)))
@shared
@pass_app
def completion(app: App, kind: str) -> None:
    """Print the script that completes verbs, options and names of labs, hosts, containers, services.

    \b
      bash  overlaynet completion bash > ~/.local/share/bash-completion/completions/overlaynet
      zsh   overlaynet completion zsh > a folder of $fpath/_overlaynet
      fish  overlaynet completion fish > ~/.config/fish/completions/overlaynet.fish

    For this session alone, in bash and zsh, and in fish:

    \b
      source <(overlaynet completion bash)
      overlaynet completion fish | source
    """
    script = SCRIPTS[kind]
    app.result("Completion", {"shell": kind, "script": script}, script.rstrip("\n"), [kind])


class Completer(ShellComplete):
    """click's search for the word that is meant, over the verbs as data."""

    def __init__(self, app: App) -> None:
        rows = names.lines().get("commands")
        super().__init__(tree.read(PROGRAM, rows) if rows else click.Group(), {"obj": app}, PROGRAM, VARIABLE)

    def words(self, line: str) -> list[CompletionItem[str]]:
        """What could stand where `line` ends, each as the whole of its word."""
        given = split_arg_string(line)
        at = next((n for n, word in enumerate(given) if PurePath(word).name == PROGRAM), 0)
        rest = given[at + 1 :]
        incomplete = rest.pop() if rest and not line[-1:].isspace() else ""
        return self.following(rest, incomplete)

    def following(self, given: Sequence[str], incomplete: str) -> list[CompletionItem[str]]:
        """The same of a line that is taken apart, behind the program's name."""
        found = self.get_completions(list(given), incomplete)
        option, equals, _ = incomplete.partition("=")
        if equals and option.startswith("-"):
            return [CompletionItem(f"{option}={i.value}", type=i.type, help=i.help) for i in found]
        return found


def answer(shell: str) -> int:
    """What the script of a shell asks for, on standard output. Never fails."""
    with suppress(Exception):
        line = os.environ.get("COMP_LINE", "")
        breaks = os.environ.get("COMP_WORDBREAKS", "") if shell == "bash" else ""
        for item in Completer(App()).words(line):
            help = " ".join((item.help or "").split())
            click.echo(f"{item.type}\t{_behind(line, item.value, breaks)}\t{help}")
    return 0


def _behind(line: str, word: str, breaks: str) -> str:
    """bash replaces only what follows the last of the signs that break words, a colon above all."""
    typed = (split_arg_string(line) or [""])[-1]
    at = max((typed.rfind(sign) for sign in ":=" if sign in breaks), default=-1)
    return word.removeprefix(typed[: at + 1])
