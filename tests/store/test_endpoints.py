"""Endpoints and certificates as the operator writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from overlaynet.errors import ConfigError
from overlaynet.store.etcd import EtcdStore
from overlaynet.store.etcd.endpoints import Certificates, Endpoint, parse_endpoints, read_certificates

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


TLS = parse_endpoints(["https://host"])
PLAIN = parse_endpoints(["http://host"])


def test_certificates_are_read(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text(name)
    found = read_certificates(TLS, tmp_path / "ca", tmp_path / "cert", tmp_path / "key")
    assert found == Certificates(b"ca", b"cert", b"key")
    assert read_certificates(TLS, tmp_path / "ca", None, None) == Certificates(ca=b"ca")
    assert read_certificates(PLAIN, None, None, None) == Certificates()


def test_certificates_without_tls_are_refused_not_ignored(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not use TLS") as caught:
        read_certificates([*TLS, *PLAIN], tmp_path / "ca", None, None)
    assert caught.value.evidence == "http://host"


def test_certificate_without_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="belong together"):
        read_certificates(TLS, None, tmp_path / "cert", None)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent"):
        EtcdStore(["https://host"], ca=tmp_path / "absent")
