"""Asks lesson 4's server for an answer of so many bytes, and says how many came.

    fetch.py ADDRESS BYTES

Exit 1 if it does not come whole in two seconds.
"""

import http.client
import sys

PATIENCE_S = 2.0


def main() -> int:
    address, wanted = sys.argv[1:]
    came = 0
    connection = http.client.HTTPConnection(address, timeout=PATIENCE_S)
    try:
        connection.request("GET", f"/{wanted}")
        answer = connection.getresponse()
        while part := answer.read1():
            came += len(part)
    except OSError as error:
        sys.stdout.write(f"{came} of {wanted} bytes: {error}\n")
        return 1
    finally:
        connection.close()
    sys.stdout.write(f"{came} of {wanted} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
