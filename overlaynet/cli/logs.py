"""`overlaynet logs [HOST]`: what agents said."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cluster.cluster import Host, pick_hosts, readable
from overlaynet.errors import NotFound

POLL_S = 0.2


@click.command()
@click.argument("host", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True, help="How many last lines."
)
@shared
@pass_app
def logs(app: App, host: str | None, follow: bool, lines: int) -> None:
    """What a host's agent said; without HOST, every agent, each line with its host."""
    hosts = pick_hosts(app.cluster, host)
    files = [(h.name, _file(h)) for h in hosts]
    last = [{"host": name, "line": line} for name, file in files for line in _tail(file, lines)]
    prefix: Callable[[str, str], str] = (
        (lambda _, line: line) if host else (lambda name, line: f"{name}  {line}")
    )
    if last or not follow:
        app.result(
            "Logs",
            {"items": last},
            lambda: "\n".join(prefix(item["host"], item["line"]) for item in last),
            [h.name for h in hosts],
        )
    if follow:
        for name, line in _follow(files):
            app.echo(prefix(name, line))


def _file(host: Host) -> Path:
    if host.log is None or not host.log.exists():
        raise NotFound(
            f"there is no log of {host.name}'s agent",
            evidence=f"looked for {host.log}" if host.log else "its agent logs to the system's journal",
            next=["journalctl -u overlaynet-agent"] if host.log is None else ["overlaynet up"],
        )
    return readable(host.log)


def _tail(file: Path, count: int) -> list[str]:
    with file.open(encoding="utf-8", errors="replace") as stream:
        return [line.rstrip("\n") for line in deque(stream, maxlen=count)]


def _follow(files: Sequence[tuple[str, Path]]) -> Iterator[tuple[str, str]]:
    """New lines as they come, until interrupted."""
    streams = [(name, file.open(encoding="utf-8", errors="replace")) for name, file in files]
    for _, stream in streams:
        stream.seek(0, 2)
    while True:
        for name, stream in streams:
            yield from ((name, line.rstrip("\n")) for line in stream)
        time.sleep(POLL_S)
