"""Does the data plane need etcd?

Agents read etcd and write kernels; packets ask kernels alone. At the start etcd is dead, and everything that
worked works. What does not is change: a container waits to be wired. The learner brings etcd back and wires it;
then the check takes etcd away once more, while red pings all the time, and looks at what each host still knows.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from overlaynet.errors import NotReady
from overlaynet.lab import attach as wiring
from overlaynet.lessons import Board, Lesson, Prediction, Stage
from overlaynet.proof import Packets, icmp, tcp

NEW, ITS_HOST, OTHER_HOST = "blue", "node-2", "node-1"
PING = "exec ping -q -i 0.05 {} >/dev/null"
TUNNEL = f"{OTHER_HOST}:flannel.1"
CALLS = 16
"""Of two endpoints each gets one at least, but for one time in thirty thousand."""
HEARD_S = 3.0
"""Until each host has heard of a container that was wired just now."""
CALL_S = 0.05
"""The wait for an answer: whether there is one is not what the calls are for."""


@dataclass(frozen=True)
class Seen:
    """What is true while etcd is away, and after it."""

    wired: bool
    writes: int


def start(stage: Stage) -> None:
    stage.lab.agent(ITS_HOST).delete(f"/v1/containers/default/{NEW}")
    stage.until(lambda: _endpoints(stage, OTHER_HOST) == 1, f"{OTHER_HOST} hears that {NEW} is gone")
    stage.break_("etcd")
    stage.until(lambda: not _is_told(stage), f"{ITS_HOST} notices that etcd is away")


def check(stage: Stage, board: Board) -> None:
    with board.claim("red reaches green"):
        with stage.net.capture("red") as packets:
            sent = stage.net.send("red", "green")
        packets.of(sent).expect(icmp("echo-reply"))
    with board.claim(f"{ITS_HOST} is told by etcd that its subnet is its own"):
        assert stage.lab.pid("etcd"), _problems(stage)
        stage.until(lambda: _is_told(stage), f"{ITS_HOST} speaks with etcd")
    with board.claim(f"{NEW} is wired, and {OTHER_HOST} leads calls to it"):
        address = str(stage.net.address_of(NEW))
        alone = f"{OTHER_HOST} leads them to green alone"
        stage.until(lambda: _endpoints(stage, OTHER_HOST) == 2, alone, HEARD_S)
        stage.until_served(OTHER_HOST, "green", NEW)
        with stage.net.capture(TUNNEL) as packets:
            _call(stage)
        assert _led_to(packets) == 2, alone
    with (
        board.claim("etcd dies and comes back, and what was changed meanwhile arrives"),
        stage.net.capture(["red", "green", TUNNEL]) as packets,
        _pinging(stage, "green"),
    ):
        seen = _without_etcd(stage, address)
    request, reply = icmp("echo-request", src="red", dst="green"), icmp("echo-reply", src="green", dst="red")
    pings, answers = packets.at("red:eth0").where(request), packets.at("red:eth0").where(reply)
    with board.claim("all the while red reaches green"):
        packets.at("green:eth0").expect(request, len(pings))
        assert len(pings) > 1
    board.measured(
        "lost",
        theory=0,
        captured=len(pings) - len(answers),
        because="no packet asks etcd or an agent: routes, neighbours and rules are in the kernel",
    )
    board.measured(
        "wired",
        theory="no",
        captured="yes" if seen.wired else "no",
        because="its host could not renew its subnet's lease, so the subnet may be another host's by now",
    )
    board.measured(
        "led-to",
        theory=2,
        captured=_led_to(packets),
        because=f"{ITS_HOST} knew at once, {OTHER_HOST} only knows what etcd told it before",
    )
    board.measured(
        "writes",
        theory=0,
        captured=seen.writes,
        because="what etcd says is compared with what the kernel has, and nothing of that was different",
    )


def _without_etcd(stage: Stage, address: str) -> Seen:
    """Take etcd away for a while; the container is unwired in that time, and cannot be wired again."""
    before = _writes(stage)
    try:
        with stage.broken("etcd"):
            stage.lab.agent(ITS_HOST).delete(f"/v1/containers/default/{NEW}")
            stage.until(lambda: not _is_confirmed(stage), f"{ITS_HOST} doubts its lease")
            wired = _wire(stage, address)
            _call(stage)
        stage.until(lambda: _endpoints(stage, OTHER_HOST) == 1, f"{OTHER_HOST} hears that {NEW} is gone")
        return Seen(wired, _writes(stage) - before)
    finally:
        stage.until(lambda: _is_confirmed(stage) and _wire(stage, address), f"{NEW} is wired again")


@contextmanager
def _pinging(stage: Stage, target: str) -> Iterator[None]:
    """All the time, from red."""
    ping = stage.cluster.start("red", ["sh", "-c", PING.format(stage.net.address_of(target))])
    try:
        yield
    finally:
        ping.send_signal(signal.SIGINT)
        ping.wait()


def _wire(stage: Stage, address: str) -> bool:
    """Wire the new container as the lab's file has it; False where its host has no subnet to give it from."""
    container = next(one for one in stage.lab.containers if one.name == NEW)
    netns = next(one.netns for one in stage.cluster.containers() if one.name == NEW)
    assert netns is not None
    try:
        stage.cluster.wire(ITS_HOST, wiring.body(container, netns, ips=[address]), netns, None)
    except NotReady:
        return False
    return True


def _call(stage: Stage) -> None:
    """Call the service often enough to meet each of its endpoints."""
    for _ in range(CALLS):
        stage.net.send("red", "svc/web", wait_s=CALL_S)


def _led_to(packets: Packets) -> int:
    """To how many containers calls of the service were sent, by what entered the tunnel."""
    calls = packets.at(TUNNEL).where(tcp(dport=80, flags="S"))
    return len({packet.innermost.dst for packet in calls})


def _is_confirmed(stage: Stage) -> bool:
    return bool(stage.agent(ITS_HOST, "/v1/status")["lease"]["confirmed"])


def _is_told(stage: Stage) -> bool:
    return _is_confirmed(stage) and bool(stage.agent(ITS_HOST, "/v1/status")["store"]["connected"])


def _endpoints(stage: Stage, host: str) -> int:
    return int(stage.agent(host, "/v1/status")["services"]["endpoints"])


def _writes(stage: Stage) -> int:
    return int(stage.agent(OTHER_HOST, "/v1/status")["writes"]["kernel"])


def _problems(stage: Stage) -> str:
    problems = stage.agent(ITS_HOST, "/v1/status")["problems"]
    return "\n".join(f"{ITS_HOST} says {p['code']}: {p['message']}" for p in problems)


LESSON = Lesson(
    question="Does the data plane need etcd?",
    predictions=(
        Prediction("lost", "etcd dies and comes back, and red pings green all the while. How many are lost?"),
        Prediction(
            "wired",
            "etcd has been away for longer than a subnet's lease. Can node-2 wire a container?",
            "word",
            ("yes", "no"),
        ),
        Prediction(
            "led-to",
            "etcd is dead, and blue is unwired from node-2. To how many containers does node-1 lead calls?",
        ),
        Prediction(
            "writes", "etcd is back. How many times does node-1's agent write to the kernel because of it?"
        ),
    ),
    hints=(
        "Look at what node-2 says of itself in `overlaynet status`: what does it lack to wire a container?",
        "Only etcd can confirm that node-2's subnet is still node-2's. What was broken on purpose, and how "
        "it is undone, is in `overlaynet status` too.",
        "overlaynet heal; then, once `overlaynet status` says ready, overlaynet attach blue.",
    ),
    start=start,
    check=check,
    minutes=15,
    memory_mb=100,
    disk_mb=130,
)
