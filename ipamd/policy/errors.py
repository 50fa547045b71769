from __future__ import annotations


class NotEnforced(Exception):
    """The pod must not start; the message says why."""
