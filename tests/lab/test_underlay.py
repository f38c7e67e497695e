"""What the underlay sees of two containers talking: VXLAN, and nothing but VXLAN."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from helpers.capture import capture
from helpers.lab import lab_name, ping, requires_lab

from overlaynet.addr import Mac
from overlaynet.lab.lab import Lab
from overlaynet.lab.netns_driver import namespace
from overlaynet.lab.topology import Topology

pytestmark = [pytest.mark.lab, requires_lab]


def test_ping_crosses_the_underlay_inside_vxlan() -> None:
    """VTEP MACs and container addresses are as pinned for labs: they encode the host."""
    with Lab.running(Topology.simple(lab_name("vxlan"), hosts=2, containers=1)) as lab:
        underlay = (namespace(lab.name, "node-1"), "eth0")
        sender = (namespace(lab.name, "web-1"), "eth0")
        with capture(underlay, sender) as captured:
            assert ping(namespace(lab.name, "web-1"), "10.244.2.2")
    assert captured.drops == 0
    tunnelled = [frame for frame in captured.frames[underlay] if frame.vni is not None]
    request, reply = tunnelled[:2]
    for frame, (src, dst) in ((request, (1, 2)), (reply, (2, 1))):
        assert frame.vni == 1
        assert frame.outer.dst_port == 8472
        assert frame.outer.src == ip_address(f"192.168.50.{10 + src}")
        assert frame.outer.dst == ip_address(f"192.168.50.{10 + dst}")
        assert frame.outer.src_mac == Mac(f"02:00:c0:a8:32:{10 + src:02x}")
        assert frame.outer.dst_mac == Mac(f"02:00:c0:a8:32:{10 + dst:02x}")
        inner = frame.inner
        assert inner is not None
        assert (inner.src, inner.dst) == (ip_address(f"10.244.{src}.2"), ip_address(f"10.244.{dst}.2"))
        assert inner.src_mac == Mac(f"02:0a:f4:{src:02x}:00:00")
        assert inner.dst_mac == Mac(f"02:0a:f4:{dst:02x}:00:00")
        assert (inner.protocol, inner.ttl) == ("icmp", 63)
        assert frame.outer.length == inner.length + 50
    echo = next(f.outer for f in captured.frames[sender] if f.outer.protocol == "icmp")
    assert request.inner is not None
    assert (echo.ttl, echo.ip_id) == (64, request.inner.ip_id)
    overlay = [f.outer for f in captured.frames[underlay] if f.vni is None and f.outer.protocol == "icmp"]
    assert overlay == [], "a container's packet crossed the underlay in the open"
