"""What can be said of vagrant/ without Vagrant."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VAGRANTFILE = (ROOT / "vagrant" / "Vagrantfile").read_text()
AGENT_WHEELS = """\
#!/bin/sh
echo made >>"$MADE"
mkdir -p "$1"
: >"$1/SHA256SUMS"
"""


@pytest.mark.unit
def test_settings_that_are_used_are_explained_and_no_other() -> None:
    head, code = VAGRANTFILE.split("\n\ndef ", 1)
    explained = re.findall(r"^#   OVERLAYNET_VM_([A-Z]+) ", head, re.MULTILINE)
    used = re.findall(r'(?:setting|positive)\("([A-Z]+)"', code)
    assert sorted(explained) == sorted(set(used))
    page = (ROOT / "docs" / "vagrant.md").read_text()
    assert set(re.findall(r"OVERLAYNET_VM_([A-Z]+)", page)) <= set(explained)


@pytest.mark.unit
def test_underlay_is_one_network_for_vagrant_and_for_provisioning() -> None:
    provision = (ROOT / "vagrant" / "provision.sh").read_text()
    assert 'ip: "192.168.56.#{10 + number}"' in VAGRANTFILE
    assert "printf '192.168.56.%d' $((10 + $1))" in provision
    assert r'interface_regex = ["^192\\\\.168\\\\.56\\\\."]' in provision


@pytest.mark.unit
@pytest.mark.parametrize(
    "words", [[], ["1"], ["0", "1"], ["1", "01"], ["201", "1"], ["1", "-1"], ["1", "1", "1"]]
)
def test_provision_wants_two_numbers(words: list[str]) -> None:
    done = subprocess.run(["sh", ROOT / "vagrant" / "provision.sh", *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: provision.sh NUMBER ETCD_NUMBER")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What packing looks at; its wheels are made in no time."""
    for name in ("overlaynet/__init__.py", "labs/one.yaml", "agent/wheels", "vagrant/provision.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "agent/wheels").write_text(AGENT_WHEELS)
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        (tmp_path / name).write_text("")
    (tmp_path / "vagrant/pack").write_bytes((ROOT / "vagrant" / "pack").read_bytes())
    (tmp_path / "vagrant/upload").mkdir()
    for path in tmp_path.rglob("*"):
        os.utime(path, (0, 0))
    return tmp_path


def pack(clone: Path, kind: str) -> tuple[int, set[str]]:
    """How often wheels were made so far, and what was packed."""
    made = clone / "made"
    env = os.environ | {"MADE": str(made)}
    subprocess.run(["sh", clone / "vagrant" / "pack", kind], check=True, env=env)
    listed = subprocess.run(
        ["tar", "-tf", clone / "vagrant/upload/overlaynet.tar"], check=True, capture_output=True, text=True
    )
    return made.read_text().count("made") if made.exists() else 0, set(listed.stdout.split())


@pytest.mark.fake
def test_pack_makes_wheels_only_where_something_is_newer(clone: Path) -> None:
    count, packed = pack(clone, "host")
    assert (count, packed) == (
        1,
        {"vagrant/provision.sh", "vagrant/wheels/", "vagrant/wheels/SHA256SUMS"},
    )
    assert pack(clone, "host")[0] == 1
    later = (clone / "vagrant/upload/overlaynet.tar.kind").stat().st_mtime + 10
    os.utime(clone / "overlaynet/__init__.py", (later, later))
    assert pack(clone, "host")[0] == 2


@pytest.mark.fake
def test_pack_for_guests_has_the_sources_and_no_wheels(clone: Path) -> None:
    pack(clone, "host")
    count, packed = pack(clone, "guest")
    assert count == 1
    assert {"agent/wheels", "overlaynet/__init__.py", "labs/one.yaml", "vagrant/provision.sh"} <= packed
    assert not [name for name in packed if name.startswith("vagrant/wheels")]
    assert pack(clone, "host")[0] == 2
