"""`overlaynet explain`: where a packet would go, by the state of every place on its way."""

from __future__ import annotations

from pathlib import Path as File
from typing import Any

import click

from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cli.asking import asked, question_options, refuse_question
from overlaynet.cli.pictures import PICTURES, check_pictures, write_picture
from overlaynet.trace.model import CERTAIN, DELIVERED, Path, Prediction

INCONCLUSIVE = 4


@click.command()
@question_options
@click.option("--from", "file", type=click.Path(path_type=File), help="Ask the state that this trace saved.")
@click.option("-v", "--verbose", is_flag=True, help="All headers, and every entry that decides.")
@click.option("-w", "--write", type=click.Path(path_type=File), multiple=True, help=f"Write {PICTURES}.")
@shared
@pass_app
def explain(app: App, /, file: File | None, verbose: bool, write: tuple[File, ...], **words: Any) -> int:
    """Predict a packet's path and say which entries decide it. Nothing is sent.

    FROM is a container, a host or `outside`, and TO one of these, svc/NAME or an address. The answer is by the
    state of routes, neighbours, FDB entries, rules and sysctls as they are now (or, with --from, as a trace has
    saved them).
    Exit code 0 if the packet would arrive by every way it may take, and its answer come back; 1 if not; 4 if
    something on the way could not be read, or the packet leaves for where nobody can look.
    """
    check_pictures(write, bundles=False)
    prediction = _predict(app, file, words)
    for picture in write:
        write_picture(picture, prediction)
    _show(app, prediction, verbose=verbose)
    app.explain(lambda commands: commands.deciding([hop for way in _ways(prediction) for hop in way.hops]))
    app.note_written(write)
    return _exit_code(prediction)


def _ways(prediction: Prediction) -> list[Path]:
    """Every way there, and every way back."""
    return [way for path in prediction.paths for way in (path, path.reply) if way is not None]


def _exit_code(prediction: Prediction) -> int:
    ways = _ways(prediction)
    if any(_is_sure(way) and way.outcome != DELIVERED for way in ways):
        return 1
    return 0 if ways and not prediction.unread and all(map(_is_sure, ways)) else INCONCLUSIVE


def _is_sure(path: Path) -> bool:
    return path.certain and not path.out_of_sight and (path.cause is None or path.cause.certainty == CERTAIN)


def _predict(app: App, file: File | None, words: dict[str, Any]) -> Prediction:
    if file is None:
        from overlaynet.proof.sessions import JOB_TIMEOUT_S
        from overlaynet.proof.tracing import explain as ask

        with app.progress("reading the state of every place"):
            return ask(app.cluster, asked(**words), app.timeout(JOB_TIMEOUT_S)).prediction
    refuse_question(words, f"overlaynet explain --from {file}")
    from overlaynet.proof.saved import open_bundle
    from overlaynet.trace.predict import predict

    bundle = open_bundle(file)
    return predict(bundle.world, bundle.question)


def _show(app: App, prediction: Prediction, *, verbose: bool) -> None:
    from overlaynet.trace.document import explain_json
    from overlaynet.trace.render.terminal import explain_text

    app.result(
        "Explanation",
        explain_json(prediction),
        lambda: explain_text(prediction, app.width, verbose=verbose, command=app.command),
        [prediction.outcome],
    )
