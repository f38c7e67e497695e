"""Health and metrics over TCP, where the settings ask for it; for load balancers and for Prometheus.

Everything else stays on the unix socket: over TCP nobody can be told from anybody, so nothing is changed here
and nothing is shown that would help to forge a frame (peers, MACs, the plan).
"""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any

from overlaynet.errors import EnvironmentProblem
from overlaynet_agent.api import Answer, Handler, Server, end_serving

log = logging.getLogger("overlaynet.health")

MAX_CONNECTIONS = 16
"""Beyond these a new one is closed at once: whoever can reach the port must not fill the host with threads."""


class HealthHandler(Handler):
    """Two reads, and no more; health also by the name that flanneld's checks ask for."""

    timeout = 10

    def setup(self) -> None:
        BaseHTTPRequestHandler.setup(self)

    def finish(self) -> None:
        BaseHTTPRequestHandler.finish(self)

    def address_string(self) -> str:
        return str(self.client_address[0])

    def reads(self) -> Mapping[str, Callable[[], Answer]]:
        return {"/v1/health": self._health, "/healthz": self._health}

    def do_POST(self) -> None:
        self._answer(self._no_such_path)

    def do_DELETE(self) -> None:
        self._answer(self._no_such_path)


class HealthServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Serves what `api` knows. Raises EnvironmentProblem if the address cannot be had."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, listen: tuple[str, int], api: Server) -> None:
        self.loop = api.loop
        self.metrics = api.metrics
        self.address_family = socket.AF_INET6 if ":" in listen[0] else socket.AF_INET
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        try:
            super().__init__(listen, HealthHandler)
        except OSError as error:
            raise EnvironmentProblem(
                f"health.listen: {listen[0]} port {listen[1]} cannot be listened on", evidence=str(error)
            ) from None
        self._thread = threading.Thread(target=self.serve_forever, name="health", daemon=True)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def start(self) -> None:
        self._thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away in the middle is no news."""
        log.debug("connection failed", exc_info=True)

    def stop(self) -> None:
        end_serving(self)
