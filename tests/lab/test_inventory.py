"""Names of hosts in a client configuration of OpenSSH."""

from __future__ import annotations

import pytest

from overlaynet.errors import NameInvalid, UsageError
from overlaynet.lab.inventory import host_names

pytestmark = pytest.mark.unit

VAGRANT = """\
Host node-1
  HostName 192.168.121.7
  User vagrant
  Port 22
  UserKnownHostsFile /dev/null
  StrictHostKeyChecking no
  PasswordAuthentication no
  IdentityFile "/home/u/my labs/.vagrant/private_key"
  IdentitiesOnly yes
  LogLevel FATAL

Host node-2
  HostName 192.168.121.8
"""


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (VAGRANT, ("node-1", "node-2")),
        ("host a b\nHOST=c\n  Host = d\n", ("a", "b", "c", "d")),
        ('Host "a" a # and not b\n', ("a",)),
        ("# Host a\n\nHost b\n", ("b",)),
        ("Host * !x n-? a\nMatch host zz\n  User u\nHostName yy\n", ("a",)),
        ("Include others\nHost a\n", ("a",)),
        ("Host b\nHost a b\n", ("b", "a")),
    ],
)
def test_names_without_a_pattern_are_hosts_in_their_order(text: str, names: tuple[str, ...]) -> None:
    assert host_names(text, "file") == names


@pytest.mark.parametrize("name", ["github.com", "Node", "-x", "etcd", "a" * 33, "a;b"])
def test_name_that_no_host_may_have_is_refused_with_its_line(name: str) -> None:
    with pytest.raises(NameInvalid, match=r"^file:2: host "):
        host_names(f"Host good\nHost {name}\n", "file")


@pytest.mark.parametrize(
    ("text", "evidence"),
    [("", "is a host of the lab"), ("Host *\n", "is a host"), ("Include x\n", "not counted")],
)
def test_file_without_a_host_is_told(text: str, evidence: str) -> None:
    with pytest.raises(UsageError, match="names no host") as caught:
        host_names(text, "file")
    assert evidence in caught.value.evidence


def test_line_that_does_not_end_its_quotes_is_refused_with_its_number() -> None:
    with pytest.raises(UsageError, match=r"^file:3: "):
        host_names('\n\nHost "a\n', "file")
