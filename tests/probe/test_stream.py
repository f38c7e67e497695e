"""From when on a stream tells of frames."""

from __future__ import annotations

import io
import json

import pytest

from overlaynet.probe.stream import Teller
from overlaynet.probe.tap import Taken

pytestmark = pytest.mark.unit


def test_frames_are_told_behind_the_first_line_and_none_of_before_it() -> None:
    out = io.BytesIO()
    teller = Teller(out)
    assert teller.take(Taken(0, 1, "in", b"early", 5))
    teller.begin({"kind": "Armed"})
    assert teller.take(Taken(0, 2, "in", b"later", 5))
    armed, frame = map(json.loads, out.getvalue().splitlines())
    assert (armed["kind"], frame["kind"], frame["t_ns"]) == ("Armed", "Frame", 2)
