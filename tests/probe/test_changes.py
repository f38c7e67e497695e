"""Who asks this probe: found where sudo has taken it from the probe's own environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.fake

PROBE = f'env -u SSH_CONNECTION {sys.executable} -m overlaynet.probe; exit "$?"'
"""By a shell that stays its parent, as sudo does."""


def caller(connection: str) -> Any:
    done = subprocess.run(
        ["sh", "-c", PROBE],
        input=b'{"op": "caller"}\n',
        capture_output=True,
        env={**os.environ, "SSH_CONNECTION": connection},
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("connection", "client", "address"),
    [
        ("10.0.2.2 40022 10.0.2.15 22", "10.0.2.2", "10.0.2.15"),
        ("fe80::1%eth0 40022 fe80::2%eth0 22", "fe80::1", "fe80::2"),
        ("UNKNOWN 65535 UNKNOWN 65535", None, None),
    ],
)
def test_caller_is_found_with_a_parent(connection: str, client: str | None, address: str | None) -> None:
    found = caller(connection)
    assert (found["known"], found["client"], found["address"]) == (True, client, address)
