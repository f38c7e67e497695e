"""The words of a question about a packet, shared by `explain` and `trace`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from overlaynet.cli import names
from overlaynet.errors import UsageError
from overlaynet.proof.question import Asked

F = TypeVar("F", bound=Callable[..., Any])

PORT = click.IntRange(1, 65_535)
_OPTIONS = (
    click.argument("source", metavar="FROM", required=False, shell_complete=names.senders),
    click.argument("target", metavar="TO", required=False, shell_complete=names.targets),
    click.option("--tcp", type=PORT, metavar="PORT", help="Begin a TCP connection to this port."),
    click.option("--udp", type=PORT, metavar="PORT", help="Send a UDP datagram to this port."),
    click.option("--icmp", is_flag=True, default=None, help="Send an ICMP echo request."),
    click.option("--sport", type=PORT, metavar="PORT", help="From this port; else from any free one."),
    click.option("--size", type=int, metavar="BYTES", help="Payload of UDP or ICMP, in bytes."),
    click.option("--df/--no-df", default=None, help="Forbid or allow fragments; else as Linux sends it."),
)


def question_options(command: F) -> F:
    """Add FROM, TO and what is to be sent."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def asked(
    source: str | None,
    target: str | None,
    tcp: int | None,
    udp: int | None,
    icmp: bool | None,
    sport: int | None,
    size: int | None,
    df: bool | None,
) -> Asked:
    """The question as typed. Raises UsageError."""
    if source is None or target is None:
        raise UsageError(
            "a question has two ends: who sends, and to whom",
            evidence="FROM is a container, a host or outside; TO also svc/NAME or an address",
            next=["overlaynet trace web-1 svc/web", "overlaynet get containers"],
        )
    chosen: list[tuple[str, int | None]] = [
        (name, port) for name, port in (("tcp", tcp), ("udp", udp)) if port is not None
    ]
    if icmp:
        chosen.append(("icmp", None))
    if len(chosen) > 1:
        raise UsageError(
            "a packet has one protocol",
            evidence=" and ".join(f"--{name}" for name, _ in chosen),
            next=[
                f"overlaynet trace {source} {target} --{name} {port or ''}".rstrip() for name, port in chosen
            ],
        )
    protocol, port = chosen[0] if chosen else (None, None)
    return Asked(source, target, protocol, port, sport, size or 0, df)


def refuse_question(words: Mapping[str, Any], instead: str) -> None:
    """What was saved has its question with it. Raises UsageError."""
    given = [name for name, value in words.items() if value is not None]
    if given:
        shown = {"source": "FROM", "target": "TO"}
        raise UsageError(
            "what was saved has its question with it, so none can be asked",
            evidence="asked as well: " + ", ".join(shown.get(name, f"--{name}") for name in given),
            next=[instead],
        )
