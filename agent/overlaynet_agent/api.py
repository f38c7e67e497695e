"""The agent's HTTP API on its unix socket (docs/agent-api.md).

The standard library's server is enough: few clients, small documents. Two things it does not do by itself
are done here. Descriptors that a client passes (SCM_RIGHTS) arrive with the first bytes, and a buffered
reader would drop them, so the request is read through one that keeps them. And who may change something is
decided by the kernel's word on the peer (SO_PEERCRED, unix(7)), not by anything in the request.
"""

from __future__ import annotations

import array
import contextlib
import io
import json
import logging
import os
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from overlaynet.addr import IPAddress, gateway_address
from overlaynet.core.jsonstate import change_to_json, rule_change_to_json
from overlaynet.core.overlay import container_mtu
from overlaynet.core.probes import parse_probe
from overlaynet.errors import (
    AddressTaken,
    Conflict,
    NotFound,
    NotPermitted,
    NotReady,
    OverlayError,
    UsageError,
    WorkloadExists,
)
from overlaynet.events import NetworkTaken
from overlaynet.kernel.links import load_encoder
from overlaynet.model import ExecCheck, Port, Probe
from overlaynet.ports import Firewall
from overlaynet.state import Source
from overlaynet_agent import documents
from overlaynet_agent.holds import RULE, parse_hold, parse_name
from overlaynet_agent.host import AttachRequest
from overlaynet_agent.loop import Loop

log = logging.getLogger("overlaynet.api")

MAX_BODY_BYTES = 64 * 1024
MAX_DESCRIPTORS = 4
MAX_GRACE_S = 86_400
PROBE_SOCKET = "probe-"
"""How a name begins of a socket that the agent may ask to run a command, and removes when that is over."""
SOCKET_MODE = 0o660
Answer = tuple[int, dict[str, Any]]


class DescriptorReader(io.RawIOBase):
    """Reads a socket and keeps the first few descriptors that come along; the rest is closed at once."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection
        self.descriptors: list[int] = []

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        space = socket.CMSG_SPACE(4 * array.array("i").itemsize)
        size, ancillary, _, _ = self._connection.recvmsg_into([buffer], space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = len(payload) - len(payload) % array.array("i").itemsize
                self.descriptors += array.array("i", payload[:whole])
                self._close_from(MAX_DESCRIPTORS)
        return size

    def close_descriptors(self) -> None:
        self._close_from(0)

    def _close_from(self, first: int) -> None:
        for descriptor in self.descriptors[first:]:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        del self.descriptors[first:]


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """The API of one loop on one unix socket."""

    daemon_threads = True
    request_queue_size = 128
    """Beyond it the kernel turns away at once whoever does not wait for ever (connect(2), EAGAIN)."""

    def __init__(self, path: Path, loop: Loop, firewall: Firewall, metrics: Callable[[], bytes]) -> None:
        self.loop = loop
        self.packet_filter = firewall
        self.metrics = metrics
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        before = os.umask(0o777 & ~SOCKET_MODE)
        try:
            super().__init__(str(path), Handler)
        finally:
            os.umask(before)
        self._path = path
        self._thread = threading.Thread(target=self.serve_forever, name="api", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away in the middle is no news."""
        log.debug("connection failed", exc_info=True)

    def stop(self) -> None:
        end_serving(self)
        self._path.unlink(missing_ok=True)


def end_serving(server: socketserver.TCPServer) -> None:
    """Have `serve_forever` return at once; twice is no mistake.

    It looks but twice a second whether it should; a socket at which nothing can be accepted now wakes it."""
    with contextlib.suppress(OSError):
        server.socket.shutdown(socket.SHUT_RDWR)
    server.shutdown()
    server.server_close()


class Handler(BaseHTTPRequestHandler):
    """One connection. Every answer is JSON, but for the metrics."""

    server: Server
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # even nonsense gets an answer with a status
    timeout = 60

    def setup(self) -> None:
        super().setup()
        self.descriptors = DescriptorReader(self.connection)
        self.rfile = io.BufferedReader(self.descriptors)

    def finish(self) -> None:
        self.descriptors.close_descriptors()
        super().finish()

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses by itself (it would answer with a page of HTML)."""
        problem = UsageError(
            "the agent cannot make sense of this request", evidence=message or f"status {code}"
        )
        self._send(code, _json(documents.error(problem)), "application/json")

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self._metrics()
            return
        self._answer(self.reads().get(self.path, self._no_such_path))

    def reads(self) -> Mapping[str, Callable[[], Answer]]:
        return {
            "/v1/health": self._health,
            "/v1/ready": self._ready,
            "/v1/status": lambda: self._on_loop(documents.status),
            "/v1/state": lambda: self._on_loop(documents.state),
            "/v1/stale": lambda: self._on_loop(documents.stale),
            "/v1/plan": self._plan,
        }

    def do_POST(self) -> None:
        content = self._receive()
        changes: Mapping[str, Callable[[], Answer]] = {
            "/v1/containers": lambda: self._attach(content),
            "/v1/repair": self._repair,
            "/v1/network/apply": lambda: self._apply_network(content),
            "/v1/reload": self._reload,
            "/v1/hold": lambda: self._hold(content),
            "/v1/release": lambda: self._release(content),
        }
        self._answer(self._privileged(changes.get(self.path, self._no_such_path)))

    def do_DELETE(self) -> None:
        self._receive()
        self._answer(self._privileged(self._detach))

    # --- reads ------------------------------------------------------------------------------------

    def _metrics(self) -> None:
        try:
            text = self.server.metrics()
        except OverlayError as error:
            self._send(_http_status(error), _json(documents.error(error)), "application/json")
        else:
            self._send(HTTPStatus.OK, text, "text/plain; version=0.0.4; charset=utf-8")

    def _health(self) -> Answer:
        if not self.server.loop.is_alive():
            raise NotReady("the agent's loop does not turn", next=["overlaynet logs"])
        return HTTPStatus.OK, {"status": "ok"}

    def _on_loop(self, make: Callable[[Loop], dict[str, Any]]) -> Answer:
        return HTTPStatus.OK, self.server.loop.call(make)

    def _ready(self) -> Answer:
        document = self.server.loop.call(documents.ready)
        return (HTTPStatus.OK if document["ready"] else HTTPStatus.SERVICE_UNAVAILABLE), document

    def _plan(self) -> Answer:
        changes, policies = self.server.loop.call(_pending)
        rules = self.server.packet_filter
        pending = rules.pending(policies, rules.observe()) if policies else ()
        changes += [rule_change_to_json(change) for change in pending]
        return HTTPStatus.OK, {"count": len(changes), "changes": changes}

    def _no_such_path(self) -> Answer:
        raise NotFound(f"the agent's API has no {self.command} {self.path}", next=["see docs/agent-api.md"])

    # --- changes ----------------------------------------------------------------------------------

    def _privileged(self, change: Callable[[], Answer]) -> Callable[[], Answer]:
        """Refuse a change to anyone but uid 0 of our own user namespace."""
        credentials = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", credentials)
        if uid == 0:
            return change

        def refuse() -> Answer:
            raise NotPermitted(
                "only root may change what this host carries",
                evidence=f"process {pid} is uid {uid}",
                next=["run the command again with sudo"],
            )

        return refuse

    def _attach(self, content: bytes) -> Answer:
        run = self.server.loop.config.paths.run
        request = _attach_request(_document(content), self.descriptors.descriptors, run)
        load_encoder()  # here, on this request's thread: the loop must not wait for an import
        return HTTPStatus.CREATED, self.server.loop.call(lambda loop: _attach_on(loop, request))

    def _detach(self) -> Answer:
        path, _, query = self.path.partition("?")
        parts = path.split("/")
        if len(parts) != 5 or parts[:3] != ["", "v1", "containers"]:
            return self._no_such_path()
        grace_s = _grace_s(query)
        return HTTPStatus.OK, self.server.loop.call(lambda loop: _detach_on(loop, parts[3], parts[4], grace_s))

    def _reload(self) -> Answer:
        return HTTPStatus.OK, self.server.loop.call(_reload_on)

    def _repair(self) -> Answer:
        return HTTPStatus.OK, self.server.loop.call(_repair_on)

    def _apply_network(self, content: bytes) -> Answer:
        force = _document(content).get("force", False)
        if not isinstance(force, bool):
            raise UsageError("force must be true or false", evidence=repr(force)[:80])
        return HTTPStatus.OK, self.server.loop.call(lambda loop: _apply_network_on(loop, force=force))

    def _hold(self, content: bytes) -> Answer:
        """Whoever has the answer may break it: no round of before writes rules any more."""
        body, loop = _document(content), self.server.loop
        document = loop.call(lambda loop: _hold_on(loop, body))
        if document["kind"] == RULE:
            loop.firewall.rest()
        return HTTPStatus.OK, document

    def _release(self, content: bytes) -> Answer:
        kind, text = parse_name(_document(content))
        return HTTPStatus.OK, self.server.loop.call(lambda loop: _release_on(loop, kind, text))

    def _receive(self) -> bytes:
        """The request's body, read whatever the answer will be: a client that is still writing when its
        connection ends never sees the refusal. What is too long, or of no known length, is nothing."""
        length = self.headers.get("Content-Length") or "0"
        if not length.isascii() or not length.isdigit() or int(length) > MAX_BODY_BYTES:
            return b""
        return self.rfile.read(int(length))

    # --- answering --------------------------------------------------------------------------------

    def _answer(self, produce: Callable[[], Answer]) -> None:
        try:
            status, document = produce()
        except OverlayError as error:
            status, document = _http_status(error), documents.error(error)
        except Exception as error:
            log.exception("request failed %s %s", self.command, self.path)
            bug = OverlayError("the agent failed on this request; its log says where", evidence=repr(error))
            status, document = HTTPStatus.INTERNAL_SERVER_ERROR, documents.error(bug)
        self._send(status, _json(document), "application/json")

    def _send(self, status: int, body: bytes, content_type: str) -> None:
        """Only a read that went well leaves the connection open: else part of the request may be unread, and
        descriptors belong to one request."""
        self.send_response(status)
        if self.command != "GET" or status >= HTTPStatus.BAD_REQUEST:
            self.send_header("Connection", "close")
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"


def _http_status(error: OverlayError) -> int:
    if isinstance(error, NotPermitted):
        return HTTPStatus.FORBIDDEN
    if isinstance(error, NotFound):
        return HTTPStatus.NOT_FOUND
    if isinstance(error, WorkloadExists | AddressTaken | Conflict):
        return HTTPStatus.CONFLICT
    return HTTPStatus.BAD_REQUEST if error.exit_code == 2 else HTTPStatus.SERVICE_UNAVAILABLE


# --- what runs on the loop's thread ---------------------------------------------------------------


def _pending(loop: Loop) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    if not loop.host.active:
        return [], {}
    desired = loop.engine.desired
    changes = loop.host.reconciler.differences(desired.objects, loop.host.networks)
    nowhere = Source("none", "")
    documented = [change_to_json(c, desired.sources.get(c.obj.key, nowhere)) for c in changes]
    return documented, dict(desired.policies)


def _attach_on(loop: Loop, request: AttachRequest) -> dict[str, Any]:
    """The record is on disk before the client hears of it: a crash must not leave a container nobody knows."""
    workload = loop.host.attach(request, loop.clock())
    loop.upkeep.take(workload.id, request.probe, request.probe_socket)
    loop.save()
    network = loop.engine.view.network
    assert network is not None
    assert loop.engine.lease is not None
    subnet = loop.engine.lease.value.subnets[0]
    return {
        **documents.container(workload),
        "subnet_len": subnet.prefixlen,
        "gateway": str(gateway_address(subnet)),
        "mtu": container_mtu(network.backend, loop.engine.local),
    }


def _detach_on(loop: Loop, namespace: str, name: str, grace_s: float) -> dict[str, Any]:
    if grace_s > 0:
        loop.leave(namespace, name, grace_s)
    else:
        loop.host.detach(namespace, name, loop.clock())
        loop.upkeep.drop(f"{namespace}/{name}")
    loop.save()
    return {"name": name, "namespace": namespace, "ends_in_s": loop.upkeep.ends_in_s(f"{namespace}/{name}")}


def _apply_network_on(loop: Loop, *, force: bool) -> dict[str, Any]:
    """Takes effect at once, but for the subnet: if it does not fit, another is claimed in a moment."""
    applied = loop.engine.check_network(strand=force)
    if applied:
        loop.submit(loop.engine.handle(NetworkTaken(), loop.clock()))
        log.info("network config applied networks=%s", ",".join(map(str, loop.host.networks)))
    return {"applied": applied, "network": documents.network(loop)}


def _reload_on(loop: Loop) -> dict[str, Any]:
    live, rest = loop.reload()
    return {"changed": [".".join(key) for key in live], "restart_needed": [".".join(key) for key in rest]}


def _repair_on(loop: Loop) -> dict[str, Any]:
    if not loop.host.active:
        return {"changes": 0, "failures": []}
    loop.ask_firewall_again("repair")
    outcome = loop.full_look("repair")
    if loop.host.blind is not None:
        raise loop.host.blind
    return {
        "changes": outcome.written,
        "failures": [{"change": str(f.change), "error": f.error.as_json()} for f in outcome.failures],
    }


def _hold_on(loop: Loop, body: Mapping[str, Any]) -> dict[str, Any]:
    now = loop.clock()
    hold = parse_hold(body, now)
    key = hold.key
    if key is not None and key not in loop.engine.desired.objects and key not in loop.host.reconciler.cache:
        raise NotFound(
            f"there is no {hold.kind} {hold.text} of ours to hold",
            evidence="the agent neither wants nor has it",
            next=["overlaynet get routes", "see docs/agent-api.md"],
        )
    loop.host.drift.hold(hold)
    if hold.chain:
        loop.ask_firewall_again("event")
        loop.ask_firewall()
    return documents.hold(hold, now)


def _release_on(loop: Loop, kind: str, text: str) -> dict[str, Any]:
    hold = loop.host.drift.release(kind, text)
    if hold.chain:
        loop.ask_firewall_again("release")
    return {"kind": kind, "key": text}


def _document(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        evidence = f"{len(content)} bytes were read, and at most {MAX_BODY_BYTES} are: {error}"
        raise UsageError("the request's body is not usable JSON", evidence=evidence) from None
    if not isinstance(document, dict):
        raise UsageError("the request's body must be a JSON object", evidence=repr(document)[:80])
    return document


def _grace_s(query: str) -> float:
    """The seconds of ``grace_s=30``; 0 for no query. Raises UsageError."""
    name, _, text = query.partition("=")
    with contextlib.suppress(ValueError):
        if not query or (name == "grace_s" and 0 <= float(text) <= MAX_GRACE_S):
            return float(text or 0)
    raise UsageError(f"the query must be grace_s=SECONDS, 0 to {MAX_GRACE_S}", evidence=query[:80])


def _attach_request(body: Mapping[str, Any], descriptors: list[int], run: Path) -> AttachRequest:
    """Check a client's request before anything is touched. Raises UsageError."""
    known = {"name", "namespace", "labels", "ports", "ips", "netns", "probe", "probe_socket"}
    if set(body) - known:
        raise UsageError("unknown members in the request", evidence=", ".join(sorted(set(body) - known)))
    if len(descriptors) != 2:
        raise UsageError(
            "a container is wired through two descriptors: its network namespace and a netlink socket in it",
            evidence=f"{len(descriptors)} came with the request",
        )
    probe = None if body.get("probe") is None else parse_probe(body["probe"])
    helper = _probe_socket(body.get("probe_socket"), probe, run)
    try:
        return AttachRequest(
            name=_text(body["name"]),
            namespace=_text(body.get("namespace") or "default"),
            labels={_text(k): _text(v) for k, v in (body.get("labels") or {}).items()},
            ports=tuple(_port(item) for item in body.get("ports") or ()),
            ips=_addresses(body.get("ips") or []),
            netns=_text(body["netns"]) if body.get("netns") else None,
            netns_fd=descriptors[0],
            netlink_fd=descriptors[1],
            probe=probe,
            probe_socket=helper,
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UsageError("the request does not describe a container", evidence=repr(error)) from None


def _probe_socket(value: Any, probe: Probe | None, run: Path) -> str:
    """The name, in our run directory and nowhere else, of the socket of whoever runs an exec probe's command.
    Raises UsageError."""
    if probe is None or not isinstance(probe.check, ExecCheck):
        if value is None:
            return ""
    elif isinstance(value, str) and _is_probe_socket(Path(value), run):
        return Path(value).name
    raise UsageError(
        "probe_socket goes with an exec probe, and with nothing else",
        evidence=f"it is {value!r:.120}, and would be {run}/{PROBE_SOCKET}NAME.sock",
    )


def _is_probe_socket(path: Path, run: Path) -> bool:
    return path.parent == run and path.name.startswith(PROBE_SOCKET) and path.suffix == ".sock"


def _text(value: Any) -> str:
    """What is stored must read back as it was: text, and such as UTF-8 can carry. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"not text: {value!r}")
    value.encode()
    return value


def _addresses(values: Any) -> tuple[IPAddress, ...]:
    """At most one of each family."""
    if not isinstance(values, list):
        raise ValueError(f"not a list of addresses: {values!r}")
    found = tuple(ip_address(_text(value)) for value in values)
    if len({ip.version for ip in found}) != len(found):
        raise ValueError("a container has one address of each family")
    return found


def _port(item: Mapping[str, Any]) -> Port:
    number, protocol, name = item["port"], item.get("protocol") or "TCP", item.get("name")
    if type(number) is not int or not 1 <= number <= 65_535 or protocol not in ("TCP", "UDP", "SCTP"):
        raise ValueError(f"not a port: {dict(item)!r}")
    return Port(number, protocol, None if name is None else _text(name))
