"""Documents of traces and predictions: every pinned member is there, whatever is known."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from helpers import pictures

from overlaynet.trace.document import explain_json, trace_json
from overlaynet.trace.model import CAUSES, Prediction, Trace

pytestmark = pytest.mark.unit

TRACE = {
    "id", "verdict", "from", "to", "protocol", "tag", "forward", "reply", "guards", "lost_between", "cause",
    "inconclusive_because", "capture", "timing", "bundle",
}  # fmt: skip
HOP = {
    "seq", "point", "host", "netns", "iface", "direction", "predicted", "seen", "t_us", "outer", "inner",
    "changes", "why",
}  # fmt: skip
HEADERS = {
    "src_mac", "dst_mac", "src", "dst", "protocol", "src_port", "dst_port", "ttl", "ip_id", "length", "df",
    "more_fragments", "offset", "tcp", "icmp",
}  # fmt: skip
CAUSE = {"kind", "point", "object", "expected", "found", "source", "certainty", "next"}
PATH = {"outcome", "answer", "arrived_at", "hops", "reply", "cause", "choices", "notes", "certain"}


@pytest.fixture(params=pictures.TRACES)
def trace(request: pytest.FixtureRequest) -> Trace:
    return pictures.TRACES[request.param]()


@pytest.fixture(params=pictures.PREDICTIONS)
def prediction(request: pytest.FixtureRequest) -> Prediction:
    return pictures.PREDICTIONS[request.param]()


def check_hops(hops: list[dict]) -> None:
    assert [hop["seq"] for hop in hops] == list(range(1, len(hops) + 1))
    for hop in hops:
        assert set(hop) >= HOP
        assert hop["point"] == f"{hop['place']}:{hop['iface']}"
        assert hop["direction"] in ("in", "out")
        assert set(hop["inner"]) == HEADERS
        assert hop["outer"] is None or set(hop["outer"]) == HEADERS
        assert all(set(change) == {"field", "from", "to", "reason"} for change in hop["changes"])
        assert all(set(why) >= {"object", "key", "source", "command"} for why in hop["why"])
        assert all(why["source"] is None or set(why["source"]) == {"kind", "name"} for why in hop["why"])


def test_a_trace_has_every_member(trace: Trace):
    document = json.loads(json.dumps(trace_json(trace)))
    assert set(document) >= TRACE
    assert document["verdict"] in ("proved", "lost", "wrong_path", "inconclusive")
    assert set(document["tag"]) == {"ip_id", "tcp_isn", "cookie"}
    assert set(document["capture"]) >= {"points", "drops"}
    assert set(document["timing"]) == {"import_s", "predict_s", "arm_s", "send_s", "judge_s", "total_s"}
    for way in ("forward", "reply", "guards"):
        check_hops(document[way])
    assert len(document["forward"]) == len(trace.forward)
    if document["cause"] is not None:
        assert set(document["cause"]) == CAUSE
        assert document["cause"]["kind"] in CAUSES


def test_a_prediction_has_every_member(prediction: Prediction):
    document = json.loads(json.dumps(explain_json(prediction)))
    assert set(document) >= {"question", "outcome", "paths", "guards", "unread", "hops"}
    assert document["outcome"] == "delivered"
    assert document["hops"] == document["paths"][0]["hops"]
    assert len(document["paths"]) == len(prediction.paths)
    for path in document["paths"]:
        assert set(path) >= PATH
        check_hops(path["hops"])
        check_hops(path["reply"]["hops"])


def test_values_are_those_of_the_trace():
    document = trace_json(pictures.virtual_ip())
    assert document["from"] == "web-1"
    assert document["to"] == "svc/web"
    third, wire = document["forward"][2], document["forward"][4]
    assert third["changes"][0] == {
        "field": "dst", "from": "10.112.0.10", "to": "10.244.2.2", "reason": "DNAT",
    }  # fmt: skip
    assert third["why"][0]["source"] == {"kind": "service", "name": "default/web"}
    assert third["why"][0]["packets"] == 1
    assert wire["outer"]["dst"] == "192.168.50.12"
    assert wire["outer"]["dst_port"] == 8472
    assert wire["inner"]["dst"] == "10.244.2.2"
    assert wire["vni"] == 1
    assert wire["inner"]["tcp"] == {"seq": pictures.ISN, "ack": 0, "flags": "S"}
    assert document["capture"]["points"] == 11
    assert document["capture"]["drops"] == 0


def test_where_it_was_lost_is_told_by_two_points():
    document = trace_json(pictures.wrong_fdb())
    assert document["lost_between"] == ["node-1:eth0", "node-2:eth0"]
    assert document["cause"]["point"] == "node-1:flannel.1"
    assert document["cause"]["next"] == ["overlaynet diff node-1", "overlaynet repair node-1"]


def test_drops_are_unknown_where_a_point_does_not_say():
    trace = pictures.vxlan()
    silent = replace(trace, taps=(*trace.taps[1:], trace.taps[0]._replace(dropped=None, closed=False)))
    capture = trace_json(silent)["capture"]
    assert capture["drops"] is None
    assert capture["points"] == len(trace.taps) - 1


def test_a_prediction_without_paths_leads_nowhere():
    document = explain_json(replace(pictures.explained(), paths=()))
    assert document["outcome"] == "lost"
    assert document["hops"] == []
