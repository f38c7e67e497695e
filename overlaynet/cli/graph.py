"""`overlaynet graph`: what is connected to what, drawn from the kernels' own state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import click

from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cli.pictures import write_file
from overlaynet.cli.serving import behind
from overlaynet.cluster.cluster import Cluster
from overlaynet.core.view import View
from overlaynet.errors import UsageError
from overlaynet.proof.sessions import Sessions
from overlaynet.proof.world import look, places_for, read_records
from overlaynet.trace.render.graph import graph_mermaid, graph_text
from overlaynet.trace.render.graphsvg import graph_html, graph_svg
from overlaynet.trace.topology import Backend, Topology, topology, topology_json

INCONCLUSIVE = 4
STDOUT = Path("-")
_FORMS: Mapping[str, Callable[[Topology], str]] = {
    "text": lambda found: click.unstyle(graph_text(found)),
    "svg": graph_svg,
    "html": graph_html,
    "mermaid": graph_mermaid,
}
_WRITE_HELP = "Write it there; - is standard output."
_BY_SUFFIX = {".txt": "text", ".svg": "svg", ".html": "html", ".md": "mermaid"}


@click.command()
@click.option("-f", "--form", type=click.Choice(list(_FORMS)), help="Else as FILE's name ends, or text.")
@click.option(
    "-w",
    "--write",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write it there; - is standard output.",
)
@shared
@pass_app
def graph(app: App, form: str | None, file: Path | None) -> int:
    """Draw the live topology: hosts, bridges, containers, tunnels, the underlay, services.

    Everything is read from the kernels; what etcd says should be otherwise is marked. Exit code 0, or 4 if
    some host or container could not be looked at.
    """
    chosen = form or _form_of(file)
    with app.progress("looking at every place"):
        found = _read(app.cluster)
    if file is None or file == STDOUT:
        _show(app, found, chosen)
    else:
        write_file(file, _FORMS[chosen](found).encode())
        app.note_written([file])
    return INCONCLUSIVE if found.unseen or any(host.error for host in found.hosts) else 0


def _form_of(file: Path | None) -> str:
    if file is None or file == STDOUT:
        return "text"
    if file.suffix not in _BY_SUFFIX:
        raise UsageError(
            f"{file} does not say what to draw", evidence=f"its name ends in one of: {', '.join(_BY_SUFFIX)}"
        )
    return _BY_SUFFIX[file.suffix]


def _read(cluster: Cluster) -> Topology:
    """Raises OverlayErrors where nothing at all can be told."""
    records = read_records(cluster)
    directory = records.directory
    with Sessions(cluster, directory.hosts) as sessions:
        names = [container.name for container in directory.containers]
        world = look(
            cluster, sessions, records, places_for(directory, names, [host.name for host in directory.hosts])
        )
    return topology(world, {} if directory.view is None else _backends(directory.view))


def _backends(view: View) -> dict[str, list[Backend]]:
    """What stands behind each service, as its agents would have it."""
    return {
        item.value.id: [
            Backend(
                one.endpoint.at.ip,
                one.endpoint.at.port,
                one.workload.name if one.workload else None,
                one.endpoint.host,
                one.endpoint.ready,
            )
            for one in behind(view, item)
        ]
        for item in view.services.values()
    }


def _show(app: App, found: Topology, form: str) -> None:
    def text() -> str:
        return graph_text(found, app.width) if form == "text" else _FORMS[form](found).rstrip("\n")

    app.result("Graph", topology_json(found), text, [host.name for host in found.hosts])
