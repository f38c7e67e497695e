"""`overlaynet version`."""

from __future__ import annotations

import click

from overlaynet import __version__
from overlaynet.cli.app import App, pass_app, shared


@click.command()
@shared
@pass_app
def version(app: App) -> None:
    """Print the version."""
    app.result("Version", {"version": __version__}, f"overlaynet {__version__}", [__version__])
