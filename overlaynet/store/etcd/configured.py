"""A client of the etcd that settings name. The password is read here and nowhere else."""

from __future__ import annotations

from pathlib import Path

from overlaynet.config import EtcdConfig
from overlaynet.errors import ConfigError
from overlaynet.store.etcd.client import EtcdStore


def connect(etcd: EtcdConfig) -> EtcdStore:
    """The caller's to close. Raises ConfigError for endpoints or files that cannot be used."""
    return EtcdStore(
        etcd.endpoints,
        ca=etcd.ca,
        cert=etcd.cert,
        key=etcd.key,
        username=etcd.username,
        password=_password(etcd.password_file),
    )


def _password(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text("utf-8").rstrip("\n")
    except OSError as error:
        raise ConfigError("the etcd password file cannot be read", evidence=str(error)) from None
