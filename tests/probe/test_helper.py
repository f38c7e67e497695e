"""The helper that runs an exec probe's command: where and as whom, for how long, and until when it lives."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from helpers.eventually import eventually
from helpers.private_netns import private_netns
from helpers.privilege import requires_netns

pytestmark = [pytest.mark.kernel, requires_netns]

HELPER = (sys.executable, "-P", "-m", "overlaynet.probe.helper")
NOBODY = "65534"
AS_NOBODY = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}"),
    *("--clear-groups", "--bounding-set=-all,+net_raw"),
)


class Helper:
    """A helper that serves, and what it answers."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self.path = path
        self.process = process

    def run(self, *command: str, timeout_s: float = 10.0) -> dict:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.path))
            connection.sendall(json.dumps({"command": command, "timeout_s": timeout_s}).encode() + b"\n")
            return json.loads(connection.makefile().readline())

    def shell(self, line: str, timeout_s: float = 10.0) -> dict:
        return self.run("sh", "-c", line, timeout_s=timeout_s)

    def says(self, line: str) -> str:
        return self.shell(line)["output"].strip()

    def has_ended(self) -> bool:
        return self.process.poll() is not None


@contextmanager
def helper(path: Path, *where: str) -> Iterator[Helper]:
    process = subprocess.Popen([*HELPER, str(path), *where])
    try:
        eventually(lambda: path.exists() or process.poll() is not None)
        yield Helper(path, process)
    finally:
        process.kill()
        process.wait()


@contextmanager
def container(*argv: str, drop: Sequence[str] = AS_NOBODY) -> Iterator[int]:
    """A process in namespaces of its own, as nobody and with one capability that it could have; its id."""
    program = [*drop, "env", "-i", "PATH=/usr/bin:/bin", "WORD=inside", "sleep", "60"]
    with subprocess.Popen(["unshare", "-mnpu", "--fork", "--mount-proc", *argv, *program]) as process:
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            (pid,) = eventually(lambda: children.read_text().split())
            eventually(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
            yield int(pid)
        finally:
            process.send_signal(signal.SIGKILL)
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def namespace(pid: int | str, kind: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{kind}").readlink())


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Helper]:
    with (
        private_netns() as box,
        helper(tmp_path_factory.mktemp("run") / "probe-a.sock", "--netns", box.path) as one,
    ):
        yield one


def test_command_runs_in_the_network_namespace_and_reports(served):
    assert served.says("readlink /proc/self/ns/net") != namespace("self", "net")
    assert served.shell("echo out; echo err >&2; exit 3") == {
        "code": 3,
        "timed_out": False,
        "output": "out\nerr\n",
    }
    assert served.shell("kill -9 $$")["code"] == 137
    assert served.run("no-such-program")["code"] is None


def test_only_its_owner_may_ask(served):
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o600


def test_command_that_does_not_end_is_killed_with_its_children(served, tmp_path):
    pid = tmp_path / "pid"
    answer = served.shell(f"sleep 60 & echo $! >{pid}; wait", timeout_s=1)
    assert (answer["timed_out"], answer["code"]) == (True, 137)
    eventually(lambda: not Path(f"/proc/{pid.read_text().strip()}").exists())


def test_child_that_holds_the_output_open_delays_nothing(served):
    answer = served.shell("echo done; sleep 60 &", timeout_s=30)
    assert (answer["code"], answer["output"]) == (0, "done\n")


def test_flood_of_output_is_cut(served):
    answer = served.shell("head -c 10000000 /dev/zero | tr '\\0' x")
    assert (answer["code"], len(answer["output"])) == (0, 1024)


def test_nonsense_is_survived(served):
    for text in (b"", b"\n", b"{}\n", b"[1]\n", b'{"command":[],"timeout_s":1}\n', b"\xff" * 70_000):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(served.path))
            with suppress(ConnectionError):
                connection.sendall(text)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(100)
    assert served.says("echo alive") == "alive"


def test_process_lends_its_namespaces_user_bounds_and_environment(tmp_path):
    with container() as pid, helper(tmp_path / "probe-b.sock", "--pid", str(pid)) as one:
        for kind in ("net", "mnt", "uts"):
            assert one.says(f"readlink /proc/self/ns/{kind}") == namespace(pid, kind)
        assert one.says("id -u; id -g; id -G").split() == [NOBODY] * 3
        assert one.says("echo $WORD") == "inside"
        assert one.says("cat /proc/1/comm") == "sleep"
        assert one.says("grep CapBnd /proc/self/status").split()[1] == f"{1 << 13:016x}"


def test_user_namespace_is_entered_by_its_own_numbers(tmp_path):
    with (
        container("-U", "--map-root-user", drop=()) as pid,
        helper(tmp_path / "probe-c.sock", "--pid", str(pid)) as one,
    ):
        assert one.says("readlink /proc/self/ns/user") == namespace(pid, "user")


def test_helper_ends_with_the_process(tmp_path):
    with container() as pid, helper(tmp_path / "probe-d.sock", "--pid", str(pid)) as one:
        assert one.says("echo here") == "here"
        os.kill(pid, signal.SIGKILL)
        eventually(one.has_ended)


def test_helper_ends_when_its_socket_is_taken_away_or_replaced(tmp_path):
    with private_netns() as box, helper(tmp_path / "probe-e.sock", "--netns", box.path) as first:
        inode = first.path.stat().st_ino
        with helper(first.path, "--netns", box.path) as second:
            eventually(first.has_ended)
            eventually(lambda: second.path.stat().st_ino != inode)
            assert second.says("echo two") == "two"
            second.path.unlink()
            eventually(second.has_ended)


def test_helper_ends_when_the_path_leads_elsewhere(tmp_path):
    link = tmp_path / "netns"
    with private_netns() as box, private_netns() as other:
        link.symlink_to(box.path)
        with helper(tmp_path / "probe-f.sock", "--netns", str(link)) as one:
            assert one.says("echo here") == "here"
            link.unlink()
            link.symlink_to(other.path)
            eventually(one.has_ended)


def test_container_that_is_not_there_is_an_error(tmp_path):
    done = subprocess.run(
        [*HELPER, str(tmp_path / "s"), "--netns", "/nowhere/at/all"], capture_output=True, check=False
    )
    assert (done.returncode != 0, b"/nowhere/at/all" in done.stderr) == (True, True)
