"""`python -m overlaynet.probe`: one job in, one document out, or a session of many.

A job is one line of JSON on standard input with a member `op`: one of `operations`, or ``capture`` or
``stream``, which last as long as their input. The answer is the last line of standard output; a failure is an
Error document there, and the exit code is that of the error. A ``session`` has no answer of its own: each
further line is a job; nor has ``follow``, which shows what the agent says.

`overlaynet-probe enter NETNS -- COMMAND…` becomes a command in a network namespace, ``-`` for this one. So a
machine that lets somebody run this one program by sudo(8) lets them do all there is to do, and it is as good as
root.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from overlaynet.errors import EnvironmentProblem, OverlayError
from overlaynet.probe import operations
from overlaynet.probe.job import answer_line, read_job


def main() -> int:
    """Do the job on standard input, or become a command; the exit code."""
    if sys.argv[1:2] == ["enter"]:
        from overlaynet.probe import enter

        return enter.main(sys.argv[2:])
    try:
        job = read_job(sys.stdin.buffer.readline())
        if job.get("op") == "session":
            from overlaynet.probe import session

            session.run(sys.stdin.buffer, sys.stdout.buffer)
            return 0
        if job.get("op") == "follow":
            from overlaynet.probe import log

            log.follow(sys.stdin.fileno())
            return 0
        answer, code = _do(job), 0
    except OverlayError as error:
        answer, code = {"kind": "Error", "error": error.as_json()}, error.exit_code
    except KeyboardInterrupt:
        return 130
    sys.stdout.buffer.write(answer_line(answer))
    sys.stdout.buffer.flush()
    return code


def _do(job: Mapping[str, Any]) -> dict[str, Any]:
    try:
        match job.get("op"):
            case "capture":
                from overlaynet.probe import capture

                return capture.run(job, sys.stdin.fileno())
            case "stream":
                from overlaynet.probe import stream

                return stream.run(job, sys.stdin.fileno(), sys.stdout.buffer)
            case _:
                return operations.do(job)
    except OSError as error:
        raise EnvironmentProblem("the probe could not do its job", evidence=str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
