"""Who can read the underlay?

VXLAN wraps and hides nothing. The learner lays WireGuard between the hosts' underlay addresses and leads VXLAN
through it: the forwarding entry of the peer gets another device to leave by. The check looks for red's payload
in every byte that passes between the hosts, asks what large packets are told, and gives node-2 another key for
a moment.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from overlaynet.errors import LabFailed
from overlaynet.lessons import Board, Lesson, Prediction, Stage
from overlaynet.proof import Packets, icmp

UNDERLAY = ["node-1:eth0", "node-2:eth0"]
TUNNELS = ["node-1:flannel.1", "node-2:flannel.1"]
VXLAN = 14 + 20 + 8 + 8
"""Inner Ethernet, IP, UDP and VXLAN headers, in bytes (RFC 7348, section 5)."""
WIREGUARD = 20 + 8 + 16 + 16
"""IP, UDP, the header of a data message and its authentication tag (the WireGuard paper, section 5.4.6)."""
DATA = b"\x04\x00\x00\x00"
"""How a data message begins, behind Ethernet, IP and UDP headers."""
DATA_AT = 14 + 20 + 8
SIZE = 34
"""Of the ping's payload: 62 bytes of IP packet and 50 of VXLAN make 112, and WireGuard pads to 16."""
CONTAINER_MTU = 1450
WIREGUARD_MTU = 1420
WAIT_S = 1.0


def start(stage: Stage) -> None:
    stage.break_("agent", "node-1")
    stage.break_("agent", "node-2")


def check(stage: Stage, board: Board) -> None:
    with board.claim("blue receives what red sends, and red the answer"):
        packets, cookie = _ping(stage)
        sent = packets.at("red:eth0").expect(icmp("echo-request"))[0]
        packets.at("blue:eth0").expect(icmp("echo-request"))
        packets.at("red:eth0").expect(icmp("echo-reply"))
    with board.claim("whoever listens between the hosts finds nothing of what red sent"):
        shown = _shown(packets, cookie)
        assert not shown, f"red's payload, {cookie}, is in {len(shown)} packets there:\n{shown}"
        packets.at(*UNDERLAY).never("udp port 8472")
    board.measured(
        "readable",
        theory=0,
        captured=len(shown),
        because="ChaCha20-Poly1305 leaves lengths, times and the hosts' addresses, and nothing else",
    )
    with board.claim("it is in WireGuard's data messages that they meet"):
        messages = [p.length for p in packets.at("node-1:eth0") if p.data[DATA_AT:].startswith(DATA)]
        assert messages, "no packet between the hosts begins as such a message does"
    board.measured(
        "overhead",
        theory=VXLAN + WIREGUARD,
        captured=max(messages) - sent.length,
        because=f"VXLAN adds {VXLAN} bytes, WireGuard {WIREGUARD}: IP 20, UDP 8, its header 16, its tag 16",
    )
    with board.claim("red is told when a packet is too large for both tunnels"):
        told = _told_mtu(stage)
    board.measured(
        "mtu",
        theory=WIREGUARD_MTU - VXLAN,
        captured=told,
        because=f"wg0 carries {WIREGUARD_MTU} bytes, with room for IPv6 outside, and VXLAN takes {VXLAN}",
    )
    with board.claim("with another key node-2 takes nothing out of the tunnel"), _other_key(stage, "node-2"):
        packets, _ = _ping(stage)
        packets.at("node-2:eth0").expect("udp and src node-1")
        packets.at("node-2:flannel.1").never(icmp("echo-request"))
    seen = [str(p.point) for p in packets.where(icmp("echo-request"))]
    board.measured(
        "wrong-key",
        theory="node-1:flannel.1",
        captured=seen[-1],
        because="node-1 encrypts as before; node-2 cannot check the tag, drops it and tells nobody",
    )


def _ping(stage: Stage, tries: int = 1) -> tuple[Packets, str]:
    """What red's ping looks like everywhere, and its payload's first eight bytes in hexadecimal."""
    with stage.net.capture(["red", "blue", *UNDERLAY, *TUNNELS]) as packets:
        sent = stage.net.send("red", "blue", size=SIZE, tries=tries, wait_s=WAIT_S)
    return packets, sent.cookie


def _shown(packets: Packets, cookie: str) -> Packets:
    """The packets on the underlay that have the payload somewhere in them. `packets` keeps what is told of
    witnesses: what was not seen there did not pass."""
    between = packets.at(*UNDERLAY)
    carried = [index for index, packet in enumerate(between) if bytes.fromhex(cookie) in packet.data]
    return between[carried[0] : carried[-1] + 1] if carried else between[:0]


def _told_mtu(stage: Stage) -> int:
    """What red is told of a packet that fills a container's MTU and must not be cut."""
    stage.run("red", "ip", "route", "flush", "cache")
    with stage.net.capture("red") as packets:
        stage.net.send("red", "blue", size=CONTAINER_MTU - 28, df=True, wait_s=WAIT_S)
    stage.run("red", "ip", "route", "flush", "cache")
    error = packets.expect(icmp("fragmentation-needed"))[0].innermost.icmp
    assert error is not None
    assert error.mtu is not None
    return error.mtu


# --- keys -----------------------------------------------------------------------------------------


@contextmanager
def _other_key(stage: Stage, host: str) -> Iterator[None]:
    """For the length of the block a host has a private key that nobody knows of. Afterwards it has its own
    again, and has spoken with its peer. All is configured anew each time, for a session outlives its key."""
    devices = stage.run(host, "wg", "show", "interfaces").split()
    assert len(devices) == 1, f"WireGuard devices of {host}: {', '.join(devices) or 'none'}"
    own = stage.run(host, "wg", "showconf", devices[0])
    key = stage.run(host, "wg", "genkey").strip()
    other = re.sub(r"(?m)^(PrivateKey) = .*$", rf"\g<1> = {key}", own)
    _configure(stage, host, devices[0], other)
    try:
        yield
    finally:
        _configure(stage, host, devices[0], own)
        stage.net.send("blue", "red", tries=10, wait_s=WAIT_S)


def _configure(stage: Stage, host: str, device: str, configuration: str) -> None:
    """By standard input: command lines can be read by everybody."""
    argv = ["wg", "setconf", device, "/dev/stdin"]
    done = stage.lab.driver.run(host, argv, stdin=configuration.encode())
    if done.returncode:
        raise LabFailed(f"{host} does not take a key", evidence=done.stderr.decode(errors="replace"))


LESSON = Lesson(
    question="Who can read the underlay?",
    predictions=(
        Prediction("readable", "WireGuard runs. In how many packets between the hosts is red's payload found?"),
        Prediction(
            "overhead", f"How many bytes longer than in red is a ping with {SIZE} bytes between the hosts?"
        ),
        Prediction(
            "mtu", f"wg0 has an MTU of {WIREGUARD_MTU}. Which MTU is red told of, if not {CONTAINER_MTU}?"
        ),
        Prediction(
            "wrong-key", "node-2 has a wrong key. At which interface can red's ping be read last?", "point"
        ),
    ),
    hints=(
        "Two halves. First wg0 on both hosts, so that each knows the other's public key, endpoint (its "
        "underlay address) and allowed address (the same one). Then VXLAN must leave by wg0 and not by eth0: "
        "see `via` in bridge(8). And what leaves by wg0 may be no longer than wg0 can carry.",
        "On each host: `ip link add wg0 type wireguard`, then `wg set wg0 listen-port 51820 private-key FILE "
        "peer KEY allowed-ips ADDRESS/32 endpoint ADDRESS:51820`, and `ip link set wg0 up`. It needs no "
        "address. The forwarding entry of the peer's VTEP is in `bridge fdb show dev flannel.1`; replace it. "
        "flannel.1 gets an MTU 50 below that of wg0.",
        "On node-1: bridge fdb replace 02:0a:f4:02:00:00 dev flannel.1 dst 192.168.50.12 via wg0 self "
        "permanent; ip link set flannel.1 mtu 1370. On node-2 the same with 02:0a:f4:01:00:00 and "
        "192.168.50.11.",
    ),
    start=start,
    check=check,
    minutes=20,
    memory_mb=20,
    disk_mb=130,
    needs=("wireguard", "wg"),
)
