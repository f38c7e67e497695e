"""`overlaynet logs [HOST]`: what agents said."""

from __future__ import annotations

import selectors
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from subprocess import Popen

import click

from overlaynet.cli import names
from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cluster.cluster import Cluster, Host, each_host, pick_hosts
from overlaynet.errors import OverlayError
from overlaynet.lab.session import end

_READ_BYTES = 1 << 16


@click.command()
@click.argument("host", required=False, shell_complete=names.hosts)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True, help="How many last lines."
)
@shared
@pass_app
def logs(app: App, host: str | None, follow: bool, lines: int) -> None:
    """What a host's agent said; without HOST, every agent, each line with its host."""
    hosts = _told(app, pick_hosts(app.cluster, host), lines)
    last = [{"host": name, "line": line} for name, said in hosts.items() for line in said]
    prefix: Callable[[str, str], str] = (
        (lambda _, line: line) if host else (lambda name, line: f"{name}  {line}")
    )
    if last or not follow:
        app.result(
            "Logs",
            {"items": last},
            lambda: "\n".join(prefix(item["host"], item["line"]) for item in last),
            list(hosts),
        )
    if follow:
        for name, line in _follow(app.cluster, list(hosts)):
            app.echo(prefix(name, line))


def _told(app: App, hosts: Sequence[Host], lines: int) -> dict[str, Sequence[str]]:
    """The last lines by host. One that cannot be asked is warned of; if there is no other, that is an error."""
    found = each_host(hosts, lambda host: app.cluster.log(host.name, lines))
    errors = [answer for answer in found.values() if isinstance(answer, OverlayError)]
    if errors and len(errors) == len(hosts):
        raise errors[0]
    for error in errors:
        app.warn(error)
    return {name: said for name, said in found.items() if not isinstance(said, OverlayError)}


def _follow(cluster: Cluster, hosts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """New lines as they come, until interrupted or until nobody says anything any more."""
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for host in hosts:
            process = cluster.follow(host)
            stack.callback(end, process)
            assert process.stdout is not None
            selector.register(process.stdout, selectors.EVENT_READ, _Said(host, process))
        while selector.get_map():
            for key, _ in selector.select():
                said: _Said = key.data
                more = said.read()
                if more is None:
                    selector.unregister(key.fileobj)
                yield from ((said.host, line) for line in more or ())


class _Said:
    """What one process says, in lines."""

    def __init__(self, host: str, process: Popen[bytes]) -> None:
        self.host = host
        self._process = process
        self._rest = b""

    def read(self) -> list[str] | None:
        """The lines that are whole by now; None once there will be no more."""
        assert self._process.stdout is not None
        octets = self._process.stdout.read1(_READ_BYTES)  # type: ignore[attr-defined] # a BufferedReader
        if not octets:
            return None
        *lines, self._rest = (self._rest + octets).split(b"\n")
        return [line.decode(errors="replace") for line in lines]
