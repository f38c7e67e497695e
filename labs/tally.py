"""Calls an address again and again, one call after another, and tells how often who answered what.

    tally.py ADDRESS COUNT

Each call is a connection of its own, which is given a fifth of a second to come about: kernels answer at once.
Whoever is connected waits for the server, which may be busy. The network namespace is the caller's business:
`overlaynet exec red -- python3 labs/tally.py 10.112.0.10 100`.
"""

import http.client
import sys
from collections import Counter

CONNECTED_S = 0.2
ANSWERED_S = 5.0
WIDTH = 60


def main() -> None:
    address, count = sys.argv[1], int(sys.argv[2])
    answers = Counter(call(address) for _ in range(count))
    for answer, times in sorted(answers.items()):
        sys.stdout.write(f"{answer:<8} {times:>5}  {'▪' * round(WIDTH * times / count)}\n")


def call(address: str) -> str:
    """What was answered, or ``nobody``."""
    connection = http.client.HTTPConnection(address, timeout=CONNECTED_S)
    try:
        connection.connect()
        connection.sock.settimeout(ANSWERED_S)
        connection.request("GET", "/")
        return connection.getresponse().read().decode().strip()
    except (OSError, http.client.HTTPException):
        return "nobody"
    finally:
        connection.close()


if __name__ == "__main__":
    main()
