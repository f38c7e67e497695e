"""What happens when a node dies?

Nobody says so: what is not renewed runs out. A node's record lives for seconds, and its endpoints go with it;
its subnet lives for a day, and so do the routes that its peers have to it. At the start the only endpoint of a
service was on a node that is dead. The learner gives the service a second one elsewhere and the node its power
back; then the check kills the node once more, while red calls all the time.
"""

import time
from ipaddress import ip_address
from itertools import takewhile

from overlaynet.lessons import Board, Lesson, Prediction, Stage, last_seen
from overlaynet.proof import icmp, tcp
from overlaynet.trace.model import Sent

MORTAL = "node-2"
CALLS = 10
ANSWER_S, WAIT_S = 1.0, 0.3
"""For an answer, and for one that need not come: in a lab it takes less than one thousandth of that."""
SLACK_S = 2.0
"""etcd looks for leases that ran out twice a second, and agents hear of it."""
WAY = ["red:eth0", "node-1:cni0", "node-1:flannel.1", "node-1:eth0"]


def start(stage: Stage) -> None:
    """Kill the node, and wait until the others know: before that the dead endpoint counts as a live one."""
    stage.break_("node", MORTAL)
    stage.until(lambda: bool(_problems(stage)), f"node-1 hears that {MORTAL} is dead")


def check(stage: Stage, board: Board) -> None:
    with board.claim(f"each of {CALLS} calls from red to svc/web is answered"):
        _settle(stage)
        _answers(stage)
    with board.claim(f"{MORTAL} is alive, and blue answers red"):
        before = _address_of_blue(stage)
    with stage.broken("node", MORTAL):
        died = time.monotonic()
        last_seen = _last_seen(stage)
        ttl_s = stage.lab.topology.settings.node_ttl_s
        with board.claim(f"{MORTAL} dies again, and after its lease of {ttl_s} s every call is answered"):
            _suffer(stage, before, died + ttl_s + SLACK_S)
            answered = _answers(stage)
        board.measured(
            "last-seen",
            theory=stage.net.underlay("node-1"),
            captured=last_seen,
            because="node-1 has every entry still, so it sends the packet to where node-2 was",
        )
        board.measured(
            "answered",
            theory=CALLS,
            captured=answered,
            because="the record of blue hung on the lease of its node, and every agent dropped that endpoint",
        )
        remembered = stage.lab.topology.settings.lease_ttl_s > time.monotonic() - died
        board.measured(
            "route",
            theory="stays" if remembered else "goes",
            captured="stays" if _has_route(stage, before) else "goes",
            because="a route comes from the subnet's lease, which is another one and lives for a day",
        )
    stage.fresh()
    with board.claim(f"{MORTAL} comes back, and nobody had to change a route to it"):
        after = _address_of_blue(stage)
    board.measured(
        "address",
        theory=before,
        captured=after,
        because="the subnet was kept for node-2, which knows itself by an id on its own disk",
    )


def _call(stage: Stage, wait_s: float) -> Sent:
    """One more connection to the service."""
    return stage.net.send("red", "svc/web", wait_s=wait_s)


def _is_accepted(call: Sent) -> bool:
    return call.answer == "syn-ack"


def _answers(stage: Stage) -> int:
    """How many of `CALLS` calls are answered, by the packets at red. AssertionError unless all are."""
    with stage.net.capture("red", "tcp port 80") as packets:
        calls = list(takewhile(_is_accepted, (_call(stage, ANSWER_S) for _ in range(CALLS))))
    sent = packets.where(tcp(dport=80, flags="S"))
    assert len(calls) == CALLS, f"call {len(calls) + 1} was not:\n{sent[-1:]}{_problems(stage)}"
    answers = packets.of(*calls).expect(tcp(80, flags="SA"))
    return len({answer.innermost.dst_port for answer in answers})


def _settle(stage: Stage) -> None:
    """Give node-1 the time to hear of an endpoint that is there since just now, and to drop the dead one."""
    deadline = time.monotonic() + SLACK_S
    while (_problems(stage) or stage.agent("node-1", "/v1/status")["pending"]) and time.monotonic() < deadline:
        time.sleep(WAIT_S)


def _problems(stage: Stage) -> str:
    """What the agent of red's host has to say, if anything."""
    problems = stage.agent("node-1", "/v1/status")["problems"]
    return "".join(f"\nnode-1 says {problem['code']}: {problem['message']}" for problem in problems)


def _suffer(stage: Stage, dead: str, deadline: float) -> None:
    """Call until the agent of node-1 knows of other endpoints, or says why not; then its rules follow. What is
    lost meanwhile nobody can prevent."""
    known = _endpoints(stage)
    while _endpoints(stage) == known and not _problems(stage) and time.monotonic() < deadline:
        _call(stage, WAIT_S)
    words = f"node-1 leads calls to {dead}, and does not say why"
    stage.until(lambda: not stage.leads_to("node-1", dead) or bool(_problems(stage)), words)


def _endpoints(stage: Stage) -> int:
    return stage.agent("node-1", "/v1/status")["services"]["endpoints"]


def _address_of_blue(stage: Stage) -> str:
    """As red sees it: the source of the answer to a ping."""
    with stage.net.capture("red") as packets:
        sent = stage.net.send("red", "blue", tries=2, wait_s=ANSWER_S)
    return str(packets.of(sent).expect(icmp("echo-reply", dst="red"))[0].innermost.src)


def _last_seen(stage: Stage) -> str:
    """The last point that red's packet to blue passes."""
    with stage.net.capture(WAY) as packets:
        sent = stage.net.send("red", "blue", wait_s=WAIT_S)
    return last_seen(packets.of(sent), WAY, icmp("echo-request"))


def _has_route(stage: Stage, address: str) -> bool:
    """Whether node-1 has a route of its own, and not only the default one, to this address."""
    routes = stage.net.kernel("node-1").routes
    return any(route.dst.prefixlen and ip_address(address) in route.dst for route in routes)


LESSON = Lesson(
    question="What happens when a node dies?",
    predictions=(
        Prediction(
            "last-seen",
            "node-2 has just died. At which interface is a packet from red to blue seen last?",
            "point",
        ),
        Prediction(
            "answered", f"node-2's lease has run out. How many of {CALLS} calls to svc/web are answered?"
        ),
        Prediction(
            "route",
            "Does the route to node-2's subnet on node-1 stay when that lease runs out, or go?",
            "word",
            ("stays", "goes"),
        ),
        Prediction("address", "node-2 comes back. Which address has blue?", "address"),
    ),
    hints=(
        "Two things are wrong: a node without power, and a service whose only endpoint was there. "
        "`overlaynet status` tells of both, `overlaynet get containers` who could answer instead.",
        "green runs the same server as blue. `overlaynet describe svc/web` says which label a container must "
        "have to be chosen; it is given when a container is attached, so detach green first. Power comes "
        "back by `overlaynet heal`. One of the two is not enough: the check kills node-2 again.",
        "overlaynet detach green; overlaynet attach green --label KEY=VALUE, with the selector of svc/web; "
        "overlaynet heal.",
    ),
    start=start,
    check=check,
    minutes=15,
    disk_mb=130,
)
