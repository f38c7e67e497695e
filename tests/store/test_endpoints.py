"""Endpoints as the operator writes them."""

from __future__ import annotations

import pytest

from overlaynet.errors import ConfigError
from overlaynet.store.etcd.endpoints import Endpoint, parse_endpoints

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("url", "target"),
    [
        pytest.param("http://192.168.50.2:2379", "dns:///192.168.50.2:2379", id="ipv4"),
        pytest.param("http://192.168.50.2", "dns:///192.168.50.2:2379", id="usual-port"),
        pytest.param("http://192.168.50.2:2379/", "dns:///192.168.50.2:2379", id="slash-behind"),
        pytest.param("https://[fd00::2]:2379", "dns:///[fd00::2]:2379", id="ipv6"),
        pytest.param("https://etcd-1.example:4001", "dns:///etcd-1.example:4001", id="name"),
        pytest.param("unix:///run/x/etcd.sock:0", "unix:/run/x/etcd.sock:0", id="unix"),
    ],
)
def test_endpoint_becomes_a_grpc_target(url: str, target: str) -> None:
    assert parse_endpoints([url]) == (Endpoint(url, target, tls=url.startswith("https")),)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("192.168.50.2:2379", id="no-scheme"),
        pytest.param("ftp://192.168.50.2", id="other-scheme"),
        pytest.param("http://", id="no-host"),
        pytest.param("http://host:port", id="port-is-no-number"),
        pytest.param("http://host:2379/v2/keys", id="path"),
        pytest.param("unix://etcd.sock", id="relative-socket"),
        pytest.param("http://[fd00::2", id="open-bracket"),
        pytest.param("", id="empty"),
    ],
)
def test_what_is_no_endpoint_is_refused_by_name(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_endpoints([url])
    assert repr(url) in caught.value.message


def test_no_endpoint_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="no etcd endpoint"):
        parse_endpoints([])
