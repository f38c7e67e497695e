"""Until when an engine may believe in its subnet, and that it never does longer."""

from __future__ import annotations

import pytest
from helpers.cluster import Member, codes, joined, later, remembering
from helpers.model import KEYS, engine, lease, subnet, vtep_mac

from overlaynet.errors import StoreUnavailable
from overlaynet.events import ClaimSubnet, Intent, LeaseExpired, Register, Renewed, StoreLost
from overlaynet.model import Identity
from overlaynet.ports import Delete
from overlaynet.store.memory import MemoryStore

pytestmark = pytest.mark.unit

AWAY = StoreUnavailable("away")
DAY_S = 86_400


def stopped_after(store: MemoryStore, kind: type[Intent]) -> Member:
    """An agent that stands still just as etcd has done something of this kind for it, cut off from etcd."""
    member = Member(store, remembering(1))
    while not any(isinstance(intent, kind) for intent in member.todo):
        assert member.step()
    while member.todo:
        member._carry_out(member.todo.popleft())
    member.worker._watch.cancel()
    return member


def wake(member: Member, now: float) -> None:
    """The agent goes on, and hears what has waited for it meanwhile."""
    member.now = now
    while member.events:
        member.hear(member.events.popleft())


def test_lease_is_confirmed_until_its_time_runs_out_without_a_renewal(store):
    member = joined(store)
    before = dict(member.engine.desired.objects)
    member.hear(Renewed(member.engine.lease.lease_id, 86_400, 100.0))
    member.hear(StoreLost(AWAY))
    member.wait(99.0)
    assert member.engine.confirmed
    member.wait(1.0)
    assert not member.engine.confirmed
    assert codes(member) == ["OVL-301", "OVL-408"]
    assert member.engine.desired.objects == before
    member.hear(Renewed(member.engine.lease.lease_id, 86_400, 500.0))
    assert member.engine.confirmed


def test_lease_that_ran_out_is_claimed_again_when_etcd_is_back(store):
    member = joined(store)
    lease_id = member.engine.lease.lease_id
    member.hear(Renewed(lease_id, 86_400, 10.0))
    store.revoke(lease_id)
    member.events.clear()
    member.wait(10.0)
    member.hear(LeaseExpired(lease_id))
    member.settle()
    assert member.engine.confirmed
    assert member.engine.lease.value.subnets == (subnet(1),)


# --- news that waited -----------------------------------------------------------------------------


def test_claim_whose_answer_is_heard_when_its_time_is_over_confirms_nothing(store):
    late = stopped_after(store, ClaimSubnet)
    store.advance(DAY_S)
    other = joined(store, 2, identity=Identity("id-2", vtep_mac(2), (subnet(1),)))
    wake(late, DAY_S)
    assert late.engine.lease.value.subnets == other.engine.lease.value.subnets == (subnet(1),)
    assert not late.engine.confirmed
    assert codes(late) == ["OVL-408"]


def test_claim_whose_answer_is_heard_late_is_confirmed_for_the_rest_of_its_time(store):
    late = stopped_after(store, ClaimSubnet)
    wake(late, DAY_S - 10.0)
    assert late.engine.confirmed
    late.wait(10.0)
    assert not late.engine.confirmed


def test_lease_found_at_a_start_confirms_nothing_before_it_is_renewed(store):
    joined(store)
    late = stopped_after(store, Register)
    store.advance(DAY_S)
    joined(store, 2, identity=Identity("id-2", vtep_mac(2), (subnet(1),)))
    wake(late, DAY_S)
    assert not late.engine.confirmed
    late.settle()
    assert late.engine.confirmed
    assert late.engine.lease.value.subnets != (subnet(1),)


def test_restart_renews_the_lease_it_finds_and_writes_nothing(store):
    before = joined(store)
    revision = store.read([]).revision
    store.advance(10.0)
    again = Member(store, engine(1, identity=before.engine.local.identity), now=10.0)
    again.settle()
    assert again.engine.lease == before.engine.lease
    assert store.read([]).revision == revision
    assert store.time_to_live(again.engine.lease.lease_id) == DAY_S
    again.wait(DAY_S - 1.0)
    assert again.engine.confirmed
    again.wait(1.0)
    assert not again.engine.confirmed


def test_lease_that_is_deleted_between_listing_and_renewal_is_claimed_again(store):
    before = joined(store)
    again = stopped_after(store, Register)
    store.commit([], [Delete(before.engine.lease.key)])
    wake(again, 0.0)
    later(again, 1.0)
    assert again.engine.confirmed
    assert again.engine.lease.value.subnets == (subnet(1),)
    assert [item.key for item in store.read([KEYS.subnets]).items] == [KEYS.lease(lease(1).subnets)]
