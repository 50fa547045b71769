"""Times: ages for people, ISO 8601 for programs, and seconds since the epoch in between."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(stamp: Timestamp) -> float:
    """Since the epoch."""
    return float(stamp.seconds + stamp.nanos / 1e9)


def iso(stamp: Timestamp, precision: str = "seconds") -> str:
    """UTC: 2026-01-31T12:00:00Z, or with `precision` "milliseconds" 2026-01-31T12:00:00.125Z."""
    at = datetime.fromtimestamp(stamp.seconds, UTC).replace(microsecond=stamp.nanos // 1000)
    return at.isoformat(timespec=precision).replace("+00:00", "Z")


def span(seconds: float) -> str:
    """A length of time in its two largest units: 12s, 3m12s, 5h03m, 2d04h."""
    whole = max(0, int(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d{hours % 24:02}h"
    if hours:
        return f"{hours}h{minutes % 60:02}m"
    return f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"


def age(stamp: Timestamp, now: float) -> str:
    """How long ago `stamp` was, or how far away it is: "3m12s", "in 12s"."""
    ago = now - seconds(stamp)
    return span(ago) if ago >= 0 else f"in {span(-ago)}"


def clock(seconds: float) -> str:
    """Time of day, UTC: 12:00:00Z."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%H:%M:%SZ")


def duration(text: str) -> float:
    """Seconds, from "90", "90s", "5m", "1.5h" or "2d". Raises ValueError."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    length = float(number) * _UNITS[unit]
    if not (math.isfinite(length) and length >= 0):
        raise ValueError(text)
    return length
