"""Log lines: one per change of fact, a fixed message and then ``key=value``; or one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys

from overlaynet.config import LogConfig

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonLines(logging.Formatter):
    """For collectors that want fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(config: LogConfig) -> None:
    """Send all of it to standard error, where the journal or the lab's log file picks it up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if config.format == "json" else logging.Formatter(TEXT))
    root = logging.getLogger("overlaynet")
    root.handlers = [handler]
    root.setLevel(config.level.upper())
    root.propagate = False
