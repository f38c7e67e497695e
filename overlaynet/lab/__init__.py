"""Hosts and containers made of network namespaces, with the real agent on each."""
