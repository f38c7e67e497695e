"""Who repairs my network?

An agent compares what should be with what is, and writes the difference, for as long as it lives and for what
is its own. At the start node-1 has none, and the one of node-2 was asked to leave an entry alone. The learner
finds out why nobody repairs what is broken, and sees to it that somebody does; then the check deletes one thing
after another.
"""

import time

from overlaynet.cluster.breaking import changing_faults
from overlaynet.lab.faultkinds import Request
from overlaynet.lessons import Board, Lesson, Prediction, Stage, last_seen
from overlaynet.proof import icmp

WAY = ["red:eth0", "node-1:cni0", "node-1:flannel.1", "node-1:eth0", "blue:eth0"]
DELETED = (
    ("route", "node-1", "node-2"),
    ("neigh", "node-1", "node-2"),
    ("fdb", "node-1", "node-2"),
    ("rule", "node-1", "filter", "OVL-FORWARD", "1"),
    ("forwarding", "node-1"),
    ("route", "node-2", "node-1"),
    ("neigh", "node-2", "node-1"),
    ("fdb", "node-2", "node-1"),
)
OF_DEVICE, OF_PEER = 3, 3
"""What goes with flannel.1: itself, its address and a setting; for each peer neighbour, FDB entry and route."""
WAIT_S = 0.3


def start(stage: Stage) -> None:
    stage.break_("agent", "node-1")
    stage.break_("route", "node-1", "node-2")
    stage.break_("fdb", "node-2", "node-1")


def check(stage: Stage, board: Board) -> None:
    with board.claim("red reaches blue"):
        _reaches(stage)
    with board.claim("each host has an agent that leaves alone nothing of its own"):
        for host in ("node-1", "node-2"):
            held = stage.agent(host, "/v1/status")["holds"]
            assert not held, f"{host}: {held[0]['kind']} {held[0]['key']}: {held[0]['reason']}"
    board.measured(
        "leak",
        theory=stage.net.underlay("node-1"),
        captured=_without_route(stage),
        because="the default route takes it to the underlay as it is, in no tunnel",
    )
    with board.claim(f"of {len(DELETED)} things that are deleted, each is put back"):
        for kind, *target in DELETED:
            assert _is_repaired(stage, kind, *target), f"nobody puts back: {kind} {' '.join(target)}"
        _reaches(stage)
    before = _writes(stage)
    with board.claim("flannel.1 of node-1 is deleted, and put back with all that was on it"):
        stage.run("node-1", "ip", "link", "delete", "flannel.1")
        stage.until(lambda: _has_device(stage) and _plan(stage) == 0, "flannel.1 is back")
        _reaches(stage)
    board.measured(
        "device",
        theory=OF_DEVICE + OF_PEER * (len(stage.lab.hosts) - 1),
        captured=_writes(stage) - before,
        because="the device, its address and rp_filter; and for its peer neighbour, FDB entry and route",
    )
    board.measured(
        "foreign",
        theory="stays",
        captured=_foreign_rule(stage),
        because="what an agent has not made it does not own, even where it does harm; it only tells of it",
    )
    before = _writes(stage)
    with board.claim("when nothing has drifted, a look at everything finds nothing"):
        changes = stage.lab.agent("node-1").post("/v1/repair", {})["changes"]
        assert changes == 0, f"it made {changes} changes"
    board.measured(
        "idle",
        theory=0,
        captured=_writes(stage) - before,
        because="an agent writes differences, and there was none",
    )


def _reaches(stage: Stage) -> None:
    """AssertionError unless a ping of red's reaches blue, and its answer red."""
    with stage.net.capture(["red", "blue"]) as packets:
        sent = stage.net.send("red", "blue")
    packets.of(sent).at("blue:eth0").expect(icmp("echo-request"))
    packets.of(sent).at("red:eth0").expect(icmp("echo-reply"))


def _last_seen(stage: Stage) -> str:
    """The last point that red's packet passes."""
    with stage.net.capture(WAY) as packets:
        sent = stage.net.send("red", "blue", wait_s=WAIT_S)
    return last_seen(packets.of(sent), WAY, icmp("echo-request"))


def _without_route(stage: Stage) -> str:
    with stage.broken("route", "node-1", "node-2"):
        return _last_seen(stage)


def _is_repaired(stage: Stage, kind: str, *target: str) -> bool:
    """Delete something that an agent looks after, ask nobody to leave it alone, and wait."""
    with changing_faults(stage.cluster) as faults:
        made = faults.make(kind, Request(target), time.time(), hold=False)
        if made.repaired_s is None:
            faults.heal([made.fault.id], time.time())
    return made.repaired_s is not None


def _foreign_rule(stage: Stage) -> str:
    """What becomes of a rule of somebody else's that drops what red sends, after node-1's agent looked at
    everything: "stays" if red's packet still ends before it."""
    fault = stage.break_("rule", "node-1", "red", "blue", action="DROP")
    try:
        stage.lab.agent("node-1").post("/v1/repair", {})
        return "stays" if _last_seen(stage) == "node-1:cni0" else "goes"
    finally:
        stage.heal(fault)


def _has_device(stage: Stage) -> bool:
    return "flannel.1" in stage.net.kernel("node-1").links


def _plan(stage: Stage) -> int:
    return int(stage.agent("node-1", "/v1/plan")["count"])


def _writes(stage: Stage) -> int:
    return int(stage.agent("node-1", "/v1/status")["writes"]["kernel"])


LESSON = Lesson(
    question="Who repairs my network?",
    predictions=(
        Prediction(
            "leak",
            "Somebody deletes node-1's route to node-2's containers. Where is red's packet seen last?",
            "point",
        ),
        Prediction(
            "device",
            "Somebody deletes flannel.1 of node-1. How many objects does its agent write to the kernel?",
        ),
        Prediction(
            "foreign",
            "Somebody puts a rule of their own in front, and it drops what red sends. What does it do?",
            "word",
            ("stays", "goes"),
        ),
        Prediction("idle", "Nothing has drifted. How many writes does it take an agent to look at everything?"),
    ),
    hints=(
        "`overlaynet diff` says what is wrong on each host, and why it stays so. `overlaynet repair` repairs "
        "once; the check deletes things again.",
        "There are two reasons why nobody repairs: on node-1 there is nobody, on node-2 somebody was asked not "
        "to. `overlaynet status` has both under `broken`.",
        "`overlaynet heal` starts node-1's agent and has node-2's released; or one by one, `overlaynet heal "
        "f1`, f2 and f3.",
    ),
    start=start,
    check=check,
    minutes=15,
    memory_mb=100,
    disk_mb=130,
)
