"""Where alerts go: a record in the log, a line in a file, a request to a webhook; each alert once."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import urllib.request
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.spec import AlertSpec
from flows.steps import Alert

__all__ = ["alert_id", "raise_alert"]

_PATIENCE = 10.0  # seconds


def alert_id(alert: Alert) -> str:
    """16 hex digits: the same alert again has the same."""
    return hashlib.sha256(json.dumps(asdict(alert), sort_keys=True, default=str).encode()).hexdigest()[:16]


def raise_alert(alert: Alert, where: AlertSpec, log: Any = None) -> bool:
    """Tell of an alert; False where the file says that it was told before.

    A webhook that does not answer is an error in the log, and fails nothing: the alert is in the file and the log.
    """
    log = log or logging.getLogger("flows.alerts")
    record = {
        "id": alert_id(alert),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "level": "alert",
        **asdict(alert),
    }
    line = json.dumps(record, default=str)
    if where.file is not None and not _written(Path(where.file), record["id"], line):
        return False
    log.warning("%s", line)
    if where.webhook is not None:
        _posted(where.webhook, line, log)
    return True


def _written(file: Path, id: str, line: str) -> bool:
    """Append a line, unless there is one of the same alert."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+", encoding="utf-8") as lines:
        fcntl.flock(lines, fcntl.LOCK_EX)
        lines.seek(0)
        if any(f'"id": "{id}"' in known for known in lines):
            return False
        lines.write(line + "\n")
    return True


def _posted(url: str, line: str, log: Any) -> None:
    request = urllib.request.Request(url, line.encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE):
            pass
    except (OSError, ValueError) as error:
        log.error("the webhook %s does not take the alert: %s", url, error)
