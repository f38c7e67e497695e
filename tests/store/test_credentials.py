"""Files with certificates and a password: which are taken, and which refused before anything is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from overlaynet.errors import ConfigError
from overlaynet.store.etcd import EtcdStore
from overlaynet.store.etcd.credentials import Certificates, Credentials
from overlaynet.store.etcd.endpoints import parse_endpoints

pytestmark = pytest.mark.unit

TLS = parse_endpoints(["https://host"])
PLAIN = parse_endpoints(["http://host"])


def made(path: Path, text: str, mode: int) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def refusal(credentials: Credentials) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        credentials.check(TLS)
    return caught.value


def test_certificates_are_read_as_they_are_now(tmp_path: Path) -> None:
    ca, cert = made(tmp_path / "ca", "ca", 0o644), made(tmp_path / "cert", "cert", 0o644)
    files = Credentials(ca, cert, made(tmp_path / "key", "key", 0o640))
    assert files.certificates() == Certificates(b"ca", b"cert", b"key")
    cert.write_text("renewed")
    assert files.certificates().cert == b"renewed"
    assert Credentials().certificates() == Certificates()


def test_certificates_without_tls_are_refused_not_ignored(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not use TLS") as caught:
        Credentials(ca=tmp_path / "ca").check([*TLS, *PLAIN])
    assert caught.value.evidence == "http://host"


def test_certificate_without_key_is_refused(tmp_path: Path) -> None:
    assert "belong together" in refusal(Credentials(cert=tmp_path / "cert")).message


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"etcd\.ca: cannot read .*absent"):
        EtcdStore(["https://host"], ca=tmp_path / "absent")


@pytest.mark.parametrize("setting", ["ca", "cert"])
def test_file_without_a_certificate_is_refused(tmp_path: Path, setting: str) -> None:
    junk, key = made(tmp_path / "junk", "junk", 0o644), made(tmp_path / "key", "junk", 0o600)
    error = refusal(Credentials(ca=junk) if setting == "ca" else Credentials(cert=junk, key=key))
    assert str(junk) in error.message + error.evidence


@pytest.mark.parametrize(
    ("mode", "taken"),
    [
        pytest.param(0o400, True, id="owner"),
        pytest.param(0o600, True, id="owner-may-write"),
        pytest.param(0o640, True, id="group-may-read"),
        pytest.param(0o660, False, id="group-may-write"),
        pytest.param(0o604, False, id="others-may-read"),
        pytest.param(0o644, False, id="usual"),
        pytest.param(0o602, False, id="others-may-write"),
    ],
)
def test_password_that_others_can_read_or_write_is_refused(tmp_path: Path, mode: int, taken: bool) -> None:
    path = made(tmp_path / "password", "secret\n", mode)
    credentials = Credentials(username="u", password_file=path)
    if taken:
        credentials.check(PLAIN)
        assert credentials.password() == "secret"
        return
    error = refusal(credentials)
    assert str(path) in error.message
    assert f"mode is {mode:04o}" in error.evidence
    assert error.next == (f"chmod 0600 {path}",)
    assert "secret" not in f"{error.message} {error.evidence}"


def test_key_is_guarded_like_a_password_and_a_certificate_only_against_writing(tmp_path: Path) -> None:
    cert, key = made(tmp_path / "cert", "cert", 0o644), made(tmp_path / "key", "key", 0o644)
    assert f"can read {key}" in refusal(Credentials(cert=cert, key=key)).message
    cert.chmod(0o666)
    assert f"can write {cert}" in refusal(Credentials(cert=cert, key=key)).message


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe\n"])
def test_password_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "password"
    path.touch(0o600)
    path.write_bytes(content)
    assert "password" in refusal(Credentials(username="u", password_file=path)).message


def test_only_the_first_line_counts(tmp_path: Path) -> None:
    path = made(tmp_path / "password", "se cret\r\nnote\n", 0o600)
    assert Credentials(username="u", password_file=path).password() == "se cret"


def test_what_is_printed_holds_no_secret(tmp_path: Path) -> None:
    path = made(tmp_path / "password", "hunter2\n", 0o600)
    store = EtcdStore(["http://127.0.0.1:1"], username="u", password_file=path)
    parts = (store, store._connection, store._connection._credentials, vars(store._connection))
    assert "hunter2" not in "".join(map(repr, parts))
    store.close()
