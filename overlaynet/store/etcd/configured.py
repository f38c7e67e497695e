"""A client of the etcd that settings name."""

from __future__ import annotations

from overlaynet.config import EtcdConfig
from overlaynet.store.etcd.client import EtcdStore


def connect(etcd: EtcdConfig) -> EtcdStore:
    """The caller's to close. Raises ConfigError for endpoints or files that cannot be used."""
    return EtcdStore(
        etcd.endpoints,
        ca=etcd.ca,
        cert=etcd.cert,
        key=etcd.key,
        username=etcd.username,
        password_file=etcd.password_file,
    )
