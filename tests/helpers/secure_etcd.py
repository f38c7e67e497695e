"""Three etcd members on loopback as docs/etcd.md sets them up: by its scripts, with TLS and users."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from helpers.etcd import EtcdServer, leader_of
from helpers.ports import free_port

from overlaynet.config import EtcdConfig
from overlaynet.store.etcd import EtcdStore, connect

SCRIPTS = Path(__file__).resolve().parents[2] / "agent" / "etcd"
ADDRESS = "127.0.0.1"
NAMES = ("etcd-1", "etcd-2", "etcd-3")
AGENT, OPERATOR, ROOT = "overlaynet-agent", "overlaynet-operator", "root"


def certificates(*words: str | Path) -> str:
    """What the script of that name says. Raises CalledProcessError."""
    argv = [str(SCRIPTS / "certificates"), *map(str, words)]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


class CommandRefused(Exception):
    """Its words are what the command said on standard error."""


class SecureMember(EtcdServer):
    """A member whose every setting comes from member.conf, but for the ports and where files are."""

    def __init__(self, directory: Path, certs: Path, peer_port: int, members: str) -> None:
        super().__init__(directory, scheme="https")
        self.peer_url = f"https://{ADDRESS}:{peer_port}"
        self.certs = certs
        self._settings = self._configured(members)

    def _configured(self, members: str) -> list[str]:
        text = (SCRIPTS / "member.conf").read_text()
        values = {
            f"https://{ADDRESS}:2379,https://127.0.0.1:2379": self.url,
            f"https://{ADDRESS}:2379": self.url,
            f"https://{ADDRESS}:2380": self.peer_url,
            "/var/lib/etcd/default": str(self.directory / "data"),
            "/etc/etcd/": f"{self.certs}/",
            "=MEMBERS": f"={members}",
            "=NAME": f"={self.directory.name}",
        }
        text = text.replace("ADDRESS", ADDRESS)
        for word in values:
            assert word in text, f"member.conf does not say {word}"
        text = re.sub("|".join(map(re.escape, values)), lambda found: values[found[0]], text)
        return [line for line in text.splitlines() if line and not line.startswith("#")]

    def set(self, name: str, value: str) -> None:
        """Change one setting, for the next start."""
        kept = [line for line in self._settings if not line.startswith(f"{name}=")]
        self._settings = [*kept, f"{name}={value}"]

    def _arguments(self) -> list[str]:
        return ["env", *self._settings, "etcd"]


@dataclass
class SecureEtcd:
    """The members, the folder of certificates, and who has which."""

    where: Path
    members: list[SecureMember] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.where / "certificates"

    @property
    def passwords(self) -> Path:
        return self.where / "passwords"

    @property
    def urls(self) -> list[str]:
        return [member.url for member in self.members]

    @property
    def logs(self) -> str:
        return "".join((member.directory / "etcd.log").read_text() for member in self.members)

    def client(self, name: str) -> Path:
        return self.folder / "clients" / name

    def settings(self, name: str, password_of: str | None = None) -> EtcdConfig:
        """Of the client who has the certificate `name`, and perhaps logs in with a password as well."""
        place = self.client(name)
        return EtcdConfig(
            endpoints=tuple(self.urls),
            ca=place / "ca.crt",
            cert=place / "client.crt",
            key=place / "client.key",
            username=password_of,
            password_file=self.passwords / f"{password_of}.password" if password_of else None,
        )

    def connect(
        self, name: str = ROOT, urls: Sequence[str] | None = None, deadline_s: float = 2.0
    ) -> EtcdStore:
        settings = self.settings(name)
        return EtcdStore(
            urls or self.urls, ca=settings.ca, cert=settings.cert, key=settings.key, deadline_s=deadline_s
        )

    def store(self, name: str, password_of: str | None = None) -> EtcdStore:
        return connect(self.settings(name, password_of))

    @property
    def leader(self) -> SecureMember:
        return leader_of(self.members, lambda urls: self.connect(urls=urls))

    def environ(self, name: str = ROOT) -> dict[str, str]:
        """etcdctl's own variables."""
        place = self.client(name)
        return {
            **os.environ,
            "ETCDCTL_API": "3",
            "ETCDCTL_ENDPOINTS": ",".join(self.urls),
            "ETCDCTL_CACERT": str(place / "ca.crt"),
            "ETCDCTL_CERT": str(place / "client.crt"),
            "ETCDCTL_KEY": str(place / "client.key"),
        }

    def etcdctl(self, *words: str, stdin: str = "", name: str = ROOT) -> str:
        """Raises CommandRefused."""
        return self._run(["etcdctl", *words], name, stdin)

    def authorize(self, *words: str | Path, name: str = ROOT) -> str:
        """Raises CommandRefused."""
        return self._run([str(SCRIPTS / "authorize"), *map(str, words)], name)

    def _run(self, argv: list[str], name: str, stdin: str = "") -> str:
        environ = self.environ(name)
        done = subprocess.run(
            argv, env=environ, input=stdin, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise CommandRefused(done.stderr)
        return done.stdout

    def start(self) -> None:
        with ThreadPoolExecutor(len(self.members)) as pool:
            list(pool.map(EtcdServer.start, self.members))

    def kill(self) -> None:
        for member in self.members:
            member.kill()


def made(where: Path, clients: tuple[str, ...] = ("node-1",)) -> SecureEtcd:
    """Certificates for three members, a root, an operator and some agents; nothing is started."""
    etcd = SecureEtcd(where)
    certificates("new", etcd.folder)
    for name in NAMES:
        certificates("member", etcd.folder, name, ADDRESS)
    certificates("root", etcd.folder)
    certificates("operator", etcd.folder, "alice")
    certificates("agent", etcd.folder, *clients)
    ports = [free_port() for _ in NAMES]
    members = ",".join(f"{name}=https://{ADDRESS}:{port}" for name, port in zip(NAMES, ports, strict=True))
    for name, port in zip(NAMES, ports, strict=True):
        (where / name).mkdir()
        etcd.members.append(SecureMember(where / name, etcd.folder / "members" / name, port, members))
    return etcd


@contextlib.contextmanager
def running(where: Path, *, authorized: bool = True) -> Iterator[SecureEtcd]:
    """The three of them, ended with the block; with users, roles and passwords unless asked otherwise."""
    etcd = made(where)
    try:
        etcd.start()
        if authorized:
            etcd.authorize("--passwords", etcd.passwords)
        yield etcd
    finally:
        etcd.kill()
