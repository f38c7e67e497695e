"""The files, the mark on them, and whether systemd's own programs can read them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import PurePosixPath

import pytest

from overlaynet import data
from overlaynet.config import FIELDS, AgentConfig, load
from overlaynet.install import contents, disk
from overlaynet.install.plan import to_install

pytestmark = pytest.mark.unit


def test_file_proves_by_itself_that_it_is_ours():
    text = contents.marked("net.ipv4.ip_forward = 1\n")
    assert contents.is_ours(text)
    assert text.endswith("\nnet.ipv4.ip_forward = 1\n")


@pytest.mark.parametrize(
    "text",
    [
        "net.ipv4.ip_forward = 1\n",
        contents.marked("net.ipv4.ip_forward = 1\n") + "# mine\n",
        contents.marked("net.ipv4.ip_forward = 1\n").replace("= 1", "= 0"),
        contents.marked("net.ipv4.ip_forward = 1\n").partition("\n")[2],
        "",
    ],
    ids=["never", "added to", "changed", "mark removed", "empty"],
)
def test_file_that_somebody_wrote_or_changed_is_not_ours(text):
    assert not contents.is_ours(text)


def test_every_file_of_the_folder_is_installed_somewhere():
    folder = data.path("systemd")
    assert {f.name for f in folder.iterdir()} == {*contents.SOURCES.values(), contents.SETTINGS.name}


def test_settings_that_are_installed_are_good_and_those_that_explain_are_the_defaults(tmp_path):
    short, example = tmp_path / "agent.toml", tmp_path / "agent.example.toml"
    short.write_text(contents.settings().text)
    example.write_text(next(f.text for f in contents.files() if f.path == contents.EXAMPLE))
    assert load(short, {}) == load(example, {}) == AgentConfig()


def test_example_shows_every_setting_in_its_section():
    sections = re.split(r"^\[(\w+)\]$", data.path("systemd", contents.EXAMPLE.name).read_text(), flags=re.M)[1:]
    shown = {
        (section, key)
        for section, text in zip(sections[::2], sections[1::2], strict=True)
        for key in re.findall(r"^(?:# )?(\w+) = ", text, re.MULTILINE)
    }
    assert shown == set(FIELDS)


def test_modules_are_those_of_the_file():
    assert contents.modules() == ["br_netfilter", "vxlan"]


def test_own_commands_need_no_link_where_they_are_the_links():
    assert list(contents.programs(contents.BIN)) == []


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A root with our files and nothing else."""
    root = tmp_path_factory.mktemp("image")
    wanted = contents.wanted(PurePosixPath("/opt/overlaynet/1/bin"), enable=True)
    disk.carry_out(root, to_install(wanted, {}, lambda _: False), wanted)
    return root


@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="systemd is not installed")
def test_tmpfiles_makes_the_lock_of_iptables_and_nothing_else(image):
    (image / "run").mkdir()
    done = subprocess.run(
        ["systemd-tmpfiles", "--create", f"--root={image}", "overlaynet.conf"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lock = image / "run/xtables.lock"
    assert (lock.stat().st_mode & 0o777, list((image / "run").iterdir())) == (0o600, [lock])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("kind", ["systemd/networkd.conf", "modules-load.d", "sysctl.d", "tmpfiles.d"])
def test_systemd_finds_the_files_where_they_are_put(image, kind):
    done = subprocess.run(
        ["systemd-analyze", "cat-config", f"--root={image}", kind], capture_output=True, text=True, check=False
    )
    assert "# Installed by overlaynet, checksum " in done.stdout
    assert "/usr/local/lib/" in done.stdout


@pytest.mark.skipif(shutil.which("systemctl") is None, reason="systemd is not installed")
def test_service_is_enabled_by_the_link_that_systemctl_would_make(image):
    asked = ["systemctl", f"--root={image}", "is-enabled", contents.UNIT]
    assert subprocess.run(asked, capture_output=True, text=True, check=False).stdout == "enabled\n"
