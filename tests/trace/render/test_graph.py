"""The topology as text, flow chart, drawing and page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from xml.etree import ElementTree

import click
import pytest
from helpers import worlds
from helpers.worlds import Shape, veth

from overlaynet.state import Fdb
from overlaynet.trace import model
from overlaynet.trace.render.graph import graph_mermaid, graph_text, headline
from overlaynet.trace.render.graphsvg import graph_html, graph_svg, sheet
from overlaynet.trace.render.text import cells
from overlaynet.trace.topology import Backend, ServiceView, Topology, topology

pytestmark = pytest.mark.unit


def usual() -> Topology:
    found = topology(worlds.world(Shape(containers=(2, 1, 1))))
    service = ServiceView(
        "default/web",
        (ip_address("10.112.0.10"),),
        (("tcp", 80, 30_080),),
        (
            Backend(ip_address("10.244.1.2"), 80, "web-1", "node-1"),
            Backend(ip_address("10.244.2.2"), 80, "web-3", "node-2", ready=False),
            Backend(ip_address("192.0.2.1"), 80),
        ),
    )
    # Ports of the fake worlds carry no mark of ours, which is no matter here.
    hosts = tuple(host._replace(differences=()) for host in found.hosts)
    return replace(found, hosts=hosts, services=(service, service._replace(id="default/none", backends=())))


def broken() -> Topology:
    world = worlds.world(Shape(containers=(2, 1)))
    lost = worlds.without(
        world, "node-1", lambda o: isinstance(o, Fdb) and o.dst == ip_address("192.168.50.12")
    )
    down = worlds.with_link(lost, "node-1", veth("web-1"), up=False)
    loose = worlds.with_link(down, "node-1", veth("web-2"), master=None)
    gone = worlds.with_link(loose, "node-2", "flannel.1", up=False)
    return topology(replace(gone, unseen={"web-9": "its namespace is gone"}))


def dark() -> Topology:
    world = worlds.world(Shape(containers=(1, 1)))
    places = {name: place for name, place in world.places.items() if name != "node-2"}
    nodes = {
        **world.nodes,
        "node-2": model.Node("node-2", (ip_address("192.168.50.12"),), None, False, "ssh: no route to host"),
    }
    return topology(replace(world, places=places, nodes=nodes))


CASES: Mapping[str, Topology] = {
    "usual": usual(),
    "host-gw": topology(worlds.world(Shape(backend="host-gw"))),
    "broken": broken(),
    "dark": dark(),
    "many": topology(worlds.world(Shape(containers=(14, 1, 2, 3, 1)))),
    "empty": Topology(()),
}


@pytest.fixture(params=CASES)
def found(request: pytest.FixtureRequest) -> Topology:
    return CASES[request.param]


def text(found: Topology, width: int | None = None) -> str:
    return click.unstyle(graph_text(found, width))


@pytest.mark.parametrize("width", [40, 80])
def test_no_line_is_wider_than_the_terminal(found: Topology, width: int):
    assert max(map(cells, text(found, width).splitlines())) <= width


def test_everything_is_in_the_tree(found: Topology):
    shown = text(found, 200)
    for host in found.hosts:
        assert host.name in shown
        assert all(device.name in shown for device in host.devices)
        assert all(f"{one.name} " in shown for one in host.containers)
        assert all(f"{peer.subnet} → " in shown for peer in host.peers)
        assert all(words in shown for words in host.differences or ())
    assert all(service.id in shown for service in found.services)


def test_the_tree_of_a_host():
    lines = text(usual()).splitlines()
    start = lines.index("node-1  192.168.50.11  agent running")
    assert lines[start + 1 : start + 8] == [
        "├─ cni0 10.244.1.1/24  bridge, mtu 1450",
        f"│  ├─ web-1 10.244.1.2/24  by {veth('web-1')}",
        f"│  └─ web-2 10.244.1.3/24  by {veth('web-2')}",
        "├─ flannel.1 10.244.1.0/32  VXLAN vni 1, mtu 1450",
        "│  ├─ 10.244.2.0/24 → node-2 192.168.50.12",
        "│  └─ 10.244.3.0/24 → node-3 192.168.50.13",
        "└─ eth0 192.168.50.11/24  underlay, mtu 1500",
    ]


def test_services_with_what_stands_behind_them():
    shown = text(usual())
    assert "default/web 10.112.0.10  80/tcp, nodePort 30080" in shown
    assert "web-1 10.244.1.2:80  on node-1" in shown
    assert "web-3 10.244.2.2:80  on node-2  ✗ not ready" in shown
    assert "─ 192.0.2.1:80" in shown
    assert "✗ no endpoints" in shown


def test_what_is_wrong_has_a_sign_and_a_word():
    shown = text(broken(), 200)
    assert "✗ 10.244.2.0/24 → nowhere  fdb missing" in shown
    assert f"✗ {veth('web-1')} down" in shown
    assert f"✗ web-2 10.244.1.3/24  by {veth('web-2')}, on no bridge" in shown
    assert "✗ changed: flannel.1" in shown
    assert "? web-9 could not be looked at: its namespace is gone" in shown
    assert "? could not be looked at: ssh: no route to host" in text(dark())
    assert "✗ no node record" in text(dark())


def test_the_drawing_is_well_formed_and_self_contained(found: Topology):
    written = graph_svg(found)
    ElementTree.fromstring(written)
    assert re.findall(r"https?://[^\"]*", written) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"<script|href|@import", written)
    assert written == graph_svg(found)


def test_texts_of_the_drawing_are_inside_and_do_not_overlap(found: Topology):
    drawing = sheet(found)
    texts = [one for one in drawing.texts if one.text]
    assert all(drawing.box.holds(one.box) for one in texts)
    letters = [one.box._replace(y=one.box.y + 1.5, height=one.box.height - 3) for one in texts]
    overlapping = [
        (texts[a].text, texts[b].text)
        for a in range(len(letters))
        for b in range(a)
        if letters[a].overlaps(letters[b])
    ]
    assert overlapping == []


def test_the_drawing_says_what_differs():
    words = " ".join(ElementTree.fromstring(graph_svg(broken())).itertext())
    assert "What differs from what should be" in words
    assert "fdb missing" in words
    assert "web-9 could not be looked at" in words


def test_more_containers_than_fit_are_counted():
    words = " ".join(ElementTree.fromstring(graph_svg(CASES["many"])).itertext())
    assert "and 2 containers more" in words


def test_the_page_has_tables_of_everything(found: Topology):
    page = graph_html(found)
    for host in found.hosts:
        assert all(one.name in page for one in host.containers)
        assert all(str(one.mac) in page for one in host.containers)
    assert "<script" not in page


CHART = [
    re.compile(pattern)
    for pattern in (
        r"flowchart TB",
        r'  subgraph h\d+\["[^"#;]+"\]',
        r"  end",
        r'    h\d+[dcx]\d*(?:\["(?:[^"#;]|#\d+;)+"\]|\("(?:[^"#;]|#\d+;)+"\))',
        r"    h\d+c\d+ --- h\d+d\d+",
        r"  h\d+ --- u",
        r'  u\(\["underlay"\]\)',
        r'  o\("outside  [^"#;]+"\)',
        r"  o --- u",
        r'  h\d+ (?:-\.->|-->)\|"(?:[^"#;]|#\d+;)+"\| h\d+',
        r'  s\d+\{\{"(?:[^"#;]|#\d+;)+"\}\}',
        r"  s\d+ (?:-->|-\.-x) h\d+c\d+",
    )
]


def test_every_statement_of_the_flow_chart_is_one(found: Topology):
    (chart,) = re.findall(r"```mermaid\n(.*?)```", graph_mermaid(found), re.DOTALL)
    for line in chart.strip("\n").split("\n"):
        assert any(statement.fullmatch(line) for statement in CHART), line


@pytest.mark.parametrize("draw", [text, graph_mermaid, graph_svg, graph_html])
def test_outside_is_in_every_form(draw: Callable[[Topology], str]):
    whole = replace(usual(), outside=("203.0.113.10/24",))
    assert "outside  203.0.113.10/24  a client that is no host" in draw(whole)
    assert "a client that is no host" not in draw(replace(usual(), outside=None))


def test_the_page_says_its_title_once():
    page = graph_html(usual())
    (drawing,) = re.findall("<svg.*</svg>", page, re.DOTALL)
    assert headline(usual()) not in "".join(re.findall("<text[^>]*>([^<]*)", drawing))
    assert f"<h1>{headline(usual())}</h1>" in page


def test_what_is_wrong_with_a_way_is_drawn_in_full():
    host = usual().hosts[0]
    peer = host.peers[0]._replace(
        host=None, to=ip_address("192.168.150.199"), state="changed", problems=("fdb changed", "neigh missing")
    )
    drawing = graph_svg(replace(usual(), hosts=(host._replace(peers=(peer,)), *usual().hosts[1:])))
    said = " ".join(re.findall(r"<text[^>]*>(?:<title>[^<]*</title>)?([^<]*)", drawing))
    assert "✗ no known host 192.168.150.199" in said
    assert "fdb changed, neigh missing" in said


def test_hostile_names_are_words():
    evil = '"]\nend <script>alert(1)</script>#;'
    host = usual().hosts[0]
    worse = host._replace(name=evil, containers=(host.containers[0]._replace(name=evil),))
    found = replace(usual(), hosts=(worse,))
    ElementTree.fromstring(graph_svg(found))
    assert "<script" not in graph_svg(found) + graph_html(found) + graph_mermaid(found)
    assert "\n" not in text(found).splitlines()[2]
