"""Values of `overlaynet.state`, any of them, for property tests."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

from hypothesis import strategies as st

from overlaynet.addr import Mac
from overlaynet.state import (
    Address,
    BridgePort,
    Endpoint,
    Fdb,
    ForwardAccept,
    IpRule,
    KernelState,
    LearnedMtu,
    Link,
    LinkInfo,
    Masquerade,
    Neigh,
    Route,
    RuleLine,
    RuleSet,
    ServicePortPolicy,
    ServicesPolicy,
    Sysctl,
    Vxlan,
    VxlanGuard,
)

text = st.text(max_size=8)
number = st.integers(0, 2**32 - 1)
flag = st.booleans()
mac = st.binary(min_size=6, max_size=6).map(Mac.from_bytes)
ips = st.ip_addresses()
networks = st.builds(
    lambda ip, cut: ip_network((ip, ip.max_prefixlen - cut), strict=False), ips, st.integers(0, 32)
)
interfaces = st.builds(lambda ip, cut: ip_interface((ip, ip.max_prefixlen - cut)), ips, st.integers(0, 32))


def maybe(strategy):
    return st.none() | strategy


def tuples(strategy):
    return st.lists(strategy, max_size=4).map(tuple)


vxlans = st.builds(Vxlan, number, number, ips, text, flag)
addresses = st.builds(Address, text, interfaces)
neighs = st.builds(Neigh, text, ips, maybe(mac), text)
fdbs = st.builds(Fdb, text, mac, maybe(ips), maybe(text), text)
routes = st.builds(
    Route, networks, maybe(text), maybe(ips), number, flag, number, number, text, text, maybe(ips)
)
objects = st.one_of(
    addresses,
    neighs,
    fdbs,
    routes,
    st.builds(Link, text, text, text, number, maybe(mac), maybe(vxlans), flag),
    st.builds(BridgePort, text, text, flag, flag, number),
    st.builds(Sysctl, text, text),
)
endpoints = st.builds(Endpoint, ips, number)
policies = st.one_of(
    st.builds(
        ServicePortPolicy,
        *(text, text, text, number),
        cluster_ips=tuples(ips),
        source_ranges=tuples(networks),
        cluster=tuples(endpoints),
        local=tuples(endpoints),
        usable=flag,
        serving=st.frozensets(endpoints, max_size=3),
        local_ready=number,
    ),
    st.builds(ServicesPolicy, tuples(networks), tuples(ips), maybe(tuples(ips)), tuples(networks), text),
    st.builds(Masquerade, tuples(networks), tuples(networks)),
    st.builds(ForwardAccept, tuples(networks)),
    st.builds(VxlanGuard, number, tuples(networks), maybe(tuples(ips)), tuples(text)),
)
links = st.builds(
    LinkInfo,
    number,
    text,
    text,
    maybe(mac),
    number,
    flag,
    flag,
    maybe(text),
    tuples(text),
    maybe(vxlans),
    maybe(flag),
    maybe(number),
)
kernels = st.builds(
    KernelState,
    st.lists(links, max_size=4).map(lambda found: {link.name: link for link in found}),
    tuples(addresses),
    tuples(neighs),
    tuples(fdbs),
    tuples(routes),
    tuples(st.builds(IpRule, number, text)),
    st.dictionaries(text, maybe(text), max_size=4),
    tuples(st.builds(LearnedMtu, ips, text, number, st.floats(0, 600))),
)
chain_keys = st.tuples(text, text)
rulesets = st.builds(
    RuleSet,
    text,
    st.dictionaries(chain_keys, tuples(st.builds(RuleLine, text, number, number)), max_size=4),
    st.dictionaries(chain_keys, text, max_size=4),
)
