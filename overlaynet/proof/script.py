"""The frame of a script that proves one claim: it runs, says what it proves, and ends with an exit code.

0  it is so
1  it is not, and this is how it is seen
2  the question makes no sense here (no second host, no service)
3  the environment (no privilege, no lab)
4  inconclusive: something was not watched all the time
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from inspect import getdoc
from types import ModuleType

from overlaynet.errors import OverlayError
from overlaynet.proof.network import Network
from overlaynet.proof.way import Inconclusive

NOT_SO, INCONCLUSIVE = 1, 4


def ok(text: str) -> None:
    """Say what has been proved just now."""
    sys.stdout.write(f"  ok  {text}\n")
    sys.stdout.flush()


def prove(claim: Callable[[Network], None]) -> None:
    """Run the claim against the lab that the command line names (-l), and exit.

    The claim's docstring is the sentence that is proved if it returns; it raises AssertionError (as claims
    about packets do) if it does not hold."""
    module = sys.modules[claim.__module__]
    lab = _parser(module).parse_args().lab
    sentence = (getdoc(claim) or claim.__name__).splitlines()[0]
    sys.exit(run(claim, lab, sentence))


def run(claim: Callable[[Network], None], lab: str | None, sentence: str) -> int:
    """The same without exiting: the exit code."""
    try:
        with Network.open(lab) as net:
            claim(net)
    except Inconclusive as error:
        sys.stdout.write(f"INCONCLUSIVE  {sentence}\n{error}\n")
        return INCONCLUSIVE
    except AssertionError as error:
        sys.stdout.write(f"NOT SO  {sentence}\n{error}\n")
        return NOT_SO
    except OverlayError as error:
        sys.stderr.write("\n".join([f"error {error.code}: {error}", *_details(error)]) + "\n")
        return error.exit_code
    sys.stdout.write(f"PROVED  {sentence}\n")
    return 0


def _details(error: OverlayError) -> list[str]:
    return [f"  {line}" for line in error.evidence.splitlines()] + [f"  try  {step}" for step in error.next]


def _parser(module: ModuleType) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-l", "--lab", help="which lab; else the only one that runs")
    return parser
