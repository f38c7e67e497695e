"""Capturing in a lab from Python: what is seen, what cannot be, and every example of docs/capture.md."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.eventually import eventually
from helpers.lab import lab_name, requires_lab

from overlaynet import data
from overlaynet.cluster.contexts import LabCluster
from overlaynet.errors import EnvironmentProblem, NotFound, UsageError
from overlaynet.lab.lab import Lab
from overlaynet.lab.topology import parse
from overlaynet.proof import Inconclusive, Network, Refuted, capture, icmp, same, tcp, udp, vxlan

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "capture.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)

pytestmark = [pytest.mark.lab, requires_lab]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    text = data.path("labs", "quickstart.yaml").read_text()
    with Lab.running(parse(text, "quickstart.yaml", lab_name("proof"))) as running:
        yield running


@pytest.fixture(scope="module")
def net(lab: Lab) -> Iterator[Network]:
    with Network.of(LabCluster(lab)) as network:
        for client in ("web-1", "web-3", "client-1"):
            eventually(lambda client=client: network.send(client, "svc/web").answer == "syn-ack", deadline_s=20)
        yield network


# --- seeing ---------------------------------------------------------------------------------------


def test_packet_is_seen_at_every_point_of_its_way_in_order(net: Network) -> None:
    with net.capture(["web-1", "node-1", "node-2", "web-3"], "icmp") as packets:
        assert net.send("web-1", "web-3").answer == "echo-reply"
    way = packets.follow(icmp("echo-request", src="web-1"))
    assert [point.partition(":")[2].rstrip("0123456789abcdef.") for point in way.points] == [
        "eth", "veth", "cni", "flannel", "eth", "eth", "flannel", "cni", "veth", "eth",
    ]  # fmt: skip
    assert way.values("ttl") == [64, 64, 64, 63, 63, 63, 63, 62, 62, 62]
    assert packets.drops == 0
    assert all(packets.witness(point) for point in packets.points)


def test_what_passes_before_and_after_the_block_is_not_seen(net: Network) -> None:
    net.send("web-1", "web-3")
    with net.capture(["web-1"], "icmp") as packets:
        pass
    net.send("web-1", "web-3")
    packets.never("icmp")


def test_filter_is_obeyed_by_the_kernel_and_by_us(net: Network) -> None:
    with net.capture(["node-1:eth0"], "tcp dst port 80 and tunnelled") as packets:
        net.send("web-1", "10.244.2.2", "tcp", 80)
        net.send("web-1", "web-3")
    packets.only(vxlan(carrying=tcp(dport=80)))
    packets.never(icmp())


def test_names_of_hosts_stand_for_all_of_their_addresses(net: Network) -> None:
    with net.capture(["outside", "node-1:eth0"]) as packets:
        net.send("web-1", "outside")
        net.send("node-1", "web-1")
    packets.at("outside:eth0").expect(icmp("echo-request", src="node-1", dst="outside"))
    assert len(net.names["node-1"]) == 3


def test_captures_follow_one_another(net: Network) -> None:
    for number in range(3):
        with net.capture(["web-1"], "icmp") as packets:
            for _ in range(number):
                net.send("web-1", "web-3")
        assert len(packets) == 2 * number


def test_block_that_fails_ends_the_capture(net: Network) -> None:
    with pytest.raises(ZeroDivisionError), net.capture(["web-1"]):
        raise ZeroDivisionError
    with net.capture(["web-1"], "icmp") as packets:
        net.send("web-1", "web-3")
    packets.expect(icmp(), count=2)


def test_capture_alone_sees_what_others_send(lab: Lab) -> None:
    with capture("web-1", "icmp", lab=lab.name) as packets:
        lab.driver.run("web-1", ["ping", "-c1", "-W2", "10.244.2.2"])
    assert [(str(p.point), p.direction) for p in packets] == [("web-1:eth0", "out"), ("web-1:eth0", "in")]


def test_large_packets_are_whole(net: Network) -> None:
    with net.capture(["web-1", "node-1:eth0"], "icmp") as packets:
        net.send("web-1", "web-3", size=1422)
    (sent,) = packets.at("web-1:eth0").expect(icmp("echo-request"), count=1)
    assert (sent.length, len(sent.data)) == (1464, 1464)
    packets.at("node-1:eth0").expect(vxlan(carrying=sent))


# --- not seeing -----------------------------------------------------------------------------------


def test_packet_that_is_dropped_is_proved_not_to_have_left(net: Network) -> None:
    with net.capture(["web-1", "node-1:eth0", "node-2:eth0"]) as packets:
        net.send("web-1", "node-2", "udp", 8472, cookie="0000000000000001", wait_s=0.1)
    (sent,) = packets.at("web-1:eth0").expect(udp(8472), count=1)
    packets.at("node-*").never(same(sent))


def test_refuted_claim_shows_real_packets(net: Network) -> None:
    with net.capture(["web-1", "node-1:eth0"], "icmp") as packets:
        net.send("web-1", "web-3")
    with pytest.raises(Refuted, match=r"its VNI is 1, not 7"):
        packets.at("node-1:eth0").expect(vxlan(7, src="node-1"))


def test_interface_that_goes_down_meanwhile_is_no_witness(net: Network, lab: Lab) -> None:
    with net.capture(["client-2"]) as packets:
        lab.driver.run("client-2", ["ip", "link", "set", "eth0", "down"])
    lab.driver.run("client-2", ["ip", "link", "set", "eth0", "up"])
    lab.driver.run("client-2", ["ip", "route", "add", "default", "via", "10.244.3.1"])
    assert not packets.witness("client-2:eth0")
    with pytest.raises(Inconclusive, match="client-2:eth0 could not be listened at: went down"):
        packets.never(udp(9))


def test_flood_that_finds_no_room_is_no_proof(net: Network, lab: Lab) -> None:
    """More octets than the 64 MiB that one capture keeps. Loopback's frames are the largest, and an echo is
    four of them."""
    with net.capture(["node-1:lo"]) as packets:
        lab.driver.run("node-1", ["ping", "-q", "-f", "-c", "300", "-s", "65000", "127.0.0.1"], timeout_s=60)
    assert 0 < sum(packet.length for packet in packets) <= 64 << 20
    assert packets.drops > 0
    with pytest.raises(Inconclusive, match=r"the kernel dropped \d+ frames at node-1:lo"):
        packets.never(tcp())


@pytest.mark.parametrize(
    ("points", "words", "error", "told"),
    [
        (["web-9"], "", NotFound, "there is no container or host 'web-9'"),
        (["web-1:eth7"], "", NotFound, "there is no interface 'eth7' on web-1"),
        ([], "", UsageError, "no point to capture at"),
        (["web-1"], "icmp or", UsageError, "the filter is wrong at character 8: a condition is missing"),
    ],
)
def test_capture_that_makes_no_sense_does_not_begin(
    net: Network, points: list[str], words: str, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told), net.capture(points, words):
        pytest.fail("the block must not begin")


def test_interface_that_is_down_cannot_be_listened_at(net: Network, lab: Lab) -> None:
    added = lab.driver.run("node-3", ["ip", "link", "add", "quiet", "type", "veth", "peer", "name", "quieter"])
    assert added.returncode == 0, added.stderr
    told = "nobody can listen at node-3:quiet: is down"
    with pytest.raises(EnvironmentProblem, match=told), net.capture(["node-3:quiet"]):
        pytest.fail("the block must not begin")
    with net.capture(["node-3"]) as packets:
        pass
    assert "node-3:eth0" in packets.points
    assert "node-3:quiet" not in packets.points


# --- a network ------------------------------------------------------------------------------------


def test_network_knows_who_there_is(net: Network) -> None:
    assert net.hosts == ["node-1", "node-2", "node-3"]
    assert net.pair() == ("web-1", "web-3")
    assert net.host_of("client-2") == "node-3"
    assert net.underlay("node-2") == "node-2:eth0"
    assert net.tunnel("node-2") == "node-2:flannel.1"
    assert str(net.mac("web-1:eth0")) == "0a:58:0a:f4:01:02"
    vip, port, endpoints = net.service(net.services()[0])
    assert (str(vip), port, sorted(endpoints)) == ("10.112.0.10", 80, ["web-1", "web-2", "web-3", "web-4"])
    with pytest.raises(NotFound, match="there is no container 'web-9'"):
        net.host_of("web-9")
    with pytest.raises(NotFound, match="there is no interface 'eth7' on web-1"):
        net.mac("web-1:eth7")


def test_packets_are_sent_and_their_answers_told(net: Network) -> None:
    assert net.send("node-1", "web-3").answer == "echo-reply"
    assert net.send("outside", "node-1", "tcp", 30080).answer == "syn-ack"
    assert net.send("web-1", "web-3", "tcp", 81).answer == "rst"
    assert net.send("web-1", "web-3", "udp", 81).answer == "icmp port-unreachable"
    assert "EMSGSIZE" in net.send("web-1", "web-3", size=3000, df=True).error


# --- the document ---------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example_of_the_document_runs(net: Network, lab: Lab, example: str) -> None:
    exec(compile(example, "docs/capture.md", "exec"), {"lab": lab.name})


def test_commands_of_the_document_are_understood(net: Network, lab: Lab) -> None:
    filters = re.search(r"in the words of tcpdump:\n\n((?:    .*\n)+)", DOCUMENT)
    assert filters is not None
    lines = [line.strip() for line in filters.group(1).splitlines()]
    assert len(lines) == 5
    for line in lines:
        with net.capture(["web-1"], line):
            pass


def test_scripts_of_the_document_are_there() -> None:
    named = re.findall(r"labs/(\w+\.py)", DOCUMENT)
    root = Path(__file__).parent.parent.parent / "labs"
    assert sorted(named) == sorted(file.name for file in root.glob("verify_*.py"))


def test_table_of_the_document_is_that_of_the_command(net: Network, lab: Lab) -> None:
    argv = ["overlaynet", "capture", "web-1", "node-1:flannel.1", "node-1:eth0", "-c", "3"]
    command = subprocess.Popen(
        [
            Path(sys.executable).with_name(argv[0]),
            *argv[1:],
            "icmp",
            "and",
            "src",
            "web-1",
            "-l",
            lab.name,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stderr is not None
    command.stderr.readline()
    net.send("web-1", "web-3")
    out, _ = command.communicate(timeout=20)
    shown = re.search(r"icmp and src web-1\n((?:    .*\n|\n)+)", DOCUMENT)
    assert shown is not None
    assert _words(out) == _words(shown.group(1))


def _words(text: str) -> list[str]:
    """Without numbers that differ from one run to the next, and line breaks."""
    return [word for word in re.sub(r"\d+\.\d{6}|\d+/1 |\b\d+ B", "", text).split() if word]
