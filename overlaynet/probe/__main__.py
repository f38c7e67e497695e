"""`python -m overlaynet.probe`: one job in, one document out.

A job is one line of JSON on standard input with a member `op`: ``observe``, ``addresses``, ``connections``,
``ping`` or ``capture``. The answer is the last line of standard output; a failure is an Error document there,
and the exit code is that of the error. What an operation needs is imported when it is asked for, because
starting up is most of what a short ping costs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from overlaynet.errors import EnvironmentProblem, OverlayError, UsageError

SCHEMA = "overlaynet/v1"


def main() -> int:
    """Do the job on standard input; the exit code."""
    try:
        answer, code = _do(_read()), 0
    except OverlayError as error:
        answer, code = {"kind": "Error", "error": error.as_json()}, error.exit_code
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(json.dumps({"schema": SCHEMA, **answer}, separators=(",", ":")) + "\n")
    sys.stdout.flush()
    return code


def _read() -> Mapping[str, Any]:
    line = sys.stdin.buffer.readline()
    try:
        job = json.loads(line)
    except ValueError as error:
        raise UsageError("the job is not one line of JSON", evidence=str(error)) from None
    if not isinstance(job, dict):
        raise UsageError("the job is not a JSON object", evidence=repr(job)[:200])
    return job


def _do(job: Mapping[str, Any]) -> dict[str, Any]:
    try:
        match job.get("op"):
            case "ping":
                from overlaynet.probe import ping

                return ping.run(job)
            case "capture":
                from overlaynet.probe import capture

                return capture.run(job, sys.stdin.fileno())
            case "observe":
                from overlaynet.probe import observe

                return observe.run(job)
            case "addresses":
                from overlaynet.probe import observe

                return observe.addresses(job)
            case "connections":
                from overlaynet.probe import connections

                return connections.run(job)
            case other:
                known = "operations: observe, addresses, connections, ping, capture"
                raise UsageError(f"there is no operation {other!r}", evidence=known)
    except OSError as error:
        raise EnvironmentProblem("the probe could not do its job", evidence=str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
