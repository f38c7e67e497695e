"""Calls the quickstart's service until each of its containers has answered, and prints a line of a table.

    call.py FROM ADDRESS:PORT CONTAINERS

FROM is who calls, for the table; the network namespace is the caller's business. Rules reach a host a moment
after the service is written, so a refused first call is tried again. Exit 1 if not all answer in time.
"""

import http.client
import sys
import time
from collections import Counter

PATIENCE_S = 10.0
LINE = "{:<10} {:<20} {:>6}  {:<42} {}\n"


def main() -> int:
    name, target, expected = sys.argv[1], sys.argv[2], sys.argv[3].split()
    answers: Counter[str] = Counter()
    seen: set[str] = set()
    trouble, deadline = "", time.monotonic() + PATIENCE_S
    while set(answers) != set(expected) and time.monotonic() < deadline:
        try:
            who, address = call(target)
        except (OSError, http.client.HTTPException, ValueError) as error:
            trouble = str(error)
            time.sleep(0.05)
            continue
        answers[who] += 1
        seen.add(address)
    who = "  ".join(f"{one} ×{count}" for one, count in sorted(answers.items())) or f"nobody: {trouble}"
    sys.stdout.write(LINE.format(name, target, sum(answers.values()), who, "  ".join(sorted(seen))))
    return 0 if set(answers) == set(expected) else 1


def call(target: str) -> tuple[str, str]:
    """One call on a connection of its own: who answered, and from which address it was called."""
    connection = http.client.HTTPConnection(target, timeout=2)
    try:
        connection.request("GET", "/")
        who, *_, address = connection.getresponse().read().decode().split()
    finally:
        connection.close()
    return who, address


if __name__ == "__main__":
    sys.exit(main())
