"""A host's state survives the trip through JSON."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network

import pytest
from helpers.states import kernels, objects, policies, rulesets
from hypothesis import assume, given

from overlaynet.addr import Mac
from overlaynet.core import jsonstate as js
from overlaynet.errors import UsageError, ValueInvalid
from overlaynet.state import (
    Change,
    Fdb,
    KernelState,
    Op,
    Route,
    RuleChange,
    Source,
    kind_of,
)

pytestmark = pytest.mark.unit


def through_json(document):
    return json.loads(json.dumps(document))


@given(objects)
def test_object_round_trip_is_exact(obj):
    back = js.object_from_json(through_json(js.object_to_json(obj)))
    assert (type(back), back) == (type(obj), obj)


@given(policies)
def test_policy_round_trip_is_exact(policy):
    back = js.policy_from_json(through_json(js.policy_to_json(policy)))
    assert (type(back), back) == (type(policy), policy)


@given(kernels)
def test_kernel_round_trip_is_exact(state):
    assert js.kernel_from_json(through_json(js.kernel_to_json(state))) == state


@given(rulesets)
def test_ruleset_round_trip_is_exact(rules):
    assert js.rules_from_json(through_json(js.rules_to_json(rules))) == rules


@given(objects)
def test_unknown_values_are_null_and_no_field_is_absent(obj):
    assert set(js.object_to_json(obj)) == {"kind", *obj._fields}


def test_large_host_round_trip_keeps_every_entry():
    base = int(IPv4Address("10.0.0.0"))
    many = range(20_000)
    state = KernelState(
        routes=tuple(Route(IPv4Network((base + 256 * n, 24)), "flannel.1", metric=n) for n in many),
        fdb=tuple(Fdb("flannel.1", Mac.from_bytes(n.to_bytes(6, "big")), ip_address(base + n)) for n in many),
    )
    assert js.kernel_from_json(through_json(js.kernel_to_json(state))) == state


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"kind": "ghost"},
        {"kind": "sysctl", "name": "a"},
        {"kind": "address", "dev": "eth0", "interface": "10.0.0.300/24"},
        {"kind": "neigh", "dev": "eth0", "ip": "10.0.0.1", "mac": "zz", "state": "permanent"},
    ],
)
def test_foreign_document_is_refused(document):
    with pytest.raises(ValueInvalid) as caught:
        js.object_from_json(document)
    assert caught.value.evidence


ROUTE = Route(ip_network("10.244.2.0/24"), "flannel.1", ip_address("10.244.2.0"), metric=2, onlink=True)
LEASE = Source("lease", "10.244.2.0-24")


@pytest.mark.parametrize(
    ("change", "op", "want", "have"),
    [
        (Change(Op.PUT, ROUTE), "missing", True, False),
        (Change(Op.PUT, ROUTE, ROUTE._replace(via=None)), "changed", True, True),
        (Change(Op.DROP, ROUTE), "extra", False, True),
    ],
)
def test_change_says_which_way_it_differs(change, op, want, have):
    document = js.change_to_json(change, LEASE)
    assert (document["op"], document["object"], document["key"]) == (op, "route", "254 10.244.2.0/24 2")
    assert (document["want"] is not None, document["have"] is not None) == (want, have)
    assert document["source"] == {"kind": "lease", "name": "10.244.2.0-24"}


def test_rule_change_has_the_same_form_as_an_object_change():
    change = RuleChange("missing", "nat", "OVL-POSTRTG", ("-j RETURN", "-j MASQUERADE"), None, LEASE)
    document = js.rule_change_to_json(change)
    assert set(document) == set(js.change_to_json(Change(Op.PUT, ROUTE), LEASE))
    assert (document["object"], document["want"], document["have"]) == (
        "rule",
        "-j RETURN\n-j MASQUERADE",
        None,
    )


@given(objects)
def test_key_survives_its_text(obj):
    """The kernel's names are neither empty nor hold blanks (net/core/dev.c, dev_valid_name)."""
    words = [part for part in obj.key[1:] if isinstance(part, str)]
    assume(all(word and " " not in word for word in words))
    assert js.key_from_text(str(kind_of(obj.key)), js.key_text(obj.key)) == obj.key


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("ghost", "a"),
        ("route", "10.0.0.0/8"),
        ("route", "x 10.0.0.0/8 1"),
        ("fdb", "dev"),
        ("link", "a b"),
        ("link", ""),
    ],
)
def test_text_that_is_no_key_is_refused(kind, text):
    with pytest.raises(UsageError):
        js.key_from_text(kind, text)
