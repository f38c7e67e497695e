"""Reading every lease: `EtcdStore.read` against `get_prefix` of etcd3's own client, on the same real etcd.

"decode" is our `codec.decode` of what was read, beside `json.loads` of the values alone.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import etcd3
from bench import cluster
from bench.measure import ROUNDS, Row, compare, cost
from helpers.etcd import running_etcd

from overlaynet.store import codec
from overlaynet.store.etcd import EtcdStore

ABOUT = "reading leases; other: etcd3's client, json.loads"


def rows(sizes: Sequence[int]) -> Iterator[Row]:
    for peers in sizes:
        with tempfile.TemporaryDirectory(prefix="ovl-bench-") as name, running_etcd(Path(name)) as server:
            store = EtcdStore([server.unix_url])
            host, _, port = server.url.removeprefix("http://").partition(":")
            other = etcd3.client(host=host, port=int(port))
            cluster.fill(store, peers)
            yield from _rows(peers, store, other)
            other.close()
            store.close()


def _rows(peers: int, store: EtcdStore, other: etcd3.Etcd3Client) -> Iterator[Row]:
    prefixes = [cluster.KEYS.subnets]
    items = store.read(prefixes).items
    assert len(items) == len(list(other.get_prefix(prefixes[0]))) == peers
    reads, decodes = [], []
    for _ in range(ROUNDS):
        reads.append((cost(lambda: store.read(prefixes)), cost(lambda: list(other.get_prefix(prefixes[0])))))
        ours = cost(lambda: [codec.decode(item, cluster.KEYS) for item in items])
        decodes.append((ours, cost(lambda: [json.loads(item.value) for item in items])))
    yield from compare("read", peers, reads, goal=0.5, each=peers)
    yield from compare("decode", peers, decodes, each=peers)
