"""Calls an address again and again, and tells how often who answered: calls.py ADDRESS COUNT"""

import http.client
import sys
from collections import Counter

answers: Counter[str] = Counter()
for _ in range(int(sys.argv[2])):
    connection = http.client.HTTPConnection(sys.argv[1], timeout=0.1)
    try:
        connection.request("GET", "/")
        answers[connection.getresponse().read().decode().strip()] += 1
    except OSError:
        answers["nobody"] += 1
    finally:
        connection.close()
for name, count in sorted(answers.items()):
    sys.stdout.write(f"{name:<8} {count:>5}  {'▪' * round(60 * count / answers.total())}\n")
