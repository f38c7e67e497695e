"""Fifty agent processes start at one moment and want a subnet each, of sixty-four, from a real etcd."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import light_agent
from helpers.etcd import requires_etcd, running_etcd
from helpers.model import KEYS, network

from overlaynet.core.view import View
from overlaynet.ports import Put
from overlaynet.store import codec
from overlaynet.store.etcd import EtcdStore

pytestmark = [pytest.mark.lab, requires_etcd]

AGENTS = 50
SUBNETS = 64


def read_lines(process: subprocess.Popen[str], count: int) -> list[dict[str, Any]]:
    assert process.stdout is not None
    return [json.loads(process.stdout.readline()) for _ in range(count)]


def test_fifty_racing_agents_get_fifty_subnets_and_keep_them(tmp_path: Path) -> None:
    with running_etcd(tmp_path) as etcd:
        store = EtcdStore([etcd.url])
        config = codec.encode_network_config(network("10.244.0.0/16", 24, count=SUBNETS))
        store.commit([], [Put(KEYS.network_config, config), Put(KEYS.settings, b'{"NodeTTL":"120s"}')])
        argv = [sys.executable, light_agent.__file__, etcd.url, str(AGENTS)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            won = {line["node"]: line["subnet"] for line in read_lines(process, AGENTS)}
            listing = store.read(KEYS.watched)
            alive = [store.time_to_live(item.lease_id) for item in listing.items if item.lease_id]
            process.stdin.close()
            still = {line["node"]: line["still"] for line in read_lines(process, AGENTS)}
        store.close()
    view = View.of((codec.decode(item, KEYS) for item in listing.items), KEYS, listing.revision)
    held = {item.value.node_id: str(item.value.subnets[0]) for item in view.leases.values()}
    assert held == {f"id-{number}": subnet for number, subnet in won.items()}
    assert len(set(won.values())) == len(won) == AGENTS
    assert still == won
    assert len(view.nodes) == AGENTS
    assert min(alive) > 0
