"""What the journal is told, by its own protocol, at a socket of the test's."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys

import pytest

from overlaynet.config import LogConfig
from overlaynet.errors import StoreUnavailable
from overlaynet_agent import logs

pytestmark = pytest.mark.fake

AWAY = StoreUnavailable("etcd is away", evidence="tried 192.0.2.1:2379")


@pytest.fixture
def journal(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "socket"))
        receiver.settimeout(5)
        yield receiver


@pytest.fixture
def log(journal):
    """A logger whose one handler writes to that journal."""
    handler = logs.JournalHandler(journal.getsockname())
    logger = logging.Logger("overlaynet.agent")
    logger.addHandler(handler)
    yield logger
    handler.close()


def received(journal) -> dict[str, str]:
    """One message as journald takes it: a datagram, or a sealed file whose descriptor comes instead."""
    data, descriptors, _, _ = socket.recv_fds(journal, 1 << 20, 1)
    if not descriptors:
        return decoded(data)
    with os.fdopen(descriptors[0], "rb") as file:
        assert logs.fcntl.fcntl(file, logs.fcntl.F_GET_SEALS) == logs.SEALS
        assert data == b""
        file.seek(0)
        return decoded(file.read())


def decoded(data: bytes) -> dict[str, str]:
    found = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, sign, value = line.partition(b"=")
        if not sign:
            size = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + size], data[8 + size + 1 :]
        found[name.decode()] = value.decode()
    return found


def test_each_value_of_a_line_is_a_field_of_its_own(journal, log):
    log.warning("container could not be detached container=%s error=%s after_s=%.2f", "web-1", AWAY, 1.234)
    told = received(journal)
    code = {name: told.pop(name) for name in ("CODE_FILE", "CODE_LINE", "CODE_FUNC")}
    assert told == {
        "MESSAGE": "container could not be detached container=web-1 error=etcd is away after_s=1.23",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "overlaynet-agent",
        "OVERLAYNET_LOGGER": "overlaynet.agent",
        "OVERLAYNET_CONTAINER": "web-1",
        "OVERLAYNET_ERROR": "etcd is away",
        "OVERLAYNET_AFTER_S": "1.23",
        "OVERLAYNET_CODE": "OVL-301",
        "OVERLAYNET_EVIDENCE": "tried 192.0.2.1:2379",
    }
    assert (code["CODE_FILE"], code["CODE_FUNC"]) == (
        __file__,
        "test_each_value_of_a_line_is_a_field_of_its_own",
    )


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, "7"), (logging.INFO, "6"), (logging.WARNING, "4"), (logging.ERROR, "3"), (50, "2")],
)
def test_level_becomes_a_priority_of_syslog(journal, log, level, priority):
    log.log(level, "said")
    assert received(journal)["PRIORITY"] == priority


def test_value_with_line_breaks_arrives_whole(journal, log):
    log.error("settings refused error=%s", "line 1\nMESSAGE=forged\nline 3")
    told = received(journal)
    assert told["OVERLAYNET_ERROR"] == "line 1\nMESSAGE=forged\nline 3"
    assert told["MESSAGE"] == "settings refused error=line 1\nMESSAGE=forged\nline 3"


def test_exception_is_part_of_the_message(journal, log):
    try:
        raise ValueError("no such thing")
    except ValueError:
        log.exception("a look failed")
    lines = received(journal)["MESSAGE"].splitlines()
    assert (lines[0], lines[1], lines[-1]) == (
        "a look failed",
        "Traceback (most recent call last):",
        "ValueError: no such thing",
    )


def test_message_too_large_for_a_datagram_comes_in_a_sealed_file(journal, log):
    text = "x" * 1_000_000
    log.info("much text=%s", text)
    assert received(journal)["OVERLAYNET_TEXT"] == text


def test_without_a_journal_the_line_goes_to_standard_error(tmp_path, capsys):
    handler = logs.JournalHandler(tmp_path / "nobody-here")
    logger = logging.Logger("overlaynet.agent")
    logger.addHandler(handler)
    logger.warning("etcd is away keys=%d", 7)
    handler.close()
    assert capsys.readouterr().err.endswith("WARNING overlaynet.agent: etcd is away keys=7\n")


def test_a_journal_that_hangs_does_not_hold_the_agent_up(capsys, log):
    line = "x" * 60_000
    for _ in range(50):  # more than a socket holds
        log.info(line)
    assert line in capsys.readouterr().err


def test_journal_is_used_only_where_standard_error_leads_there(tmp_path, monkeypatch):
    with (tmp_path / "stream").open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        there = os.fstat(stream.fileno())
        assert logs.stderr_is_the_journal({"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"})
        assert not logs.stderr_is_the_journal({"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino + 1}"})
        assert not logs.stderr_is_the_journal({})


def test_json_lines_hold_the_same_fields(monkeypatch, tmp_path):
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    with (tmp_path / "stream").open("w+") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        logs.configure(LogConfig("info", "json"))
        logging.getLogger("overlaynet.agent").warning("firewall refused attempt=%d error=%s", 2, AWAY)
        stream.seek(0)
        line = json.loads(stream.read())
    assert (line["level"], line["message"]) == ("warning", "firewall refused attempt=2 error=etcd is away")
    assert line["fields"] == {
        "attempt": "2",
        "code": "OVL-301",
        "evidence": "tried 192.0.2.1:2379",
        "error": "etcd is away",
    }
