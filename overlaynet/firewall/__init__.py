"""The packet filter: policies in, iptables chains out, and back.

    policies ─ render ─► Rendered ─┐
                                   ├─ compare ─► RuleChanges ─ restore ─► text ─► iptables-restore
    iptables-save ─ readback ─► RuleSet

Everything but `iptables` is pure. Ours are the chains whose names begin with ``OVL-`` and, in all other
chains, the rules that jump to one of those or whose comment begins with ``overlaynet: ``. Nothing else is
ever written. Base rules here differ from flannel's in three ways: each table changes in one atomic commit
(no moment without NAT at a restart), only chains that differ are named (counters of the rest survive), and
order and duplicates count as drift.
"""
