"""Fakes of the four ports, to be used by our tests and by anybody's.

Each passes the same contract suite as the real adapter, so a component that works on a fake meets the
same refusals as on the real thing; and each can be told to fail.
"""
