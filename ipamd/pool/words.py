"""Numbers, times and EC2's sentences as parts of ours."""

from __future__ import annotations


def many(count: int, one: str, more: str) -> str:
    """For instance "no addresses", "1 address", "2 addresses"."""
    return f"{count or 'no'} {one if count == 1 else more}"


def span(seconds: float) -> str:
    """A time in words: 0.4 s, 12 s, 3 min, 1 h 40 min, 2 days."""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{round(hours / 24)} days"


def sentence(text: str) -> str:
    """With one full stop at its end, whether or not the text, which may be EC2's, brings its own."""
    text = text.rstrip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
