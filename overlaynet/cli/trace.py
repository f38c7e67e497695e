"""`overlaynet trace`: send a packet and prove where it went."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cli.asking import asked, question_options, refuse_question
from overlaynet.cli.pictures import PICTURES, check_pictures, write_picture
from overlaynet.trace.model import DELIVERED, DROPPED, INCONCLUSIVE, LOST, PROVED, REJECTED, WRONG_PATH, Trace

EXIT = {PROVED: 0, LOST: 1, WRONG_PATH: 1, INCONCLUSIVE: 4}
EXPECTED = click.Choice([DELIVERED, REJECTED, DROPPED])


@click.command()
@question_options
@click.option("--expect", type=EXPECTED, help="What has to become of it, to be proved: else, that it arrives.")
@click.option("--replay", type=click.Path(path_type=Path), metavar="FILE", help="Judge a saved trace again.")
@click.option("-v", "--verbose", is_flag=True, help="All headers, and every entry that decides.")
@click.option("-w", "--write", type=click.Path(path_type=Path), multiple=True, help=f"Write {PICTURES}.")
@shared
@pass_app
def trace(
    app: App,
    /,
    expect: str | None,
    replay: Path | None,
    verbose: bool,
    write: tuple[Path, ...],
    **words: Any,
) -> int:
    """Send a packet, capture it at every hop, and prove where it went.

    FROM is a container, a host or `outside`, and TO one of these, svc/NAME or an address. The path is
    predicted from live state, every point on it is captured, one packet is sent by FROM's own kernel, and what
    was seen is compared with what was predicted. Needs no agent. Exit code 0 proved, 1 lost or on a wrong path,
    4 inconclusive.
    """
    check_pictures(write, bundles=True)
    found, saved = _replayed(replay, expect, words) if replay else _traced(app, expect or DELIVERED, words)
    for file in write:
        write_picture(file, found, saved)
    _show(app, found, verbose=verbose)
    app.explain(lambda commands: commands.of_trace(found))
    app.note_written(write)
    return EXIT[found.verdict]


def _traced(app: App, expect: str, words: dict[str, Any]) -> tuple[Trace, bytes]:
    cluster = app.cluster  # machines are called while the rest is imported
    from overlaynet.proof import saved, sessions, tracing

    with app.progress("tracing") as say:
        import_s = _since_start()
        proof = tracing.trace(
            cluster,
            asked(**words),
            expect=expect,
            say=say,
            import_s=import_s,
            timeout_s=app.timeout(sessions.JOB_TIMEOUT_S),
        )
    return saved.keep(cluster, proof)


def _replayed(file: Path, expect: str | None, words: dict[str, Any]) -> tuple[Trace, bytes]:
    refuse_question(words, f"overlaynet trace --replay {file}")
    from overlaynet.proof import saved

    bundle = saved.open_bundle(file)
    return saved.replay(bundle, expect, str(file)), file.read_bytes()


def _since_start() -> float:
    """Seconds that this process has been running, most of which went into imports (proc_pid_stat(5))."""
    started_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / 100


def _show(app: App, found: Trace, *, verbose: bool) -> None:
    from overlaynet.trace.document import trace_json
    from overlaynet.trace.render.terminal import trace_text

    app.result(
        "Trace",
        trace_json(found),
        lambda: trace_text(found, app.width, verbose=verbose, command=app.command),
        [found.verdict],
    )
