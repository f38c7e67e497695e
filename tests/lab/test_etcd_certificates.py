"""`agent/etcd/certificates`: what it makes, with which modes, and what it refuses to touch."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from helpers.secure_etcd import certificates

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("etcd") / "certificates"
    certificates("new", made)
    certificates("member", made, "etcd-1", "192.0.2.11", "fd00::11", "etcd-1.example")
    certificates("agent", made, "node-1")
    certificates("operator", made, "alice")
    certificates("client", made, "node-2")
    certificates("root", made)
    return made


def shown(file: Path, *what: str) -> str:
    argv = ["openssl", "x509", "-in", str(file), "-noout", *what]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def refusal(*words: str | Path) -> str:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        certificates(*words)
    assert caught.value.returncode == 2
    return str(caught.value.stderr)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_keys_are_their_owners_and_certificates_may_be_read(folder: Path) -> None:
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
    assert {mode for path, mode in modes.items() if path.suffix == ".key"} == {0o600}
    assert {mode for path, mode in modes.items() if path.suffix == ".crt"} == {0o644}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {path.suffix for path in modes if path.is_file()} == {".key", ".crt"}


@pytest.mark.parametrize(
    ("client", "user"),
    [("node-1", "overlaynet-agent"), ("alice", "overlaynet-operator"), ("node-2", "node-2"), ("root", "root")],
)
def test_common_name_is_the_user_and_the_certificate_a_clients_alone(
    folder: Path, client: str, user: str
) -> None:
    file = folder / "clients" / client / "client.crt"
    assert shown(file, "-subject", "-nameopt", "RFC2253").strip() == f"subject=CN={user},O={client}"
    assert shown(file, "-ext", "extendedKeyUsage").split("\n")[1].strip() == "TLS Web Client Authentication"
    assert "CA:FALSE" in shown(file, "-ext", "basicConstraints")


def test_member_is_named_by_every_address_and_by_no_user(folder: Path) -> None:
    names = shown(folder / "members/etcd-1/server.crt", "-ext", "subjectAltName")
    for name in ("IP Address:192.0.2.11", "IP Address:FD00", "DNS:etcd-1.example", "IP Address:127.0.0.1"):
        assert name in names
    for file in ("server", "peer"):
        assert "CN = member etcd-1" in shown(folder / f"members/etcd-1/{file}.crt", "-subject")


def test_peers_have_an_authority_of_their_own(folder: Path) -> None:
    def valid(ca: str, file: str) -> bool:
        argv = ["openssl", "verify", "-CAfile", str(folder / ca), str(folder / file)]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    assert valid("ca.crt", "clients/node-1/client.crt")
    assert valid("ca.crt", "members/etcd-1/server.crt")
    assert valid("peer-ca.crt", "members/etcd-1/peer.crt")
    assert not valid("peer-ca.crt", "clients/node-1/client.crt")
    assert not valid("ca.crt", "members/etcd-1/peer.crt")


@pytest.mark.parametrize(
    "words", [("new",), ("member", "etcd-1", "192.0.2.11"), ("agent", "node-1"), ("client", "node-1")]
)
def test_nothing_is_overwritten(folder: Path, words: tuple[str, ...]) -> None:
    before = contents(folder)
    assert "nothing was changed" in refusal(words[0], folder, *words[1:])
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "a b", "CN=x", "x" * 65])
def test_name_that_cannot_be_a_path_is_refused(folder: Path, name: str) -> None:
    before = contents(folder)
    assert name in refusal("agent", folder, name)
    assert name in refusal("member", folder, name, "192.0.2.1")
    assert contents(folder) == before


@pytest.mark.parametrize("address", ["", "a b", "192.0.2.1,DNS:other", "x/24"])
def test_address_that_would_be_several_names_is_refused(folder: Path, address: str) -> None:
    assert "neither an address nor a host's name" in refusal("member", folder, "etcd-9", address)
    assert not (folder / "members/etcd-9").exists()


def test_renewal_keeps_key_and_names(folder: Path) -> None:
    place = folder / "members/etcd-1"
    before = {file: file.read_bytes() for file in place.iterdir()}
    names = shown(place / "server.crt", "-ext", "subjectAltName,extendedKeyUsage,keyUsage,basicConstraints")
    certificates("-d", "30", "renew", folder, "members/etcd-1")
    changed = {file.name for file in place.iterdir() if file.read_bytes() != before.get(file)}
    assert changed == {"server.crt", "peer.crt"}
    assert (
        shown(place / "server.crt", "-ext", "subjectAltName,extendedKeyUsage,keyUsage,basicConstraints")
        == names
    )
    assert shown(place / "server.crt", "-checkend", str(29 * 86_400)).startswith("Certificate will not expire")
    assert stat.S_IMODE((place / "server.crt").stat().st_mode) == 0o644


def test_list_tells_whom_and_until_when(folder: Path) -> None:
    lines = {line.split()[0]: line for line in certificates("list", folder).splitlines()}
    clients = {f"clients/{name}/client.crt" for name in ("node-1", "alice", "node-2", "root")}
    assert set(lines) == clients | {
        "ca.crt",
        "peer-ca.crt",
        "members/etcd-1/server.crt",
        "members/etcd-1/peer.crt",
    }
    assert lines["clients/node-1/client.crt"].endswith("CN=overlaynet-agent,O=node-1")
    year = shown(folder / "ca.crt", "-enddate").split()[-2]
    assert lines["ca.crt"].split()[1].startswith(year)
