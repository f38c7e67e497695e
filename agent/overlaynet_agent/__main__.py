"""``overlaynet-agent``: the command.

Exit: 0 done (``plan``: nothing to do) · 1 ``plan`` found differences, or ``once``, ``hand-over`` or ``clean``
had failures · 2 usage or bad input · 3 environment (no privilege, tool, etcd).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from overlaynet import __version__
from overlaynet.config import load
from overlaynet.core import flannelflags
from overlaynet.errors import OverlayError
from overlaynet_agent import logs

FLANNEL = "flannel "
"""Before the name of a flag of flannel's, where parsed options are kept: none of ours holds a blank."""
ADOPT = "take a lease of flannel's with this host's public address as ours, though nothing here proves it"


def main(argv: list[str] | None = None) -> int:
    """Parse, run, and turn every OverlayError into words and an exit code."""
    options = _parser().parse_args(argv)
    try:
        return _run(options)
    except OverlayError as error:
        _complain(error, as_json=options.output == "json")
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="overlaynet-agent",
        description="Keeps one host's part of a container overlay: subnet, VXLAN device, routes, rules.",
        epilog="Every setting of agent.toml may also come as an environment variable, "
        "OVERLAYNET_SECTION_KEY, for example OVERLAYNET_ETCD_ENDPOINTS.",
    )
    parser.add_argument("--version", action="version", version=f"overlaynet-agent {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    helps = {
        "run": "run as a service until stopped; the dataplane stays",
        "once": "make this host right once, and end",
        "plan": "show what would be changed, and change nothing",
        "hand-over": "leave this host to flanneld, which then goes on without losing a packet",
        "clean": "remove everything of ours from this host, and nothing else",
    }
    for name, text in helps.items():
        # Abbreviations would make every new flag a change of what an old command line means.
        _add_options(commands.add_parser(name, help=text, description=text, allow_abbrev=False))
    return parser


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, metavar="FILE", help="agent.toml (/etc/overlaynet/agent.toml)")
    command.add_argument("--node-name", metavar="NAME")
    command.add_argument("--interface", metavar="NAME", help="the underlay interface")
    command.add_argument("--adopt-lease", action="store_const", const=True, help=ADOPT)
    command.add_argument("--log-level", choices=["debug", "info", "warning", "error"])
    command.add_argument("-o", "--output", choices=["text", "json"], default="text")
    flannel = command.add_argument_group("flannel's flags", "with one dash or two, as flanneld takes them")
    for flag in flannelflags.FLAGS:
        _add_flannel_flag(flannel, flag)


def _add_flannel_flag(group: argparse._ArgumentGroup, flag: str) -> None:
    """One of flannel's; those that mean nothing here are taken too, to be refused with an explanation."""
    setting = flannelflags.SAME.get(flag)
    text = f"{'.'.join(setting)} of agent.toml" if setting else argparse.SUPPRESS
    more: dict[str, Any] = {"action": "append"} if flag in flannelflags.REPEATABLE else {}
    if flag in flannelflags.SWITCHES:
        more = {"nargs": "?", "const": "true"}
    group.add_argument(f"-{flag}", f"--{flag}", dest=FLANNEL + flag, help=text, metavar="VALUE", **more)


def _flannel_settings(options: argparse.Namespace) -> dict[tuple[str, str], Any]:
    given = {flag: getattr(options, FLANNEL + flag) for flag in flannelflags.FLAGS}
    found = flannelflags.from_flags({flag: value for flag, value in given.items() if value is not None})
    return {setting: value for setting, (value, _) in found.items()}


def _run(options: argparse.Namespace) -> int:
    flags = {
        ("node", "name"): options.node_name,
        ("node", "interface"): options.interface,
        ("node", "adopt_lease"): options.adopt_lease,
        ("log", "level"): options.log_level,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    given.update(_flannel_settings(options))
    flannels = flannelflags.from_environment(os.environ)
    settings = partial(load, options.config, os.environ, given, flannels)
    config = settings()
    logs.configure(config.log)
    # Loading the adapters costs a third of a second: not before the settings are known to be good.
    from overlaynet_agent import commands, handover, wire

    config = wire.with_node_name(config)
    if options.command == "run":
        return commands.run(config, lambda: wire.with_node_name(settings()))
    work = {"once": commands.once, "plan": commands.show_plan, "clean": commands.clean}
    document = (work | {"hand-over": handover.hand_over})[options.command](config)
    _print(document, as_json=options.output == "json")
    if options.command == "plan":
        return 1 if document["count"] else 0
    return 1 if document["failures"] else 0


def _print(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
        return
    for change in document["changes"]:
        text = change["want"] if change["want"] is not None else change["have"]
        sys.stdout.write(f"{change['op']:8} {text}\n")
    for failure in document.get("failures", []):
        sys.stdout.write(f"failed   {failure['change']}: {failure['error']['message']}\n")
    sys.stdout.write(f"{document['count']} changes\n")
    for change in document.get("taking_over_adds", []):
        sys.stdout.write(f"taking over from flannel adds  {change['want']}\n")
    for line in document.get("next", []):
        sys.stdout.write(f"next     {line}\n")


def _complain(error: OverlayError, *, as_json: bool) -> None:
    if as_json:
        failure = {"schema": "overlaynet/v1", "kind": "Error", "lab": None, "error": error.as_json()}
        sys.stdout.write(json.dumps(failure) + "\n")
        return
    sys.stderr.write(f"error {error.code}: {error.message}\n")
    if error.evidence:
        sys.stderr.write(f"  evidence  {error.evidence}\n")
    for command in error.next:
        sys.stderr.write(f"  try       {command}\n")


if __name__ == "__main__":
    sys.exit(main())
