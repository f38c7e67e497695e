"""agent/install: which version's folder is made, used, kept and removed.

The script is the real one, and so are venv and pip. The wheels hold next to nothing: an `overlaynet` whose
`agent install` does no more than point the link to its own version. All of it happens in a mount namespace
with empty folders over /opt and /usr/local/bin.
"""

from __future__ import annotations

import base64
import hashlib
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.privilege import requires_netns

pytestmark = [pytest.mark.kernel, requires_netns]

SCRIPT = Path(__file__).resolve().parents[2] / "agent" / "install"
MINOR = sys.version_info.minor
PROGRAM = """
import os, sys

NUMBER = {number}

def main():
    assert sys.argv[1:3] == ["agent", "install"]
    if "--fail" in sys.argv:
        sys.exit(1)
    link = "/usr/local/bin/overlaynet-agent"
    os.path.lexists(link) and os.unlink(link)
    os.symlink(sys.prefix + "/bin/overlaynet-agent", link)
    print("arguments", *sys.argv[3:], "in", os.getcwd())
"""


def wheel(folder: Path, number: int) -> None:
    """overlaynet-1.0, whose content differs by `number`."""
    empty = ("", "/probe", "/store", "/kernel", "/firewall")
    files = {
        "overlaynet_agent/__init__.py": PROGRAM.format(number=number),
        **{f"overlaynet{name}/__init__.py": "" for name in empty},
        "overlaynet-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: overlaynet\nVersion: 1.0\n",
        "overlaynet-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "overlaynet-1.0.dist-info/entry_points.txt": "[console_scripts]\n"
        "overlaynet = overlaynet_agent:main\noverlaynet-agent = overlaynet_agent:main\n",
    }
    record = [f"{name},sha256={_digest(text)},{len(text)}" for name, text in files.items()]
    files["overlaynet-1.0.dist-info/RECORD"] = "\n".join([*record, "overlaynet-1.0.dist-info/RECORD,,", ""])
    with zipfile.ZipFile(folder / "overlaynet-1.0-py3-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def pip_wheel() -> Path:
    """That of Python's own, or of Debian's python3-venv."""
    places = [*Path(sys.base_prefix).glob("lib/python3.*/ensurepip/_bundled"), Path("/usr/share/python-wheels")]
    return next(found for place in places for found in place.glob("pip-*.whl"))


@pytest.fixture
def wheels(tmp_path):
    """Make the folder of wheels of one build."""

    def wheels(number: int, *, python: str = f"3{MINOR}", machine: str = platform.machine()) -> Path:
        folder = tmp_path / f"wheels-{number}"
        folder.mkdir()
        wheel(folder, number)
        shutil.copy(pip_wheel(), folder)
        shutil.copy(SCRIPT, folder)
        tag = f"cp{python}"
        (folder / f"grpcio-1.0-{tag}-{tag}-manylinux2014_{machine}.manylinux_2_17_{machine}.whl").touch()
        listed = "sha256sum -- *.whl install >SHA256SUMS"
        subprocess.run(["sh", "-c", listed], cwd=folder, check=True)
        return folder

    return wheels


class Machine:
    """The mount namespace, by the process that lives in it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def run(self, *argv: object, cwd: str = "/") -> subprocess.CompletedProcess[str]:
        there = ["sh", "-c", 'cd "$0" && exec "$@"', cwd]
        inside = ["nsenter", f"--target={self.pid}", "--mount", "--", *there, *map(str, argv)]
        return subprocess.run(inside, capture_output=True, text=True, check=False)

    def versions(self) -> dict[str, bool]:
        """Each version's folder, and whether it is complete."""
        found = self.run("find", "/opt/overlaynet", "-mindepth", 1, "-maxdepth", 2, "-printf", "%P\\n").stdout
        paths = found.split()
        return {path: f"{path}/complete" in paths for path in paths if "/" not in path}

    def current(self) -> str:
        return self.run("readlink", "/usr/local/bin/overlaynet-agent").stdout.split("/")[3]

    def install(self, folder: Path, *words: str) -> str:
        """The version that is current afterwards."""
        done = self.run("sh", folder / "install", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.current()


@pytest.fixture
def machine() -> Iterator[Machine]:
    mounts = "mount -t tmpfs t /opt && mount -t tmpfs t /usr/local/bin && echo ready && exec cat"
    argv = ["unshare", "--mount", "sh", "-c", mounts]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as living:
        assert living.stdout is not None
        assert living.stdout.readline() == "ready\n"
        yield Machine(living.pid)
        assert living.stdin is not None
        living.stdin.close()  # `cat` ends with it


def test_versions_come_and_go_and_the_one_before_stays(wheels, machine):
    first, second, third = wheels(1), wheels(2), wheels(3)
    one = machine.install(first)
    assert (one[:4], machine.versions()) == ("1.0-", {one: True})

    # The same again unpacks nothing; arguments arrive as they are, and paths in them are the caller's.
    again = machine.run("sh", first / "install", "--config", "a b.toml", cwd="/usr")
    assert again.stdout == "arguments --config a b.toml in /usr\n"

    # Neither the service nor a user may write below /opt, so all of ours is compiled; pip is gone.
    inside = machine.run("find", f"/opt/overlaynet/{one}", "-name", "*.pyc", "-o", "-name", "pip").stdout
    assert [Path(line).parts[-3] for line in inside.splitlines() if "agent" in line] == ["overlaynet_agent"]
    assert f"/opt/overlaynet/{one}/pip" not in inside.splitlines()

    # One that fails, or is interrupted, leaves what ran before; the next run makes it anew.
    failed = machine.run("sh", second / "install", "--fail")
    (two,) = machine.versions().keys() - {one}
    assert (failed.returncode, machine.current(), machine.versions()) == (1, one, {one: True, two: True})
    machine.run("rm", f"/opt/overlaynet/{two}/complete", f"/opt/overlaynet/{two}/bin/overlaynet")
    assert machine.install(second) == two
    assert machine.versions() == {one: True, two: True}

    three = machine.install(third)
    assert machine.versions() == {two: True, three: True}
    assert machine.install(second) == two
    assert machine.versions() == {two: True, three: True}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda folder: (folder / "overlaynet-1.0-py3-none-any.whl").write_bytes(b"x"),
            "not those that were packed",
        ),
        (lambda folder: (folder / "SHA256SUMS").unlink(), "no finished folder of wheels"),
    ],
    ids=["damaged", "unfinished"],
)
def test_folder_that_is_not_whole_is_refused(wheels, machine, spoil, words):
    folder = wheels(1)
    spoil(folder)
    done = machine.run("sh", folder / "install")
    assert (done.returncode, words in done.stderr, machine.versions()) == (3, True, {})


@pytest.mark.parametrize(
    ("made_for", "words"),
    [
        ({"python": "39"}, "these wheels are for Python 3.9; this machine has "),
        ({"machine": "riscv64"}, f"is not for this machine, which is {platform.machine()}"),
    ],
    ids=["python", "processor"],
)
def test_wheels_for_another_kind_of_machine_are_refused_by_name(wheels, machine, made_for, words):
    done = machine.run("sh", wheels(1, **made_for) / "install")
    assert (done.returncode, words in done.stderr, machine.versions()) == (3, True, {})
