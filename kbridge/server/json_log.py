"""Log lines as JSON, one object a line, without secrets.

A program that collects logs finds the kernel, the session and the client in their own fields. Code
that logs passes them in `extra`, under the names of `FIELDS`.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Final

from kbridge.server.safe_log import SafeFormatter, safe_value

__all__ = ["FIELDS", "JsonFormatter"]

FIELDS: Final = ("kernel_id", "session", "client", "method", "path", "status", "duration")
"""Attributes of log records that become fields."""


class JsonFormatter(SafeFormatter):
    """Formats a log record as one line of JSON.

    The fields `time` (UTC), `level`, `logger` and `message` are always there. Those of `FIELDS` are
    there where they are known, and `exception` with a traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": safe_value(record.getMessage()),
        }
        for name in FIELDS:
            value = getattr(record, name, None)
            if value not in (None, ""):
                fields[name] = safe_value(value) if isinstance(value, str) else value
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info).lstrip()
        elif record.exc_text:
            fields["exception"] = safe_value(record.exc_text)
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info).lstrip()
        return json.dumps(fields)
