"""``connecting.py ADDRESS PORT``: connects and hands the connection to ssh, which started this for it.

ssh wants the descriptor over its end of a socket, which is this process's standard output, and then nothing
more (ssh_config(5), ProxyUseFdpass). So no byte of the session goes through here.
"""

from __future__ import annotations

import socket
import sys

if __name__ == "__main__":
    connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    with socket.socket(fileno=sys.stdout.fileno()) as to_ssh:
        socket.send_fds(to_ssh, [b"\0"], [connection.fileno()])
