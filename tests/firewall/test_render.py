from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
from helpers.firewall_cases import BASE, CASES, DEVICES, OVERLAY, PEERS_ONLY, Case
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.firewall.chains import CHAIN_NAME_MAX, Dispatch, Part, chain_key, comment, probability, rule
from overlaynet.firewall.compare import pending
from overlaynet.firewall.render import FORWARD, INPUT, POSTROUTING, assemble, render
from overlaynet.firewall.restore import restore_text
from overlaynet.state import ForwardAccept, Masquerade, Policy, RuleSet, Source, VxlanGuard

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES])
def test_rules_are_as_reviewed(case: Case, update_golden: bool):
    want = case.rendered()
    text = restore_text(pending(want, RuleSet("empty"), {}))
    golden = GOLDEN / f"{case.name}.rules"
    if update_golden:
        golden.write_text(text)
    assert text == golden.read_text()


def test_no_golden_file_is_left_over():
    assert {path.stem for path in GOLDEN.glob("*.rules")} == {case.name for case in CASES}


def test_forged_frames_are_dropped_before_anything_is_accepted():
    texts = render(BASE, random_fully=True).chains[FORWARD]
    targets = [text.rsplit(" -j ", 1)[1] for text in texts]
    assert targets == ["DROP"] * (1 + len(DEVICES)) + ["ACCEPT", "ACCEPT"]


def test_peers_are_asked_only_about_vxlan_and_the_rest_is_dropped():
    want = render(PEERS_ONLY, random_fully=True)
    jump = want.chains[INPUT][-1]
    assert "--dport 8472" in jump
    assert jump.endswith("-j OVL-VXLAN-8472")
    peers = want.chains[("filter", "OVL-VXLAN-8472")]
    assert [text.rsplit(" ", 1)[1] for text in peers] == ["ACCEPT", "ACCEPT", "DROP"]


def test_nothing_wanted_renders_nothing():
    assert render({}, random_fully=True) == assemble({})
    assert not assemble({}).chains


def test_a_family_without_networks_renders_nothing():
    assert not render(BASE, random_fully=True, family=6).chains


def test_every_rule_knows_who_asked_for_it():
    want = render(PEERS_ONLY, random_fully=True)
    assert set(want.origins[POSTROUTING]) == {Source("policy", "masquerade")}
    assert set(want.origins[FORWARD]) == {Source("policy", "vxlan"), Source("policy", "forward")}
    assert all(len(want.origins[key]) == len(rules) for key, rules in want.chains.items())


def test_shared_chain_is_sorted_by_order_then_by_policy():
    rules = {
        name: rule(name, "ACCEPT", src=ip_network(f"10.0.0.{i}/32")) for i, name in enumerate(["x", "y", "z"])
    }
    late, early, second = (
        Part(dispatch=(Dispatch(o, FORWARD, rules[n]),)) for o, n in ((9, "x"), (1, "y"), (1, "z"))
    )
    want = assemble({"a": late, "c": second, "b": early})
    assert want.chains[FORWARD] == (rules["y"], rules["z"], rules["x"])


def test_two_policies_may_not_own_one_chain():
    part = Part({chain_key("nat", "OVL-SVC-A"): ()})
    with pytest.raises(ValueError, match="OVL-SVC-A"):
        assemble({"one": part, "two": part})


NETWORKS = st.lists(
    st.integers(0, 255).map(lambda n: ip_network(f"10.{n}.0.0/16")), min_size=1, max_size=3, unique=True
).map(tuple)
POLICIES: st.SearchStrategy[dict[str, Policy]] = st.dictionaries(
    st.sampled_from("abc"),
    st.one_of(
        st.builds(ForwardAccept, NETWORKS),
        st.builds(Masquerade, NETWORKS, NETWORKS),
    ),
)


@given(POLICIES, st.booleans())
def test_rendering_ignores_the_order_of_policies(policies: dict[str, Policy], random_fully: bool):
    backwards = dict(reversed(policies.items()))
    assert render(policies, random_fully=random_fully) == render(backwards, random_fully=random_fully)


@given(st.integers(1, 65535), st.sets(st.integers(1, 250), max_size=5))
def test_names_and_comments_fit_the_kernel(port: int, peers: set[int]):
    guard = VxlanGuard(port, OVERLAY, tuple(ip_network(f"192.0.2.{n}").network_address for n in peers))
    want = render({"vxlan": guard}, random_fully=True)
    assert all(len(chain) <= CHAIN_NAME_MAX for _, chain in want.chains)


@pytest.mark.parametrize("name", ["FORWARD", "OVL-" + "X" * 25, "ovl-forward"])
def test_a_chain_that_would_not_be_ours_is_refused(name: str):
    with pytest.raises(ValueError, match=name):
        chain_key("filter", name)


@pytest.mark.parametrize("why", ["x" * 256, "two\nlines"])
def test_a_comment_the_kernel_would_cut_is_refused(why: str):
    with pytest.raises(ValueError, match="comment"):
        comment(why)


def test_comment_escapes_what_iptables_save_escapes():
    assert comment('it\'s "a" \\') == r'-m comment --comment "overlaynet: it\'s \"a\" \\"'


@pytest.mark.parametrize(
    ("share", "text"), [(1 / 3, "0.33333333349"), (0.5, "0.50000000000"), (1, "1.00000000000")]
)
def test_probability_is_spelt_as_the_kernel_keeps_it(share: float, text: str):
    assert probability(share).endswith(f" {text}")
