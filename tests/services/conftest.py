"""One net of hosts for each variant of iptables, shared by every test; each test leaves the hosts empty."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import pytest
from helpers.service_net import ServiceNet, service_net

from overlaynet.firewall.iptables import FLAVOURS


@pytest.fixture(scope="session", params=FLAVOURS)
def whole_net(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceNet]:
    lock = tmp_path_factory.mktemp("services") / "xtables.lock"
    with mock.patch.dict(os.environ, XTABLES_LOCKFILE=str(lock)), service_net(request.param) as made:
        yield made


@pytest.fixture
def net(whole_net: ServiceNet) -> Iterator[ServiceNet]:
    try:
        yield whole_net
    finally:
        whole_net.ended()
