"""Traces on disk: the latest are kept as bundles beside their cluster, and any can be judged again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from overlaynet.cluster.cluster import Cluster
from overlaynet.errors import EnvironmentProblem, NotFound
from overlaynet.proof.tracing import Proof
from overlaynet.trace import bundle
from overlaynet.trace.bundle import Bundle
from overlaynet.trace.document import trace_json
from overlaynet.trace.join import join
from overlaynet.trace.judge import judge
from overlaynet.trace.model import DELIVERED, Trace
from overlaynet.trace.predict import predict

KEPT = 20
"""Bundles kept beside a cluster: some hundred kilobytes each at most."""


def bundled(proof: Proof) -> bytes:
    """A trace as a bundle."""
    found = proof.trace
    joined = join(found.question, proof.prediction, proof.evidence, proof.world.vxlan_port)
    file = BytesIO()
    bundle.write(
        file,
        Bundle(
            question=found.question,
            world=proof.world,
            evidence=proof.evidence,
            verdict=trace_json(found),
            comments=bundle.comments(found, joined),
        ),
    )
    return file.getvalue()


def keep(cluster: Cluster, proof: Proof) -> tuple[Trace, bytes]:
    """The trace with the name of its bundle, and the bundle. One that cannot be written is not kept."""
    directory = cluster.traces()
    file = directory / f"{proof.trace.id}{bundle.SUFFIX}"
    named = replace(proof, trace=replace(proof.trace, bundle=str(file)))
    octets = bundled(named)
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        file.write_bytes(octets)
    except OSError:
        return proof.trace, bundled(proof)
    for old in _too_old(directory):
        old.unlink(missing_ok=True)
    return named.trace, octets


def _too_old(directory: Path) -> Iterator[Path]:
    dated = []
    for file in directory.glob(f"*{bundle.SUFFIX}"):
        with suppress(FileNotFoundError):  # another trace has just removed it
            dated.append((file.stat().st_mtime_ns, file))
    yield from (file for _, file in sorted(dated)[:-KEPT])


def open_bundle(file: Path) -> Bundle:
    """Read a bundle. Raises NotFound, EnvironmentProblem, BundleInvalid."""
    try:
        with file.open("rb") as opened:
            return bundle.read(opened)
    except FileNotFoundError:
        raise NotFound(f"there is no file {file}", next=["overlaynet trace FROM TO"]) from None
    except OSError as error:
        raise EnvironmentProblem(f"{file} cannot be read", evidence=str(error)) from error


def replay(saved: Bundle, expect: str | None, name: str) -> Trace:
    """Judge a saved trace again, from nothing but what it holds; `expect` None: as it was expected then."""
    prediction = predict(saved.world, saved.question)
    found = judge(
        saved.world,
        prediction,
        saved.evidence,
        trace_id=str(saved.verdict.get("id") or ""),
        expect=expect or str(saved.verdict.get("expect") or DELIVERED),
        predict=predict,
    )
    return replace(found, bundle=name)
