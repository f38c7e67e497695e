"""Traffic inside a machine beside whatever a test does to it: a stream of pings, and calls to a virtual IP.

Both run in a network namespace of the machine and end when the test lets go of their standard input, so nothing
of them is left if the test dies.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from helpers.vms import Vm

CALLER = """
import json, select, socket, sys, time
made, failures = {}, []
print("begun", flush=True)
while not select.select([sys.stdin], [], [], 0.1)[0]:
    try:
        with socket.create_connection((sys.argv[1], 80), timeout=10) as connection:
            connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            said = b"".join(iter(lambda: connection.recv(4096), b"")).rpartition(b"\\r\\n\\r\\n")[2].decode()
        made[said] = made.get(said, 0) + 1
    except OSError as error:
        failures.append(f"after {sum(made.values())} calls: {error}")
print(json.dumps({"made": made, "failures": failures}))
"""
"""Some nine calls a second, each on a connection of its own."""

PINGER = """
ping -n -D -i 0.2 "$1" &
echo begun
read -r _ || true
kill -INT $!
wait $!
"""
"""ping(8) tells the sum at SIGINT."""


@dataclass
class Traffic:
    """Filled in when it has ended."""

    sent: int = 0
    received: int = 0
    replied_at: list[float] = field(default_factory=list)
    """When each answer to a ping came, in seconds of that machine's clock."""
    unanswered: list[int] = field(default_factory=list)
    """The numbers of pings without an answer, from 1."""
    made: Mapping[str, int] = field(default_factory=dict)
    """How many calls each endpoint answered."""
    failures: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        return self.sent - self.received

    @property
    def calls(self) -> int:
        return sum(self.made.values()) + len(self.failures)

    @property
    def longest_silence_s(self) -> float:
        """Between two answers to pings."""
        return max(
            later - earlier for earlier, later in zip(self.replied_at, self.replied_at[1:], strict=False)
        )


@contextmanager
def traffic(vm: Vm, namespace: str, *, ping: str, call: str = "") -> Iterator[Traffic]:
    """Pings to an address, and calls to port 80 of another, for the length of the block."""
    found = Traffic()
    with ExitStack() as stack:
        stack.callback(_read_pings, found, _started(stack, vm, namespace, "sh", "-c", PINGER, "ping", ping))
        if call:
            stack.callback(_read_calls, found, _started(stack, vm, namespace, "python3", "-c", CALLER, call))
        yield found


def inside(vm: Vm, namespace: str, *argv: str) -> str:
    """A command in a network namespace of the machine; what it said. Raises VmFailed."""
    return vm.run("ip", "netns", "exec", namespace, *argv)


def _started(stack: ExitStack, vm: Vm, namespace: str, *argv: str) -> subprocess.Popen[str]:
    process = vm.start("ip", "netns", "exec", namespace, *argv)
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stdout is not None
    said = ""
    while "begun" not in said:
        line = process.stdout.readline()
        assert line, f"{argv[0]} did not begin: {said}"
        said += line
    return process


def _read_pings(found: Traffic, process: subprocess.Popen[str]) -> None:
    said, _ = process.communicate("\n", timeout=60)
    numbers = re.search(r"(\d+) packets transmitted, (\d+) received", said)
    assert numbers, said
    found.sent, found.received = int(numbers[1]), int(numbers[2])
    found.replied_at = [
        float(stamp) for stamp in re.findall(r"^\[([\d.]+)\] \d+ bytes from", said, re.MULTILINE)
    ]
    answered = set(map(int, re.findall(r"^\[[\d.]+\] \d+ bytes from .* icmp_seq=(\d+)", said, re.MULTILINE)))
    found.unanswered = [number for number in range(1, found.sent + 1) if number not in answered]


def _read_calls(found: Traffic, process: subprocess.Popen[str]) -> None:
    said, _ = process.communicate("\n", timeout=60)
    counted = json.loads(said.splitlines()[-1])
    found.made, found.failures = counted["made"], counted["failures"]
