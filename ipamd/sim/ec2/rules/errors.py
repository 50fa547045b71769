"""EC2's errors: a code that programs decide by, a message for people, and an HTTP status.

Codes and their meaning: AWS, "Error codes for the Amazon EC2 API". Where that page leaves two codes open, the double
gives the one seen in practice; the place that raises it says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_BAD_REQUEST: Final = 400
_STATUS: Final[Mapping[str, int]] = {
    "AuthFailure": 401,
    "UnauthorizedOperation": 403,
    "DryRunOperation": 412,
    "InternalError": 500,
    "InternalFailure": 500,
    "ServerInternal": 500,
    "RequestLimitExceeded": 503,
    "ServiceUnavailable": 503,
    "Unavailable": 503,
}


class Ec2Error(Exception):
    """EC2 refuses a call."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message

    @property
    def status(self) -> int:
        return _STATUS.get(self.code, _BAD_REQUEST)
